"""Calibration of a reward model: its confidence against its accuracy. Pure arithmetic."""

from __future__ import annotations

import numpy as np

from orchestrator.results.intervals import clustered_rate
from orchestrator.results.pair_metrics import Pairs
from orchestrator.results.reward_model_figures import Calibration, CalibrationBin

BINS = 10


def calibrate(pairs: Pairs, bins: int = BINS) -> Calibration:
    """Compare the predicted probability of a preference with how often the labeler agrees.

    The loss of a reward model makes `sigmoid(s_a - s_b)` the probability that the labeler prefers a
    to b (Bradley-Terry; InstructGPT, equation 1). Each pair is taken in the direction of the
    model's own choice, so predictions are in [.5, 1]. Pairs are sorted by prediction and split into
    bins of equal count; the expected calibration error is the mean over pairs of
    `|predicted - observed|` of their bin (M. P. Naeini, G. Cooper and M. Hauskrecht, AAAI 2015;
    bins of equal count: K. Nguyen and B. O'Connor, EMNLP 2015). With few pairs per bin it is above
    0 even for a perfect model.

    Args:
        pairs: (N,) held-out pairs.
        bins: number of bins; at most N are used.

    Raises:
        DataError: there is no pair.
        NonFiniteError: a score is NaN or infinite.
    """
    margins = np.where(np.isfinite(pairs.margins), pairs.margins, np.nan)
    # tanh form of the logistic function: no overflow at large margins
    predicted = 0.5 * (1 + np.tanh(np.abs(margins) / 2))
    agreed = 0.5 * (1 + np.sign(margins))  # equal scores count as half an agreement
    found: list[CalibrationBin] = []
    error = 0.0
    order = np.argsort(predicted, kind="stable")
    for rows in np.array_split(order, max(1, min(bins, len(pairs)))):
        rate = clustered_rate(agreed[rows], pairs.prompts[rows])
        mean = float(predicted[rows].mean())
        found.append(CalibrationBin(mean, rate.rate, rate.low, rate.high, len(rows)))
        error += len(rows) / len(pairs) * abs(mean - rate.rate)
    return Calibration(error, tuple(found))
