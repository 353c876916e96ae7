"""Held-out pairs, calibration and agreement against literals that were worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from orchestrator.results.agreement import annotator_agreement, krippendorff_alpha
from orchestrator.results.calibration import calibrate
from orchestrator.results.pair_metrics import (
    Pairs,
    accuracy_by_completions,
    accuracy_by_source,
    ordered_pairs,
    pair_accuracy,
)
from workers.errors import DataError, NonFiniteError
from workers.records.arrays import Ragged
from workers.records.training import Ranking


def ranking(
    prompt: int, rows: Sequence[Sequence[int]], ranks: Sequence[int], **more: str
) -> Ranking:
    return Ranking(prompt, Ragged.from_rows(list(rows), np.int32), np.array(ranks), **more)


def pairs_of(margins: Sequence[float], prompts: Sequence[int] | None = None) -> Pairs:
    n = len(margins)
    ids = np.arange(n) if prompts is None else np.array(prompts)
    return Pairs(np.array(margins, float), ids, np.full(n, 2), np.full(n, ""))


def test_every_ordered_pair_with_its_margin_and_ties_left_out() -> None:
    rankings = [
        ranking(3, [[1], [2], [3]], [2, 1, 2], source="hh"),
        ranking(8, [[4], [5]], [1, 2]),
    ]
    scores = [np.array([0.5, 2.0, 3.0], np.float32), np.array([1.0, 0.25], np.float32)]
    pairs = ordered_pairs(rankings, scores)
    assert pairs.margins.tolist() == [1.5, -1.0, 0.75]
    assert pairs.prompts.tolist() == [3, 3, 8]
    assert pairs.completions.tolist() == [3, 3, 2]
    assert pairs.sources.tolist() == ["hh", "hh", ""]
    found = pair_accuracy(pairs)
    assert (found.accuracy, found.pairs, found.prompts) == (2 / 3, 3, 2)
    assert {k: a.accuracy for k, a in accuracy_by_completions(pairs).items()} == {2: 1.0, 3: 0.5}
    assert {k: a.accuracy for k, a in accuracy_by_source(pairs).items()} == {"": 1.0, "hh": 0.5}


def test_without_a_named_source_there_is_no_breakdown() -> None:
    assert accuracy_by_source(pairs_of([1.0, -1.0])) == {}


def test_equal_scores_are_wrong_and_no_number_is_no_score() -> None:
    assert pair_accuracy(pairs_of([0.0, 1.0])).accuracy == 0.5
    for margin in (math.nan, math.inf, -math.inf):
        with pytest.raises(NonFiniteError):
            pair_accuracy(pairs_of([1.0, margin]))
        with pytest.raises(NonFiniteError):
            calibrate(pairs_of([1.0, margin]))
    with pytest.raises(DataError):
        pair_accuracy(pairs_of([]))


def test_calibration_literals() -> None:
    # ln 3 is p = .75 and ln 9 is p = .9; of the first four the labeler agrees with three, of the
    # other four with all: errors 0 and .1, mean .05.
    margins = [math.log(3)] * 3 + [-math.log(3)] + [math.log(9)] * 4
    found = calibrate(pairs_of(margins), bins=2)
    assert [b.pairs for b in found.bins] == [4, 4]
    assert [b.predicted for b in found.bins] == pytest.approx([0.75, 0.9])
    assert [b.observed for b in found.bins] == [0.75, 1.0]
    assert found.error == pytest.approx(0.05)
    assert all(b.low <= b.observed <= b.high for b in found.bins)


def test_a_perfectly_calibrated_model_has_almost_no_error() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(0, 2, 40_000)
    preferred = rng.random(40_000) < 1 / (1 + np.exp(-differences))
    honest = np.where(preferred, differences, -differences)
    assert calibrate(pairs_of(honest)).error < 0.012
    boastful = calibrate(pairs_of(3 * honest))
    assert boastful.error > 0.1
    assert all(b.predicted > b.observed for b in boastful.bins[2:])


def test_huge_margins_and_few_pairs() -> None:
    found = calibrate(pairs_of([1e4, -1e4, 0.0]))
    assert [b.predicted for b in found.bins] == [0.5, 1.0, 1.0]
    assert sorted(b.observed for b in found.bins) == [0.0, 0.5, 1.0]
    assert found.error == pytest.approx(1 / 3)


def test_alpha_of_the_published_example() -> None:
    # Krippendorff 2011, section C: four observers, twelve units, missing values: .743.
    a = [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None]
    b = [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3]
    c = [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None]
    d = [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None]
    units = [[v for v in unit if v is not None] for unit in zip(a, b, c, d, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_alpha_at_its_ends() -> None:
    assert krippendorff_alpha([[1, 1], [2, 2]]) == 1.0
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[1], [2]]) is None
    # Two observers who never agree on two values: D_o = 1, D_e = 2/3 with the small-sample factor.
    assert krippendorff_alpha([[1, 2], [2, 1]]) == pytest.approx(-0.5)


def test_annotators_agree_on_pairs_whatever_the_order_of_the_completions() -> None:
    x, y, z = [1, 5], [1, 6], [1, 7]
    rankings = [
        ranking(0, [x, y, z], [1, 2, 3], annotator="ann"),
        ranking(0, [z, x, y], [2, 1, 2], annotator="bob"),  # x > y = z
        ranking(0, [x, y, z], [3, 2, 1]),  # nobody's
        ranking(0, [x, y], [2, 1], annotator="cem"),  # other completions: another task
        ranking(1, [x, z], [1, 2], annotator="ann"),  # alone
    ]
    found = annotator_agreement(rankings)
    assert found is not None
    # x-y and x-z alike, y-z not
    assert (found.rate, found.judgements, found.prompts) == (2 / 3, 3, 1)
    assert found.annotators == 2
    # Both orders: units (1,1) (1,1) (-1,-1) (-1,-1) (1,0) (-1,0): n = 12, values 5, 5, 2;
    # alpha = 1 - 11 * 4 / (144 - 54) = .5111
    assert found.alpha == pytest.approx(1 - 44 / 90)


def test_three_annotators_give_three_judgements_a_pair() -> None:
    rows = [[1, 5], [1, 6]]
    found = annotator_agreement(
        ranking(n, rows, ranks, annotator=who)
        for n, who, ranks in ((0, "a", [1, 2]), (0, "b", [1, 2]), (0, "c", [2, 1]))
    )
    assert found is not None
    assert (found.rate, found.judgements, found.annotators) == (1 / 3, 3, 3)
    # a second opinion of the same person is none
    again = [ranking(0, rows, [1, 2], annotator="a"), ranking(0, rows, [2, 1], annotator="a")]
    assert annotator_agreement(again) is None
