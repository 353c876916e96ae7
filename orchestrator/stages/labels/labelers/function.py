"""A function of the user that gives every answer a number, such as one that asks a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config.schema import Config
from orchestrator.stages.labels.labeler import Labeler, Verdict, Verdicts, ranks_of
from workers.errors import ConfigError
from workers.user_functions.calls import Patience
from workers.user_functions.labeler_function import Answers, call_labeler, started_labeler

if TYPE_CHECKING:
    from orchestrator.session.session import Session
    from orchestrator.stages.labels.tasks import Task

_BATCH = 64  # tasks per call: what one deadline, and one error of the function, is for


def _rank(session: Session, stage: str, tasks: Sequence[Task]) -> Verdicts:
    reward, path = session.config.reward, session.config.label.function
    patience = Patience(reward.function_seconds, reward.function_retries)
    given: list[Verdict] = []
    failed: dict[int, str] = {}
    with started_labeler(path, str(Path.cwd())) as function:
        for first in range(0, len(tasks), _BATCH):
            session.stop_if_asked()
            batch = tasks[first : first + _BATCH]
            asked = [Answers(task.prompt.asked, task.texts) for task in batch]
            for at, found in enumerate(call_labeler(function, asked, patience), start=first):
                if isinstance(found, str):
                    failed[at] = found
                else:
                    given.append(Verdict(at, ranks_of(found), annotator=path))
            session.live.note(f"{stage}: {min(first + _BATCH, len(tasks)):,} prompts labeled")
    return Verdicts(given, failed)


def _check(config: Config, where: str) -> None:
    if not config.label.function:
        raise ConfigError(
            "no function is named", where=f"{where}.function", fix="set it to package.module:NAME"
        )


LABELER = Labeler(_rank, _check)
