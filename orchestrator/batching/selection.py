"""Choice among scored samples. Pure arithmetic on numbers per sequence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workers.records.arrays import FloatArray, IntArray

Flags = npt.NDArray[np.bool_]


def best_of_prompts(prompts: IntArray, scores: FloatArray, ids: IntArray) -> Flags:
    """(B,) True for the sample with the highest score of its prompt.

    Of equal scores the lowest id is taken. Every prompt has exactly one (Llama 2, arXiv 2307.09288,
    section 3.2.3; RAFT, arXiv 2304.06767, algorithm 1).

    Args:
        prompts: (B,) prompt of each sample.
        scores: (B,) reward units; finite.
        ids: (B,) of the samples, each once.
    """
    order = np.lexsort((ids, -scores.astype(np.float64), prompts))
    ordered = prompts[order]
    first = np.ones(len(order), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    chosen = np.zeros(len(order), bool)
    chosen[order[first]] = True
    return chosen


def above_threshold(scores: FloatArray, threshold: float) -> Flags:
    """(B,) True where a score exceeds the threshold, reward units."""
    return np.asarray(scores > threshold)


def best_scores(prompts: IntArray, scores: FloatArray) -> npt.NDArray[np.float64]:
    """(P,) highest score of each prompt, in the order of the prompts' numbers."""
    _, member = np.unique(prompts, return_inverse=True)
    best = np.full(int(member.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(best, member, scores.astype(np.float64))
    return best
