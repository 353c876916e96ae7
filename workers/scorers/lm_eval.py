"""lm-evaluation-harness in a separate process. The only file that imports lm_eval.

`python -m workers.scorers.lm_eval REQUEST RESULT`: reads a JSON request, writes a JSON result. The
process is separate because the harness keeps models in memory, sets seeds and changes logging, and
so that it can be killed after a timeout.
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
    """The tasks to run and the models to run them on."""

    models: dict[str, str]  # name -> Hugging Face folder
    tasks: tuple[str, ...]
    task_folder: str  # YAML of the user's tasks; "" = the package's tasks
    limit: int  # examples per task; 0 = all
    fewshot: int  # examples in the prompt; -1 = as the task says
    batch_size: int
    device: str
    dtype: str
    seed: int


def write_request(path: Path, request: HarnessRequest) -> None:
    """Write the request file that `main` reads."""
    path.write_text(json.dumps(asdict(request)), encoding="utf-8")


def read_result(path: Path) -> dict[str, Scores]:
    """Scores of each model from the result file.

    Raises:
        RehearsalError: the error that `main` recorded.
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
    """The scores of one model from the harness's table of results.

    Keys of the table are "metric,filter" and "metric_stderr,filter"; the filter "none", which does
    nothing, is omitted here. For a group, its own line is kept, not those of its tasks.

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
        ConfigError: the harness does not know a task.
        DataError: a metric is NaN or infinite.
    """
    # Imported by name, because type checkers do not find this optional package everywhere.
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
    """Arguments for loading a model so that texts begin as its tokenizer begins them.

    By default the harness omits the tokens that a tokenizer puts before a text.
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
    """Run the request; expected errors go into the result file, others end the process."""
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
