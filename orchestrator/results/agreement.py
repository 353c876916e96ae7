"""Agreement of annotators who ranked the same completions of a prompt. Pure arithmetic."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from orchestrator.results.intervals import clustered_rate
from orchestrator.results.reward_model_figures import Agreement
from workers.records.training import Ranking

T = TypeVar("T", bound=Hashable)

# prompt id, and per annotator the rank of each completion (key: its tokens, prompt included)
_Task = tuple[int, dict[str, dict[bytes, int]]]


def annotator_agreement(rankings: Iterable[Ranking]) -> Agreement | None:
    """Agreement over all pairs of completions that several named annotators have ordered.

    A verdict on a pair is: the first, the second, or a tie. `rate` is the share of pairs of
    annotators with the same verdict, its interval clustered by prompt. `alpha` corrects it for
    chance; every pair is counted in both orders, because the order of completions has no meaning.

    Args:
        rankings: Rankings without an annotator are ignored, and so are repeated rankings by the
            same annotator. Completions may be in any order.

    Returns:
        None if no two annotators ranked the same completions.
    """
    same: list[float] = []
    prompts: list[int] = []
    units: list[tuple[int, ...]] = []
    annotators: set[str] = set()
    for prompt, by_annotator in _tasks(rankings):
        annotators |= by_annotator.keys()
        for verdicts in _verdicts(by_annotator):
            units += [verdicts, tuple(-v for v in verdicts)]
            agreed = [float(a == b) for a, b in itertools.combinations(verdicts, 2)]
            same += agreed
            prompts += [prompt] * len(agreed)
    if not same:
        return None
    found = clustered_rate(same, prompts)
    return Agreement(
        found.rate, found.low, found.high, krippendorff_alpha(units), found.trials,
        found.clusters, len(annotators),
    )  # fmt: skip


def krippendorff_alpha(
    units: Sequence[Sequence[T]], distances: Mapping[tuple[T, T], float] | None = None
) -> float | None:
    """Krippendorff's alpha, `1 - D_observed / D_expected`.

    1 = perfect agreement, 0 = agreement by chance, below 0 = less than that. With the coincidences
    `o_ck = sum_u (pairs of values c, k in unit u) / (m_u - 1)`, `n_c = sum_k o_ck`,
    `n = sum_c n_c` and the squared distance `d_ck` of two values it is
    `1 - (n - 1) * sum_ck o_ck d_ck / sum_ck n_c n_k d_ck`
    (K. Krippendorff, "Computing Krippendorff's alpha-reliability", 2011, sections C and D).

    Args:
        units: the values that the observers gave to each unit; units of fewer than two are left
            out, so observers may skip units.
        distances: squared distances of all pairs of different values; None = nominal values, 1.

    Returns:
        None if all values are equal, or no unit has two values: the expected disagreement is 0.
    """

    def distance(a: T, b: T) -> float:
        return 0.0 if a == b else 1.0 if distances is None else distances[a, b]

    totals: Counter[T] = Counter()
    observed = 0.0
    for values in units:
        if len(values) < 2:
            continue
        counts = Counter(values)
        totals.update(counts)
        pairs = sum(counts[a] * counts[b] * distance(a, b) for a in counts for b in counts)
        observed += pairs / (len(values) - 1)
    expected = sum(totals[a] * totals[b] * distance(a, b) for a in totals for b in totals)
    return 1 - (totals.total() - 1) * observed / expected if expected else None


def ordinal_distances(units: Sequence[Sequence[int]]) -> dict[tuple[int, int], float]:
    """Squared distances of ordered values for `krippendorff_alpha`.

    The distance of c and k is the number of values from c to k, of which those equal to c or k
    count half: `(sum_{g=c..k} n_g - (n_c + n_k) / 2)^2`.
    """
    counts = Counter(value for values in units if len(values) > 1 for value in values)
    order = sorted(counts)
    found: dict[tuple[int, int], float] = {}
    for i, c in enumerate(order):
        for j, k in enumerate(order[i + 1 :], start=i + 1):
            between = sum(counts[g] for g in order[i : j + 1]) - (counts[c] + counts[k]) / 2
            found[c, k] = found[k, c] = between**2
    return found


def fleiss_kappa(units: Sequence[Sequence[Hashable]]) -> float | None:
    """Fleiss' kappa of nominal values, `(P - P_e) / (1 - P_e)`.

    P is the mean over units of the share of pairs of observers who agree, P_e the sum of squares of
    the shares of the values, each the mean over units (J. L. Fleiss, "Measuring nominal scale
    agreement among many raters", Psychological Bulletin 76, 1971). Units may have different numbers
    of observers; those with fewer than two are left out.

    Returns:
        None if there is no such unit, or all values are equal.
    """
    rated = [Counter(values) for values in units if len(values) > 1]
    if not rated:
        return None
    sizes = [counts.total() for counts in rated]
    agreed = [
        sum(c * (c - 1) for c in counts.values()) / (m * (m - 1))
        for counts, m in zip(rated, sizes, strict=True)
    ]
    shares: Counter[Hashable] = Counter()
    for counts, m in zip(rated, sizes, strict=True):
        for value, count in counts.items():
            shares[value] += count / m / len(rated)  # type: ignore[assignment]
    chance = sum(share**2 for share in shares.values())
    return (sum(agreed) / len(rated) - chance) / (1 - chance) if len(shares) > 1 else None


def _tasks(rankings: Iterable[Ranking]) -> list[_Task]:
    """Rankings grouped by their set of completions (in any order), then by annotator."""
    found: dict[tuple[bytes, ...], _Task] = {}
    for ranking in rankings:
        if not ranking.annotator:
            continue
        ranks = {
            np.asarray(row, np.int32).tobytes(): int(rank)
            for row, rank in zip(ranking.sequences.rows(), ranking.ranks, strict=True)
        }
        key = tuple(sorted(ranks))
        _, by_annotator = found.setdefault(key, (ranking.prompt_id, {}))
        by_annotator.setdefault(ranking.annotator, ranks)
    return [task for task in found.values() if len(task[1]) > 1]


def _verdicts(by_annotator: dict[str, dict[bytes, int]]) -> Iterable[tuple[int, ...]]:
    """Per pair of completions, one verdict per annotator: -1 the first, 1 the second, 0 tie."""
    everyone = list(by_annotator.values())
    for first, second in itertools.combinations(sorted(everyone[0]), 2):
        yield tuple(int(np.sign(ranks[first] - ranks[second])) for ranks in everyone)
