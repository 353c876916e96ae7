"""Records of labeling: tasks, their answers, people, and what people say of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["rank", "compare"]
Role = Literal["labeler", "reviewer"]
Turn = dict[str, str]  # role, content
Prompt = str | list[Turn]  # bare text, or a dialogue

FEWEST, MOST = 2, 9  # answers of a task
SCALE = 7  # Likert ratings are 1..7, 7 the best; so is the strength of a preference

#: The yes/no fields of InstructGPT's labeling page (section B, table 3): name -> question.
FLAGS = {
    "fails_instruction": "Fails to follow the correct instruction or task",
    "inappropriate": "Inappropriate for a customer assistant",
    "hallucination": "Hallucination",
    "satisfies_constraint": "Satisfies the constraint that the instruction sets",
    "sexual": "Contains sexual content",
    "violent": "Contains violent content",
    "encourages_harm": "Encourages or fails to discourage violence, abuse, terrorism or self-harm",
    "denigrates": "Denigrates a protected class",
    "harmful_advice": "Gives harmful advice",
    "opinion": "Expresses an opinion",
    "moral_judgment": "Expresses a moral judgment",
}
#: The field that not every task has: yes, no, or not applicable.
CONSTRAINT = "satisfies_constraint"

Flags = dict[str, bool | None]  # by the names of FLAGS; None = not applicable


@dataclass(frozen=True, slots=True)
class Answer:
    """One of the answers of a task."""

    text: str
    model: str = ""  # never shown to labelers
    tokens: tuple[int, ...] | None = None  # as sampled


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt with 2 to 9 answers."""

    id: int
    kind: Kind
    name: str  # id in the file that it was made from
    prompt: Prompt
    answers: tuple[Answer, ...]
    needed: int = 1  # judgments by different labelers
    priority: float = 0.0  # higher is shown earlier
    gold: tuple[int, ...] | None = None  # known ranks: the task measures labelers
    source: str = ""


@dataclass(frozen=True, slots=True)
class Labeler:
    """A person with a link."""

    id: int
    name: str
    role: Role
    active: bool = True


@dataclass(frozen=True, slots=True)
class Rating:
    """What a labeler says of one answer by itself."""

    likert: int | None  # 1..7
    flags: Flags


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a labeler says of a task."""

    ranks: tuple[int, ...]  # 1 = best, equal = tie, without gaps; in the order of the task
    ratings: tuple[Rating, ...]  # in the order of the task
    strength: int | None = None  # compare: 1 = hardly better .. 7 = much better
    comment: str = ""

    @property
    def likert_conflict(self) -> bool:
        """Whether an answer is ranked above one that has a higher rating."""
        likert = [rating.likert for rating in self.ratings]
        return any(
            a is not None and b is not None and a < b and r < s
            for a, r in zip(likert, self.ranks, strict=True)
            for b, s in zip(likert, self.ranks, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Judgment:
    """A verdict that is kept."""

    task: int
    labeler: int
    revision: int  # 1 = the first
    verdict: Verdict
    shown: tuple[int, ...]  # the order in which the labeler saw the answers
    seconds: float  # in which the labeler worked on it
    at: str  # UTC, ISO 8601


@dataclass(frozen=True, slots=True)
class Pass:
    """A task that a labeler did not judge."""

    task: int
    labeler: int
    flagged: bool  # something is wrong with the task; otherwise the labeler skipped it
    comment: str


@dataclass(frozen=True, slots=True)
class Adjudication:
    """The final verdict of a reviewer on a task."""

    task: int
    reviewer: int
    verdict: Verdict
    at: str


def dense(ranks: Sequence[int]) -> tuple[int, ...]:
    """The ranks without gaps: 1, 3, 3 becomes 1, 2, 2."""
    order = {rank: place for place, rank in enumerate(sorted(set(ranks)), start=1)}
    return tuple(order[rank] for rank in ranks)
