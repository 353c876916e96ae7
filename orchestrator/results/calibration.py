"""Whether a reward model is as sure as it is right. Pure arithmetic."""

from __future__ import annotations

import numpy as np

from orchestrator.results.intervals import clustered_rate
from orchestrator.results.pair_metrics import Pairs
from orchestrator.results.reward_model_figures import Calibration, CalibrationBin

BINS = 10


def calibrate(pairs: Pairs, bins: int = BINS) -> Calibration:
    """Predicted probability of the preferred answer against how often the labeler agrees.

    The loss of a reward model makes `sigmoid(s_a - s_b)` the probability that the labeler prefers a
    to b (Bradley-Terry; InstructGPT, equation 1). Each pair is taken in the direction of the
    model's own choice, so predictions lie in [.5, 1]. Pairs are sorted by prediction and cut into
    bins of equal count; the expected calibration error is the mean over pairs of
    `|predicted - observed|` of their bin (M. P. Naeini, G. Cooper and M. Hauskrecht, AAAI 2015;
    bins of equal count: K. Nguyen and B. O'Connor, EMNLP 2015). With few pairs a bin it is above 0
    for a perfect model too.

    Args:
        pairs: (N,) held-out pairs.
        bins: how many; at most N are made.

    Raises:
        DataError: there is no pair.
        NonFiniteError: a score is NaN or infinite.
    """
    margins = np.where(np.isfinite(pairs.margins), pairs.margins, np.nan)
    # tanh form of the logistic function: nothing overflows at large margins
    predicted = 0.5 * (1 + np.tanh(np.abs(margins) / 2))
    agreed = 0.5 * (1 + np.sign(margins))  # a model that is undecided agrees half
    found: list[CalibrationBin] = []
    error = 0.0
    order = np.argsort(predicted, kind="stable")
    for rows in np.array_split(order, max(1, min(bins, len(pairs)))):
        rate = clustered_rate(agreed[rows], pairs.prompts[rows])
        mean = float(predicted[rows].mean())
        found.append(CalibrationBin(mean, rate.rate, rate.low, rate.high, len(rows)))
        error += len(rows) / len(pairs) * abs(mean - rate.rate)
    return Calibration(error, tuple(found))
