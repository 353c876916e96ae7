"""lm-evaluation-harness in a process of its own. The only file that imports lm_eval.

`python -m workers.scorers.lm_eval REQUEST RESULT`: reads a JSON request, writes a JSON result. A
process of its own, because the harness keeps models, seeds and logging to itself and may be killed
when late.
"""

from __future__ import annotations

import difflib
import importlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workers.data.tokenize.beginnings import beginning
from workers.data.tokenize.tokenizers import load_tokenizer
from workers.errors import ConfigError, DataError, RehearsalError

Scores = dict[str, dict[str, tuple[float, float | None]]]  # task -> metric -> value, stderr


@dataclass(frozen=True, slots=True)
class HarnessRequest:
    """Which tasks to run on which models."""

    models: dict[str, str]  # name -> Hugging Face folder
    tasks: tuple[str, ...]
    task_folder: str  # YAML of the user's tasks; "" = those of the package
    limit: int  # examples a task; 0 = all
    fewshot: int  # examples in the prompt; -1 = as the task says
    batch_size: int
    device: str
    dtype: str
    seed: int


def write_request(path: Path, request: HarnessRequest) -> None:
    """Write what `main` reads."""
    path.write_text(json.dumps(asdict(request)), encoding="utf-8")


def read_result(path: Path) -> dict[str, Scores]:
    """Scores of each model.

    Raises:
        RehearsalError: what `main` could not do.
    """
    result = json.loads(path.read_text(encoding="utf-8"))
    if "error" in result:
        kinds = {each.__name__: each for each in (ConfigError, DataError)}
        raise kinds[result["kind"]](result["error"], where=result["where"], fix=result["fix"])
    return {
        model: {
            task: {metric: (value, stderr) for metric, (value, stderr) in metrics.items()}
            for task, metrics in tasks.items()
        }
        for model, tasks in result["scores"].items()
    }


def read_metrics(tasks: Mapping[str, Mapping[str, Any]], wanted: Sequence[str]) -> Scores:
    """The numbers of one model in the harness's table of results.

    Keys there are "metric,filter" with "metric_stderr,filter" beside; a filter that does nothing
    is called none and left out here. Of a group its own line is kept, not those of its tasks.

    Raises:
        DataError: a metric is NaN or infinite.
    """
    chosen = [name for name in tasks if name in wanted] or list(tasks)  # a tag has no line
    scores: Scores = {}
    for name in chosen:
        scores[name] = {}
        for key, value in tasks[name].items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            if not math.isfinite(value):
                raise DataError(
                    f"the metric {key} is {value}", where=f"task {name}",
                    fix="look at the task's data; a limit of one example leaves some undefined",
                )  # fmt: skip
            spread = tasks[name].get(f"{metric}_stderr,{kind}")
            if not isinstance(spread, (int, float)) or not math.isfinite(spread):
                spread = None  # the harness writes "N/A" where it has none
            scores[name][metric if kind == "none" else key] = (float(value), spread)
    return scores


def run_tasks(request: HarnessRequest) -> dict[str, Scores]:
    """Run all tasks on all models.

    Raises:
        ConfigError: a task that the harness does not know.
        DataError: a metric that is no number.
    """
    # by name: an optional package that type checkers of other environments do not find
    evaluator: Any = importlib.import_module("lm_eval.evaluator")
    tasks: Any = importlib.import_module("lm_eval.tasks")
    manager = tasks.TaskManager(
        include_path=request.task_folder or None, include_defaults=not request.task_folder
    )
    _known(request.tasks, manager.all_tasks)
    found: dict[str, Scores] = {}
    for name, folder in request.models.items():
        results = evaluator.simple_evaluate(
            model="hf",
            model_args=model_arguments(folder, request.dtype),
            tasks=list(request.tasks),
            num_fewshot=None if request.fewshot < 0 else request.fewshot,
            batch_size=request.batch_size,
            device=request.device,
            limit=request.limit or None,
            bootstrap_iters=1000,
            log_samples=False,
            task_manager=manager,
            random_seed=request.seed,
            numpy_random_seed=request.seed,
            torch_random_seed=request.seed,
            fewshot_random_seed=request.seed,
        )
        assert results is not None, "only ranks above 0 get none"
        found[name] = read_metrics(results["results"], request.tasks)
    return found


def model_arguments(folder: str, dtype: str) -> dict[str, object]:
    """How the harness loads a model: its texts begin as the model's own tokenizer begins them.

    Unless it is told, the harness leaves out what a tokenizer writes before a text.
    """
    begins = bool(beginning(load_tokenizer(folder)))
    return {"pretrained": folder, "dtype": dtype, "add_bos_token": begins}


def _known(tasks: Sequence[str], names: Sequence[str]) -> None:
    for task in tasks:
        if task in names:
            continue
        near = difflib.get_close_matches(task, names, n=3, cutoff=0.5)
        raise ConfigError(
            f"the evaluation harness knows no task {task!r}",
            where="evaluate.lm_eval.tasks",
            fix=f"did you mean {' or '.join(near)}?"
            if near
            else "set evaluate.lm_eval.task_folder to the folder with its YAML",
        )


def main() -> int:
    """Run the request; an expected failure is written down, any other ends the process."""
    request, result = (Path(name) for name in sys.argv[1:])
    fields = json.loads(request.read_text(encoding="utf-8"))
    try:
        answer: dict[str, object] = {"scores": run_tasks(HarnessRequest(**fields))}
    except RehearsalError as error:
        kind = type(error).__name__
        answer = {"kind": kind, "error": error.what, "where": error.where, "fix": error.fix}
    result.write_text(json.dumps(answer), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
