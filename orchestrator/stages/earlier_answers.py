"""Answers of an earlier evaluation, which are judged instead of sampling others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.run_files.samples import Answered, read_answers
from workers.data.records import Prompt
from workers.errors import DataError

_WHERE = "evaluate.answers"


def earlier_answers(
    path: str, models: Sequence[str], prompts: Sequence[Prompt]
) -> dict[str, list[str]]:
    """The answers of models to the prompts of this run, from samples/answers.jsonl of another.

    Args:
        path: The file.
        models: That are evaluated.
        prompts: Of this run, in order.

    Returns:
        Model -> texts, in the order of the prompts.

    Raises:
        DataError: the file is damaged, is on other prompts, or lacks a model.
    """
    lines = read_answers(Path(path))
    asked = [prompt.context for prompt in prompts]
    if [line.prompt for line in lines] != asked:
        raise DataError(
            f"it is on other prompts than this run's: {_first_difference(lines, asked)}",
            where=f"{_WHERE}, {path}",
            fix="evaluate with the data, the seed and evaluate.prompts of the run that wrote it",
        )
    for number, line in enumerate(lines, start=1):
        if missing := [model for model in models if model not in line.answers]:
            raise DataError(
                f"there is no answer of {missing[0]}",
                where=f"{_WHERE}, {path}:{number}",
                fix="give the checkpoints of the models that answered, and no others",
            )
    return {model: [line.answers[model] for line in lines] for model in models}


def _first_difference(lines: Sequence[Answered], asked: Sequence[object]) -> str:
    for number, (line, prompt) in enumerate(zip(lines, asked, strict=False), start=1):
        if line.prompt != prompt:
            return f"the first is in line {number}"
    return f"{len(lines):,} lines, {len(asked):,} prompts"
