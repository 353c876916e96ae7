"""The loss of a policy on rankings, for one micro-batch of a trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.models.forward import ModelPasses
from workers.ops.preferences import (
    Preference,
    chosen_pairs,
    implicit_rewards,
    preference_loss,
)
from workers.records.arrays import FloatArray, IntArray, Ragged
from workers.records.specs import PreferenceSpec
from workers.records.training import Ranking, TokenBatch
from workers.roles.scoring import text_nll


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums over the pairs and rankings of a micro-batch."""

    correct: int = 0  # pairs of which the better one has the larger implicit reward
    pairs: int = 0
    margin: float = 0.0  # reward units, better less worse
    best: float = 0.0  # nats, log-probability of the best completion
    worst: float = 0.0  # nats, of the worst completion
    rankings: int = 0

    def __add__(self, other: Counts) -> Counts:
        names = self.__dataclass_fields__
        return Counts(*(getattr(self, name) + getattr(other, name) for name in names))


@dataclass(frozen=True, slots=True)
class PreferenceShare:
    """The loss of one micro-batch, not yet divided by the rankings of the step."""

    loss: Tensor  # scalar, summed over rankings
    terms: Tensor  # (N,) nats per token; a NaN here is the cause of a loss that is not finite
    names: IntArray  # (N,) sequence of each term, or its prompt if sequences have no ids
    counts: Counts
    rewards: tuple[FloatArray, ...]  # of each ranking: (K,) implicit rewards


def preference_share(
    passes: ModelPasses,
    rankings: Sequence[Ranking],
    spec: PreferenceSpec,
    device: torch.device | str,
) -> PreferenceShare:
    """The loss of some rankings; each completion takes one forward pass.

    Args:
        passes: The policy.
        rankings: With `reference` unless the loss has none; empty for a dummy.
        spec: Loss and constants.
        device: Device of the policy.
    """
    batch = _completions(rankings)
    nll, rows = text_nll(passes, batch, device)
    if not rankings:
        # An empty micro-batch: the loss is 0, but still connected to the graph.
        return PreferenceShare(nll.sum(), nll, rows, Counts(), ())
    owners = torch.from_numpy(rows).to(nll.device)
    sums = nll.new_zeros(len(batch)).index_add(0, owners, -nll)
    names = np.concatenate([_names(ranking) for ranking in rankings])
    loss, counts, rewards = nll.new_zeros(()), Counts(), list[FloatArray]()
    for ranking, logprobs in zip(
        rankings, sums.split([len(r.ranks) for r in rankings]), strict=True
    ):
        value, found, own = _of_ranking(ranking, logprobs, spec)
        loss, counts = loss + value, counts + found
        rewards.append(own)
    return PreferenceShare(loss, nll, names[rows], counts, tuple(rewards))


def _names(ranking: Ranking) -> IntArray:
    """(K,) what errors call each completion."""
    return np.full(len(ranking.ranks), ranking.prompt_id) if ranking.ids is None else ranking.ids


def _completions(rankings: Sequence[Ranking]) -> TokenBatch:
    parts = [ranking.completions for ranking in rankings]
    if not parts:
        return TokenBatch(Ragged.from_rows([], np.int32), Ragged.from_rows([], np.bool_))
    return TokenBatch(
        Ragged.concat([p.tokens for p in parts]), Ragged.concat([p.targets for p in parts])
    )


def _of_ranking(
    ranking: Ranking, logprobs: Tensor, spec: PreferenceSpec
) -> tuple[Tensor, Counts, FloatArray]:
    preference = Preference(
        spec.loss, spec.beta, spec.margin, spec.label_smoothing, spec.robust, spec.pairs
    )
    device = logprobs.device
    ranks = torch.tensor(ranking.ranks, device=device)
    lengths = torch.tensor(ranking.sequences.lengths - ranking.prompt_length, device=device)
    reference = None
    if ranking.reference is not None:
        reference = torch.tensor(ranking.reference, device=device, dtype=logprobs.dtype)
    rewards = implicit_rewards(logprobs, reference, lengths, preference)
    soft = None
    if ranking.probabilities is not None:
        soft = torch.tensor(ranking.probabilities, device=device, dtype=logprobs.dtype)
    loss = preference_loss(rewards, ranks, preference, soft)
    best = int(ranks.argmin())
    if spec.sft_coefficient and ranking.pairs:
        loss = loss - spec.sft_coefficient * logprobs[best] / lengths[best]
    return loss, _counts(rewards.detach(), logprobs.detach(), ranks), _plain(rewards)


def _counts(rewards: Tensor, logprobs: Tensor, ranks: Tensor) -> Counts:
    better, worse = chosen_pairs(ranks, "all")
    d = rewards[better] - rewards[worse]
    return Counts(
        correct=int((d > 0).sum()),
        pairs=len(d),
        margin=float(d.sum()),
        best=float(logprobs[ranks.argmin()]),
        worst=float(logprobs[ranks.argmax()]),
        rankings=1,
    )


def _plain(rewards: Tensor) -> FloatArray:
    return rewards.detach().float().cpu().numpy()
