"""Figures of what labelers said, against numbers worked out by hand and by simulation."""

from __future__ import annotations

import math
import random
from itertools import combinations

import pytest

from orchestrator.label.figures import Figures, compute, disagreement
from orchestrator.label.records import (
    FLAGS,
    Answer,
    Judgment,
    Labeler,
    Pass,
    Rating,
    Task,
    Verdict,
    dense,
)

ANN, BEN = Labeler(1, "ann", "labeler"), Labeler(2, "ben", "labeler")


def task(number: int, kind: str = "rank", models: str = "xyz", gold=None) -> Task:
    answers = tuple(Answer(f"{m}{number}", m) for m in models)
    return Task(number, kind, str(number), "?", answers, needed=2, gold=gold)  # type: ignore[arg-type]


def judgment(
    number: int, labeler: Labeler, ranks: tuple[int, ...], shown=None, likert=None, strength=None,
    flags: tuple[dict, ...] = (), seconds: float = 10.0,
) -> Judgment:  # fmt: skip
    k = len(ranks)
    ratings = tuple(
        Rating((likert or (4,) * k)[i], dict.fromkeys(FLAGS, False) | (flags[i] if flags else {}))
        for i in range(k)
    )
    verdict = Verdict(ranks, ratings, strength)
    return Judgment(number, labeler.id, 1, verdict, shown or tuple(range(k)), seconds, "")


def figures(tasks: list[Task], judgments: list[Judgment], passes: tuple[Pass, ...] = ()) -> Figures:
    return compute(tasks, [ANN, BEN], judgments, passes, {})


def test_agreement_ties_bias_and_time_of_two_people() -> None:
    said = [
        judgment(1, ANN, (1, 2, 3), shown=(2, 1, 0), seconds=10),
        judgment(1, BEN, (1, 3, 2), shown=(0, 1, 2)),
        judgment(2, ANN, (1, 1, 2), shown=(0, 1, 2), seconds=40),
        judgment(3, ANN, (2, 1, 3), seconds=20),
    ]
    found = figures([task(1), task(2), task(3)], said, (Pass(2, BEN.id, False, ""),))
    assert found.agreement is not None
    assert found.agreement.rate == pytest.approx(2 / 3)  # pairs 01, 02 alike, 12 not
    ann, ben = found.labelers
    assert ann.others is not None
    assert (ann.others.rate, ann.others.n) == (pytest.approx(2 / 3), 3)
    assert (ann.judged, ann.passed, ann.seconds) == (3, 0, 20)
    assert (ben.judged, ben.passed) == (1, 1)
    assert ann.ties == pytest.approx(1 / 9)
    # pairs apart that prefer the one shown first: none of 3, both of 2, two of 3
    assert ann.first is not None
    assert (ann.first.rate, ann.first.n) == (4 / 8, 8)
    assert (found.progress.done, found.progress.judgments, found.progress.needed) == (1, 4, 6)
    assert (found.progress.skipped, found.progress.flagged) == (1, 0)


def test_tasks_of_known_answer_count_against_it_alone() -> None:
    tasks = [task(1), task(9, gold=(1, 2, 2))]
    said = [judgment(1, ANN, (1, 2, 3)), judgment(9, ANN, (1, 3, 2)), judgment(9, BEN, (1, 2, 2))]
    found = figures(tasks, said)
    assert found.agreement is None
    ann, ben = found.labelers
    assert ann.gold is not None
    assert ben.gold is not None
    assert (ann.gold.rate, ben.gold.rate) == (pytest.approx(2 / 3), 1)
    assert (found.progress.gold, found.progress.gold_judgments) == (1, 2)
    assert found.models["x"].answers == 1


def test_wins_of_models_with_ties_and_strength() -> None:
    tasks = [task(n, "compare", "xy") for n in (1, 2, 3, 4)]
    ranks = [(1, 2), (1, 2), (1, 1), (2, 1)]
    strengths = [7, 3, None, 2]
    said = [
        judgment(t.id, ANN, r, strength=s) for t, r, s in zip(tasks, ranks, strengths, strict=True)
    ]
    (win,) = figures(tasks, said).wins
    assert (win.model, win.over, win.rate.rate, win.rate.n) == ("x", "y", 2.5 / 4, 4)
    assert win.strength == 4
    assert win.rate.low < win.rate.rate < win.rate.high


def test_rates_of_models_and_agreement_per_field() -> None:
    on, na = {"opinion": True}, {"satisfies_constraint": None}
    said = [
        judgment(1, ANN, (1, 2), likert=(7, 2), flags=(on, na)),
        judgment(1, BEN, (1, 2), likert=(5, 2), flags=(on, na)),
        judgment(2, ANN, (1, 2), likert=(6, 1), flags=(on | na, na)),
        judgment(2, BEN, (1, 2), likert=(6, 3), flags=({}, na)),
    ]
    found = figures([task(1, models="xy"), task(2, models="xy")], said)
    assert found.models["x"].likert == 6
    assert found.models["y"].likert == 2
    assert found.models["x"].flags["opinion"].rate == 3 / 4
    assert found.models["x"].flags["satisfies_constraint"].n == 3
    assert "satisfies_constraint" not in found.models["y"].flags
    opinion = found.flags["opinion"]
    assert opinion.agreement == 3 / 4  # of 4 answers
    # yes 3 of 8: chance (3/8)^2 + (5/8)^2 = 34/64
    assert opinion.kappa == pytest.approx((3 / 4 - 34 / 64) / (30 / 64))
    assert found.flags["sexual"].kappa is None


def test_disagreement_is_the_share_of_different_verdicts() -> None:
    said = [judgment(1, ANN, (1, 2, 3)), judgment(1, BEN, (1, 3, 2))]
    assert disagreement(said) == pytest.approx(1 / 3)
    assert disagreement(said[:1]) == 0


def test_agreement_of_labelers_with_known_noise_is_the_analytic_one() -> None:
    # Scores d apart with noise N(0, s) on each: one labeler prefers the better with probability
    # p = Phi(d / (s sqrt 2)); two agree with probability p^2 + (1 - p)^2.
    k, noise, seed = 5, 0.5, 11
    rng = random.Random(seed)
    tasks, said, expected = [], [], []
    for number in range(1, 401):
        scores = [rng.gauss(0, 0.7) for _ in range(k)]
        tasks.append(task(number, models="xyzuv"))
        for labeler in (ANN, BEN):
            noisy = [score + rng.gauss(0, noise) for score in scores]
            order = sorted(noisy, reverse=True)
            said.append(judgment(number, labeler, dense([order.index(x) + 1 for x in noisy])))
        for a, b in combinations(scores, 2):
            p = 0.5 * (1 + math.erf((a - b) / (2 * noise)))
            expected.append(p * p + (1 - p) * (1 - p))
    found = figures(tasks, said).agreement
    assert found is not None
    assert found.judgements == 4000
    assert found.low < sum(expected) / len(expected) < found.high
    assert found.high - found.low < 0.05
