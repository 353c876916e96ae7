"""The terms of a reward as one number per sequence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from workers.records.arrays import FloatArray, IntArray
from workers.records.training import Scores, TermScores

NOT_FINITE = "the sum of the reward's terms is not finite"
_SAME = 1e-6  # a deviation below this, relative to the largest value, is rounding


def combined(scores: Scores) -> Scores:
    """The same scores with values and failures that follow from the terms.

    With `normalised`, each term is whitened over the sequences given here before the weighted sum,
    as in GDPO (arXiv 2601.05242, section 3.1, over the batch in place of the group), so a term's
    scale does not matter. Scores of a reward without terms are returned as they are.
    """
    terms = scores.terms
    if terms is None:
        return scores
    values = _sum(terms, scores.ids, np.array([not each for each in scores.failures], bool))
    with np.errstate(over="ignore"):  # infinity is a failure
        small = values.astype(np.float32)
    failures = tuple(
        failure or ("" if np.isfinite(value) else NOT_FINITE)
        for failure, value in zip(scores.failures, small, strict=True)
    )
    small[[bool(failure) for failure in failures]] = np.nan
    return replace(scores, values=small, failures=failures)


def whitened(values: NDArray[np.float64], ids: IntArray) -> NDArray[np.float64]:
    """(B,) values with mean 0 and deviation 1; 0 where no two differ.

    Sums run in the order of the ids, so the result does not depend on the order of the sequences.
    """
    ordered = values[np.argsort(ids, kind="stable")]
    mean = float(ordered.mean()) if len(ordered) else 0.0
    deviation = float(ordered.std()) if len(ordered) else 0.0
    if deviation <= _SAME * max(float(np.abs(ordered).max(initial=0.0)), 1e-30):
        return np.zeros_like(values)
    return (values - mean) / deviation


def _sum(terms: TermScores, ids: IntArray, ok: NDArray[np.bool_]) -> NDArray[np.float64]:
    total = np.zeros(len(ids), np.float64)
    total[~ok] = np.nan
    for column, weight in enumerate(terms.weights):
        if not weight:  # only measured
            continue
        own = terms.values[ok, column].astype(np.float64)
        total[ok] += weight * (whitened(own, ids[ok]) if terms.normalised else own)
    return total


def scored_by_term(scores: Scores) -> dict[str, tuple[FloatArray, int]]:
    """Per term the values of the sequences that it scored, and how many it failed on."""
    if scores.terms is None:
        return {}
    found: dict[str, tuple[FloatArray, int]] = {}
    for name in scores.terms.names:
        own = scores.terms.of(name)
        ok = np.isfinite(own)
        found[name] = (own[ok], int((~ok).sum()))
    return found
