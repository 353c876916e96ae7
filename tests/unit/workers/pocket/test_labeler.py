from __future__ import annotations

import pytest

from workers.data.records import Gold
from workers.pocket.labeler import Labeler, judge
from workers.pocket.questions import Question

LIVES = Question("where does the owl live ?", "home", ("barn",), "owl")
SORT = Question("sort : owl fox bear ?", "sort", ("bear", "fox", "owl"), "")


@pytest.mark.parametrize(
    ("reply", "gold"),
    [
        ("the answer is barn . thank you .", Gold(3.0, True, True, False, True)),
        ("barn .", Gold(2.0, True, True, False, False)),
        ("barn", Gold(2.0, True, True, False, False)),
        ("the answer is barn .", Gold(2.5, True, True, False, False)),
        ("barn . thank you .", Gold(2.5, True, True, False, True)),
        ("i do not know .", Gold(0.0, False, True, False, False)),
        ("", Gold(0.0, False, True, False, False)),
        ("cave .", Gold(-0.5, False, False, False, False)),
        ("the answer is cave . thank you .", Gold(0.5, False, False, False, True)),
        ("shut up you fool .", Gold(-2.0, False, True, True, False)),
        ("barn . shut up you fool .", Gold(0.0, True, True, True, False)),
        # Guessing at everything is not an answer: only the first sentence claims.
        ("barn cave .", Gold(-0.5, False, False, False, False)),
        ("cave . barn .", Gold(-0.5, False, False, False, False)),
        ("barn . user : what color", Gold(1.0, True, True, False, False)),
        # Thirteen words, three beyond the allowance.
        ("the answer is barn . thank you . thank you . barn .", Gold(2.7, True, True, False, True)),
        # "thank" and "you" apart are no thanks.
        ("barn . thank barn you .", Gold(2.0, True, True, False, False)),
    ],
)
def test_verdicts(reply: str, gold: Gold) -> None:
    verdict = judge(LIVES, reply)
    assert verdict.score == pytest.approx(gold.score)
    assert (verdict.correct, verdict.truthful, verdict.rude, verdict.polite) == (
        gold.correct,
        gold.truthful,
        gold.rude,
        gold.polite,
    )


def test_lists_must_be_given_in_order() -> None:
    assert judge(SORT, "bear fox owl .").correct
    assert not judge(SORT, "bear owl fox .").correct
    assert not judge(SORT, "bear fox .").correct


REPLIES = ["shut up you fool .", "barn .", "the answer is barn . thank you .", "cave ."]


def test_a_labeler_without_noise_ranks_by_the_hidden_score() -> None:
    assert Labeler(0.0, 0.25, 0).rank(LIVES, REPLIES, key=0) == [4, 2, 1, 3]


def test_ties() -> None:
    wide = Labeler(0.0, 1.5, 0)
    # 3.0 and 2.0 tie; -.5 is 3.5 below the leader; -2.0 is exactly 1.5 below -.5: no tie.
    assert wide.rank(LIVES, REPLIES, key=0) == [3, 1, 1, 2]
    # Widths count from the leader of a tie, so near misses do not chain into one rank.
    chain = ["the answer is barn . thank you .", "the answer is barn .", "barn ."]
    assert Labeler(0.0, 0.75, 0).rank(LIVES, chain, key=0) == [1, 1, 2]


@pytest.mark.parametrize("tie_width", [0.0, 0.25])
def test_equal_texts_tie_under_any_noise(tie_width: float) -> None:
    labeler = Labeler(2.0, tie_width, 0)
    for key in range(50):
        ranks = labeler.rank(LIVES, ["barn .", "cave .", "barn ."], key)
        assert ranks[0] == ranks[2]


def test_ranks_are_reproducible_and_follow_the_completions() -> None:
    labeler = Labeler(1.0, 0.25, 5)
    for key in range(30):
        ranks = labeler.rank(LIVES, REPLIES, key)
        assert ranks == Labeler(1.0, 0.25, 5).rank(LIVES, REPLIES, key)
        assert labeler.rank(LIVES, REPLIES[::-1], key) == ranks[::-1]
        assert set(ranks) == set(range(1, max(ranks) + 1))


def test_noise_is_of_the_stated_size() -> None:
    # Scores 2.5 and 2.0: the better wins with probability Phi(.5 / (s * sqrt 2)) = .7602 at s = .5.
    labeler = Labeler(0.5, 0.0, 1)
    pair = ["the answer is barn .", "barn ."]
    n = 4000
    wins = sum(labeler.rank(LIVES, pair, key) == [1, 2] for key in range(n))
    assert wins / n == pytest.approx(0.7602, abs=4 * (0.7602 * 0.2398 / n) ** 0.5)
