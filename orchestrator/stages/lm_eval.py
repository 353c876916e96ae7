"""Tasks of lm-evaluation-harness on the evaluated models, in a child process with a deadline."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from orchestrator.config.by_name import from_sections
from orchestrator.config.evaluation import LmEvalConfig
from orchestrator.config.schema import Config
from orchestrator.planning.worker_specs import device, dtype
from orchestrator.results.summary import TaskScore
from workers.errors import ConfigError, DeadlineError, RoleError
from workers.process.child_processes import end_group, module_environment
from workers.process.disk import temporary_folder
from workers.scorers.lm_eval import HarnessRequest, read_result, write_request

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")

TaskScores = dict[str, dict[str, TaskScore]]  # task -> metric -> score


def check_harness_ready(config: Config) -> None:
    """Check before any training that the package is installed and the task folder has tasks.

    Raises:
        ConfigError: it is not installed, or there are no tasks.
    """
    settings = config.evaluate.lm_eval
    if not settings.tasks:
        return
    if find_spec("lm_eval") is None:
        raise ConfigError(
            "lm-evaluation-harness is not installed",
            where="evaluate.lm_eval.tasks",
            fix="install the extra lm-eval: pip install '.[lm-eval]' in the environment",
        )
    folder = settings.task_folder
    if folder and not any(Path(folder).glob("**/*.yaml")):
        raise ConfigError(
            "there is no YAML file of a task",
            where=f"evaluate.lm_eval.task_folder={folder}",
            fix="name the folder of your tasks, or leave it empty for those of the package",
        )


def harness_scores(config: Config, models: dict[str, str], log: Path) -> dict[str, TaskScores]:
    """Run the configured tasks on every model, offline; data paths are relative to the task folder.

    Args:
        config: names the tasks.
        models: name -> Hugging Face folder.
        log: file for the harness's output.

    Raises:
        ConfigError: the harness does not know a task.
        DataError: a metric is not a number.
        DeadlineError: it took longer than evaluate.lm_eval.deadline_seconds.
        RoleError: the harness failed; names its log.
    """
    settings = config.evaluate.lm_eval
    folder = str(Path(settings.task_folder).resolve()) if settings.task_folder else ""
    request = from_sections(
        HarnessRequest,
        settings,
        models=models,
        task_folder=folder,
        device=settings.device or device(config),
        dtype=dtype(config.trainer.precision),
        seed=config.seed,
    )
    log.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder("rehearsal-lm-eval-") as place:
        asked, answered = Path(place) / "request.json", Path(place) / "result.json"
        write_request(asked, request)
        _run([str(asked), str(answered)], folder, settings, log)
        found = read_result(answered)
    return {
        model: {
            task: {metric: TaskScore(*score) for metric, score in metrics.items()}
            for task, metrics in tasks.items()
        }
        for model, tasks in found.items()
    }


def _run(arguments: list[str], folder: str, settings: LmEvalConfig, log: Path) -> None:
    environment = module_environment() | dict.fromkeys(_OFFLINE, "1")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.scorers.lm_eval", *arguments],
            cwd=folder or None,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its child processes can be ended with it
        )
        try:
            code = process.wait(settings.deadline_seconds)
        except subprocess.TimeoutExpired as error:
            raise DeadlineError(
                f"the evaluation harness was not done within {settings.deadline_seconds:g} s",
                where=f"evaluate.lm_eval, log in {log}",
                fix="raise evaluate.lm_eval.deadline_seconds, or set evaluate.lm_eval.limit",
            ) from error
        finally:
            end_group(process)
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
        raise RoleError(
            f"the evaluation harness ended with code {code}: {lines[-1]:.200}",
            where=f"evaluate.lm_eval, log in {log}",
            fix="fix what its log names: a task's data, or a model that it cannot load",
        )
