"""A function of the user that gives every answer a number, such as one that asks a model.

Its numbers are kept as they come, so that a run that was killed does not pay for them again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config.schema import Config
from orchestrator.stages.labels.labeler import Labeler, Verdict, Verdicts, ranks_of
from workers.errors import ConfigError
from workers.scorers.judge_cache import VerdictCache, question_key
from workers.user_functions.calls import Patience
from workers.user_functions.labeler_function import Answers, call_labeler, started_labeler

if TYPE_CHECKING:
    from orchestrator.session.session import Session
    from orchestrator.stages.labels.tasks import Task

_FORMAT = "numbers 1"
_BATCH = 64  # tasks per call: what one deadline, and one error of the function, is for


def _rank(session: Session, stage: str, tasks: Sequence[Task]) -> Verdicts:
    reward, path = session.config.reward, session.config.label.function
    patience = Patience(reward.function_seconds, reward.function_retries)
    kept = VerdictCache(session.folder.answers_of(stage), _Numbers(), f"{stage}.function")
    keys = [_key(path, task) for task in tasks]
    left = [n for n, key in enumerate(keys) if kept.get(key) is None]
    failed: dict[int, str] = {}
    try:
        with started_labeler(path, str(Path.cwd())) as function:
            for first in range(0, len(left), _BATCH):
                session.stop_if_asked()
                batch = left[first : first + _BATCH]
                asked = [Answers(tasks[n].prompt.asked, tasks[n].texts) for n in batch]
                found = call_labeler(function, asked, patience)
                for n, numbers in zip(batch, found, strict=True):
                    if isinstance(numbers, str):
                        failed[n] = numbers
                    else:
                        kept.put(keys[n], json.dumps(numbers))
                done = len(tasks) - len(left) + first + len(batch)
                session.live.note(f"{stage}: {done:,} prompts labeled")
        said = {n: kept.get(key) for n, key in enumerate(keys)}
    finally:
        kept.close()
    given = [
        Verdict(n, ranks_of(json.loads(numbers)), annotator=path)
        for n, numbers in said.items()
        if numbers is not None
    ]
    return Verdicts(given, failed)


def _key(path: str, task: Task) -> str:
    return question_key(_FORMAT, path, str(task.prompt.id), task.prompt.text, *task.texts)


class _Numbers:
    """Lists of finite numbers as JSON, the allowed values of what is kept."""

    def __contains__(self, text: object) -> bool:
        try:
            found = json.loads(text) if isinstance(text, str) else None
        except ValueError:
            return False
        return isinstance(found, list) and all(
            isinstance(each, float) and math.isfinite(each) for each in found
        )


def _check(config: Config, where: str) -> None:
    if not config.label.function:
        raise ConfigError(
            "no function is named", where=f"{where}.function", fix="set it to package.module:NAME"
        )


LABELER = Labeler(_rank, _check)
