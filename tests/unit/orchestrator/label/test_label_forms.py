"""A form becomes a verdict in the order of the task, and back."""

from __future__ import annotations

import pytest

from orchestrator.label.records import FLAGS, Answer, Rating, Task, Verdict, dense
from orchestrator.label.web.forms import filled, seconds, values_of
from orchestrator.pages.visible import FOLDED_FROM, Part, shown

TASK = Task(1, "rank", "t", "?", (Answer("zero"), Answer("one"), Answer("two")))
PAIR = Task(2, "compare", "p", "?", (Answer("zero"), Answer("one")))
ORDER = (2, 0, 1)  # A is answer 2, B is answer 0, C is answer 1
FORM = {
    "rank-A": "1", "rank-B": "3", "rank-C": "3", "likert-A": "7", "likert-B": "2", "likert-C": "1",
    "flag-A-hallucination": "yes", "flag-B-satisfies_constraint": "no", "comment": " so so\r\n ",
}  # fmt: skip


def test_letters_are_answers_in_the_order_in_which_they_were_shown() -> None:
    verdict = filled(FORM, TASK, ORDER).verdict
    assert verdict is not None
    assert verdict.ranks == (2, 2, 1)  # without a gap
    assert [r.likert for r in verdict.ratings] == [2, 1, 7]
    assert [r.flags["hallucination"] for r in verdict.ratings] == [False, False, True]
    assert [r.flags["satisfies_constraint"] for r in verdict.ratings] == [False, None, None]
    assert all(list(r.flags) == list(FLAGS) for r in verdict.ratings)
    assert len(FLAGS) == 11
    assert verdict.comment == "so so"


def test_a_verdict_fills_in_the_form_that_gives_it() -> None:
    verdict = filled(FORM, TASK, ORDER).verdict
    assert verdict is not None
    assert filled(values_of(verdict, TASK, ORDER), TASK, ORDER).verdict == verdict


@pytest.mark.parametrize(
    ("choice", "strength", "ranks", "kept"),
    [("A", "6", (2, 1), 6), ("B", "2", (1, 2), 2), ("tie", "5", (1, 1), None),
     ("tie", "", (1, 1), None)],
)  # fmt: skip
def test_a_comparison_says_which_side_and_how_much(
    choice: str, strength: str, ranks: tuple[int, ...], kept: int | None
) -> None:
    form = {"likert-A": "3", "likert-B": "4", "choice": choice, "strength": strength}
    verdict = filled(form, PAIR, (1, 0)).verdict  # A is answer 1
    assert verdict is not None
    assert (verdict.ranks, verdict.strength) == (ranks, kept)
    assert filled(values_of(verdict, PAIR, (1, 0)), PAIR, (1, 0)).verdict == verdict


@pytest.mark.parametrize(
    ("changed", "field"),
    [({"rank-A": "4"}, "rank-A-1"), ({"rank-B": ""}, "rank-B-1"), ({"likert-C": "8"}, "likert-C-1"),
     ({"likert-C": "0"}, "likert-C-1"), ({"likert-A": "1.0"}, "likert-A-1"),
     ({"rank-A": "\u0661"}, "rank-A-1"), ({"comment": "x" * 2001}, "comment"),
     ({"flag-A-sexual": "maybe"}, "flag-A-sexual")],
)  # fmt: skip
def test_a_wrong_field_is_named_and_nothing_is_kept(changed: dict[str, str], field: str) -> None:
    found = filled(FORM | changed, TASK, ORDER)
    assert found.verdict is None
    assert [problem.field for problem in found.problems] == [field]


def test_a_rank_above_a_higher_rating_is_a_conflict_and_not_an_error() -> None:
    flags = dict.fromkeys(FLAGS, False)
    ratings = (Rating(3, flags), Rating(5, flags))
    assert Verdict((1, 2), ratings).likert_conflict
    assert not Verdict((1, 1), ratings).likert_conflict
    assert not Verdict((2, 1), ratings).likert_conflict


@pytest.mark.parametrize(
    ("sent", "kept"), [("12", 12), ("-1", 30.5), ("nan", 30.5), ("1e9", 30.5), ("", 30.5)]
)
def test_impossible_seconds_are_replaced_by_those_of_the_server(sent: str, kept: float) -> None:
    assert seconds({"seconds": sent}, 30.5) == kept


def test_ranks_without_gaps() -> None:
    assert dense([5, 2, 2, 9]) == (2, 1, 1, 3)


def test_what_cannot_be_seen_is_named() -> None:
    text = "a\u202eb\u0000\u0007c\n\td\u200de\u200b\U000e0041\x1b[31m"
    assert shown(text).head == (
        Part("a"), Part("U+202E", True), Part("b"), Part("U+0000 U+0007", True),
        Part("c\n\td\u200de"), Part("U+200B U+E0041 U+001B", True), Part("[31m"),
    )  # fmt: skip


def test_a_long_text_is_folded_and_whole() -> None:
    text = "0123456789" * 10_000
    found = shown(text)
    assert len(found.head[0].text) == FOLDED_FROM
    assert found.more == 100_000 - FOLDED_FROM
    assert found.head[0].text + found.rest[0].text == text
