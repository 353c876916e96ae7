"""Accuracy of a reward model on ordered pairs of completions. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.results.intervals import clustered_rate
from orchestrator.results.reward_model_figures import PairAccuracy
from workers.records.arrays import FloatArray, IntArray
from workers.records.training import Ranking


@dataclass(frozen=True, slots=True)
class Pairs:
    """N pairs of completions of which the labeler preferred one; ties are left out."""

    margins: npt.NDArray[np.float64]  # (N,) score of the preferred minus that of the other
    prompts: IntArray  # (N,) prompt id; pairs of one prompt are not independent evidence
    completions: IntArray  # (N,) K of the ranking that the pair is from
    sources: npt.NDArray[np.str_]  # (N,) name of the data set, "" = unknown

    def __len__(self) -> int:
        return len(self.margins)

    def select(self, chosen: npt.NDArray[np.bool_] | IntArray) -> Pairs:
        """The chosen pairs."""
        return Pairs(
            self.margins[chosen], self.prompts[chosen], self.completions[chosen],
            self.sources[chosen],
        )  # fmt: skip


def ordered_pairs(rankings: Sequence[Ranking], scores: Sequence[FloatArray]) -> Pairs:
    """Every pair of completions with different ranks.

    Args:
        rankings: Rankings of K completions each.
        scores: (K,) scores per ranking in reward units, in the same order.
    """
    margins: list[npt.NDArray[np.float64]] = [np.zeros(0)]
    counts: list[int] = []
    for ranking, of_ranking in zip(rankings, scores, strict=True):
        better, worse = np.nonzero(ranking.ranks[:, None] < ranking.ranks[None, :])
        values = np.asarray(of_ranking, np.float64)
        margins.append(values[better] - values[worse])
        counts.append(len(better))
    return Pairs(
        np.concatenate(margins),
        np.repeat(np.array([r.prompt_id for r in rankings], np.int64), counts),
        np.repeat(np.array([len(r.ranks) for r in rankings], np.int64), counts),
        np.repeat(np.array([r.source for r in rankings], np.str_), counts),
    )


def pair_accuracy(pairs: Pairs) -> PairAccuracy:
    """Share of pairs that the scores order as the labeler did; equal scores count as wrong.

    Raises:
        DataError: there are no pairs.
        NonFiniteError: a score is NaN or infinite.
    """
    right = np.where(np.isfinite(pairs.margins), pairs.margins > 0, np.nan)
    found = clustered_rate(right, pairs.prompts)
    return PairAccuracy(found.rate, found.low, found.high, found.trials, found.clusters)


def accuracy_by_source(pairs: Pairs) -> dict[str, PairAccuracy]:
    """Accuracy per data set, by name; empty if no pair has the name of a data set."""
    names = sorted(set(pairs.sources.tolist()))
    if names in ([], [""]):
        return {}
    return {name: pair_accuracy(pairs.select(pairs.sources == name)) for name in names}


def accuracy_by_completions(pairs: Pairs) -> dict[int, PairAccuracy]:
    """Accuracy per number of completions K."""
    sizes = sorted(set(pairs.completions.tolist()))
    return {k: pair_accuracy(pairs.select(pairs.completions == k)) for k in sizes}
