"""The form of a task: names of its fields, what was filled in, and the verdict that it gives.

Answers have the letters A to I in the order in which the labeler sees them; the names of fields end
in these letters, so a form says nothing about models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.label.records import (
    CONSTRAINT,
    FLAGS,
    SCALE,
    Flags,
    Rating,
    Task,
    Verdict,
    dense,
)

LETTERS = "ABCDEFGHI"
MOST_COMMENT = 2000  # characters
MOST_SECONDS = 86_400.0
_CHOICES = {"A": (1, 2), "tie": (1, 1), "B": (2, 1)}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is missing or wrong, and where in the page."""

    field: str  # id of the element
    text: str


@dataclass(frozen=True, slots=True)
class Filled:
    """A form as it was sent: a verdict, or problems."""

    problems: tuple[Problem, ...]
    verdict: Verdict | None


def is_pair(task: Task) -> bool:
    """Whether the task asks which of two answers is better, and by how much."""
    return task.kind == "compare" and len(task.answers) == 2


def filled(form: Mapping[str, str], task: Task, order: Sequence[int]) -> Filled:
    """Read a form.

    Args:
        form: Values by name.
        task: The task.
        order: `order[i]` is the index of the answer that was shown as letter i.
    """
    problems: list[Problem] = []
    letters = LETTERS[: len(order)]
    ratings = [_rating(form, letter, problems) for letter in letters]
    strength = None
    if is_pair(task):
        ranks, strength = _choice(form, problems)
    else:
        ranks = [
            _number(form, f"rank-{letter}", len(order), f"Rank answer {letter}", problems)
            for letter in letters
        ]
    comment = form.get("comment", "").replace("\r\n", "\n").strip()
    if len(comment) > MOST_COMMENT:
        problems.append(Problem("comment", f"Shorten the comment to {MOST_COMMENT} characters"))
    if problems:
        return Filled(tuple(problems), None)
    place = {answer: i for i, answer in enumerate(order)}
    back = [place[answer] for answer in range(len(order))]
    ordered = dense([ranks[i] for i in back])
    return Filled((), Verdict(ordered, tuple(ratings[i] for i in back), strength, comment))


def values_of(verdict: Verdict, task: Task, order: Sequence[int]) -> dict[str, str]:
    """The form that gives a verdict: the inverse of `filled`."""
    found = {"comment": verdict.comment}
    for letter, answer in zip(LETTERS, order, strict=False):
        rating = verdict.ratings[answer]
        found[f"rank-{letter}"] = str(verdict.ranks[answer])
        if rating.likert is not None:
            found[f"likert-{letter}"] = str(rating.likert)
        for name, value in rating.flags.items():
            if name == CONSTRAINT:
                found[f"flag-{letter}-{name}"] = {True: "yes", False: "no", None: ""}[value]
            elif value:
                found[f"flag-{letter}-{name}"] = "yes"
    if is_pair(task):
        a, b = (verdict.ranks[answer] for answer in order)
        found["choice"] = "tie" if a == b else "A" if a < b else "B"
        found["strength"] = str(verdict.strength or "")
    return found


def seconds(form: Mapping[str, str], otherwise: float) -> float:
    """The seconds that the page counted while somebody used it; `otherwise` without scripts."""
    try:
        counted = float(form.get("seconds", ""))
    except ValueError:
        counted = -1.0
    found = counted if 0 <= counted <= MOST_SECONDS else otherwise  # not NaN either
    return round(min(found, MOST_SECONDS), 1)


def _rating(form: Mapping[str, str], letter: str, problems: list[Problem]) -> Rating:
    likert = _number(form, f"likert-{letter}", SCALE, f"Rate answer {letter}", problems)
    flags: Flags = {}
    for name in FLAGS:
        field = f"flag-{letter}-{name}"
        given = form.get(field, "")
        if given not in ("", "yes", "no"):
            problems.append(Problem(field, f"Answer yes or no: {FLAGS[name]} (answer {letter})"))
        flags[name] = None if name == CONSTRAINT and not given else given == "yes"
    return Rating(likert, flags)


def _choice(form: Mapping[str, str], problems: list[Problem]) -> tuple[list[int], int | None]:
    choice = form.get("choice", "")
    if choice not in _CHOICES:
        problems.append(Problem("choice-A", "Say which answer is better, or that they are equal"))
        return [1, 1], None
    if choice == "tie":
        return [1, 1], None
    return list(_CHOICES[choice]), _number(
        form, "strength", SCALE, "Say how much better it is", problems
    )


def _number(
    form: Mapping[str, str], name: str, most: int, words: str, problems: list[Problem]
) -> int:
    given = form.get(name, "")
    if given in {str(i) for i in range(1, most + 1)}:
        return int(given)
    problems.append(Problem(f"{name}-1", f"{words}: a number from 1 to {most}"))
    return 1
