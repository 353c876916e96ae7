"""Agreement of annotators who ranked the same completions of a prompt. Pure arithmetic."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from orchestrator.results.intervals import clustered_rate
from orchestrator.results.reward_model_figures import Agreement
from workers.records.training import Ranking

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


def krippendorff_alpha(units: Sequence[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for nominal values, `1 - D_observed / D_expected`.

    1 = perfect agreement, 0 = agreement by chance, below 0 = less than that. With the coincidences
    `o_ck = sum_u (pairs of values c, k in unit u) / (m_u - 1)`, `n_c = sum_k o_ck` and
    `n = sum_c n_c` it is `1 - (n - 1) * sum_{c != k} o_ck / sum_{c != k} n_c n_k`
    (K. Krippendorff, "Computing Krippendorff's alpha-reliability", 2011, section C).

    Args:
        units: the values that the observers gave to each unit; units of fewer than two are left
            out, so observers may skip units.

    Returns:
        None if all values are equal, or no unit has two values: the expected disagreement is 0.
    """
    totals: Counter[Hashable] = Counter()
    differing = 0.0
    for values in units:
        if len(values) < 2:
            continue
        counts = Counter(values)
        totals.update(counts)
        equal = sum(c * (c - 1) for c in counts.values())
        differing += (len(values) * (len(values) - 1) - equal) / (len(values) - 1)
    n = totals.total()
    expected = n * n - sum(c * c for c in totals.values())
    return 1 - (n - 1) * differing / expected if expected else None


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
