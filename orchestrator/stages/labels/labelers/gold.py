"""The pocket world's own labeler: its hidden score with noise and ties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.config.data import DataSourceKind
from orchestrator.config.schema import Config
from orchestrator.stages.labels.labeler import Labeler, Verdict, Verdicts
from workers.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.session.session import Session
    from orchestrator.stages.labels.tasks import Task


def _rank(session: Session, stage: str, tasks: Sequence[Task]) -> Verdicts:
    del stage
    ranks = session.source.label([task.prompt for task in tasks], [task.texts for task in tasks])
    return Verdicts([Verdict(n, tuple(rank)) for n, rank in enumerate(ranks)])


def _check(config: Config, where: str) -> None:
    if config.data.source is not DataSourceKind.pocket:
        raise ConfigError(
            "only the pocket world has a gold labeler",
            where=f"{where}.labeler",
            fix="choose people, or a function of yours",
        )


LABELER = Labeler(_rank, _check)
