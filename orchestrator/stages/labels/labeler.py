"""What a labeler is: it ranks the answers of tasks.

Each is one file of `orchestrator/stages/labels/labelers` that assigns LABELER; `label.labeler`
finds it by the file's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.config.schema import Config
from orchestrator.results.label_figures import AILabelFigures
from workers.extensions.kinds import Kind
from workers.records.arrays import FloatArray

if TYPE_CHECKING:  # a plan needs neither
    from orchestrator.session.session import Session
    from orchestrator.stages.labels.tasks import Task


@dataclass(frozen=True, slots=True)
class Verdict:
    """One ranking of the answers to one prompt."""

    task: int  # place in the list of tasks
    ranks: tuple[int, ...]  # (K,) 1 = best, equal = tie
    annotator: str = ""
    likert: tuple[int, ...] | None = None  # (K,) quality from 1 to 7; None = not rated
    # (K, K) soft labels that train in place of the ranks (`Ranking.probabilities`); None = ranks
    probabilities: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a labeler said; a task has any number of verdicts, or a reason why it has none."""

    given: Sequence[Verdict]
    failed: dict[int, str] = field(default_factory=dict)  # place of a task -> reason
    judging: AILabelFigures | None = None  # of a model that was asked about pairs


@dataclass(frozen=True, slots=True)
class Labeler:
    """One kind of labeler."""

    rank: Callable[[Session, str, Sequence[Task]], Verdicts]
    """Ranks the answers of all tasks. The second argument is the name of the stage run. Raises
    WaitingError if the verdicts are not there yet: the tasks are saved, and a resumed run calls
    it again."""
    check: Callable[[Config, str], None]
    """Raises ConfigError before anything starts if it cannot rank with these settings; the second
    argument is the key of its section, such as `label`."""


WHERE = "label.labeler"
LABELERS = Kind("labeler", Labeler, "orchestrator.stages.labels.labelers", "LABELER")


def find_labeler(name: str, folder: str = "") -> Labeler:
    """The labeler that `label.labeler` names: one of ours, or `package.module:NAME`.

    Raises:
        ConfigError: there is none.
    """
    return LABELERS.find(name, WHERE, folder)


def ranks_of(values: Sequence[float]) -> tuple[int, ...]:
    """Ranks of numbers of which a higher one is better: 1 = highest, equal = tie, none skipped."""
    order = {value: rank for rank, value in enumerate(sorted({*values}, reverse=True), start=1)}
    return tuple(order[value] for value in values)
