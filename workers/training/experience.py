"""PPO experience from rollouts, log-probabilities, values and scores.

Pure functions on CPU. Inputs are matched by sequence id, never by position, because each role
splits the sequences differently over its workers.
"""

# torch.from_numpy is not typed.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import numpy as np
import torch

from workers.errors import NonFiniteError
from workers.ops import kl_estimate, kl_shaped_rewards, masked_mean, masked_sum
from workers.records.arrays import FloatArray, IntArray, Ragged
from workers.records.gather import gather_fields, gather_numbers, gather_scores, named
from workers.records.generation import RolloutBatch
from workers.records.specs import ShapingSpec
from workers.records.training import (
    ExperienceBatch,
    ExperienceSummary,
    Scores,
    SequenceField,
    TokenField,
)
from workers.training.estimator import Tokens, find_estimator, token_advantages


class _Padded:
    """Conversion between ragged rows and (B, T) tensors; `mask` is True at real tokens."""

    def __init__(self, lengths: IntArray) -> None:
        widest = int(lengths.max()) if len(lengths) else 0
        self.mask: torch.Tensor = torch.from_numpy(np.arange(widest) < lengths[:, None])
        self.offsets: IntArray = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def pad(self, rows: Ragged, name: str) -> torch.Tensor:
        """(B, T) fp64, so that sums do not depend on the padding; a batch is small enough."""
        assert np.array_equal(rows.offsets, self.offsets), f"{name}: rows of other lengths"
        dense = torch.zeros(self.mask.shape, dtype=torch.float64)
        dense[self.mask] = torch.from_numpy(rows.values.astype(np.float64))
        return dense

    def unpad(self, dense: torch.Tensor) -> Ragged:
        """Ragged float32 rows without the padding."""
        return Ragged(dense[self.mask].numpy().astype(np.float32), self.offsets)


def _require_finite(ids: IntArray, **fields: Ragged) -> None:
    """Raise NonFiniteError for NaN or infinity, naming the field and the sequences."""
    for name, rows in fields.items():
        bad = ~np.isfinite(rows.values)
        if bad.any():
            at = np.searchsorted(rows.offsets, np.flatnonzero(bad), side="right") - 1
            culprits = ids[np.unique(at)].tolist()
            raise NonFiniteError(
                f"{int(bad.sum())} values of {name} are NaN or infinite, in sequences "
                f"{named(culprits)}",
                where="build_experience",
                fix="lower the learning rate or the temperature, or train in fp32",
                ids=tuple(culprits),
            )


def kl_sums(rollouts: RolloutBatch, old: TokenField, ref: TokenField) -> SequenceField:
    """The k1 estimate of KL(policy || reference) of each sequence in `rollouts`, summed, nats.

    Args:
        rollouts: (B,) sequences; the other arguments must hold each of their ids, in any order.
        old: the trainer's log-probabilities before the first update, nats.
        ref: the reference model's log-probabilities of the same tokens, nats.

    Raises:
        LedgerError: an input lacks a sequence or holds it twice.
        NonFiniteError: a number is NaN or infinite; names the field and the sequences.
    """
    old_rows, ref_rows = _logprob_rows(rollouts, old, ref)
    padded = _Padded(rollouts.sampled_lengths)
    logprobs = padded.pad(old_rows, "old_logprobs")
    reference = padded.pad(ref_rows, "ref_logprobs")
    kl = masked_sum(kl_estimate(logprobs, reference), padded.mask, dim=1)
    return SequenceField(rollouts.ids, kl.numpy())


def _logprob_rows(
    rollouts: RolloutBatch, old: TokenField, ref: TokenField
) -> tuple[Ragged, Ragged]:
    ids = rollouts.ids
    old_rows = gather_fields([old], ids, "old log-probabilities").values
    ref_rows = gather_fields([ref], ids, "reference log-probabilities").values
    _require_finite(
        ids, rollout_logprobs=rollouts.logprobs, old_logprobs=old_rows, ref_logprobs=ref_rows
    )
    return old_rows, ref_rows


def build_experience(
    rollouts: RolloutBatch,
    old: TokenField,
    ref: TokenField,
    values: TokenField | None,
    scores: Scores,
    shaping: ShapingSpec,
    numbers: SequenceField | None = None,
) -> tuple[ExperienceBatch, ExperienceSummary]:
    """KL-shaped rewards, advantages and returns of the sequences in `rollouts`.

    Rows are the tokens that the policy sampled: what an environment said is in none of them, so the
    state after the last token of a turn is that before the first token of the next.

    Args:
        rollouts: (B,) sequences; the other arguments must hold each of their ids, in any order.
        old: the trainer's log-probabilities before the first update, nats.
        ref: the reference model's log-probabilities of the same tokens, nats.
        values: the critic's values before each token, reward units; None without a critic.
        scores: one reward per sequence; sequences whose score failed must be dropped first.
        shaping: KL coefficient, discount, lambda and advantage estimator.
        numbers: what the estimator computed on the driver, one per sequence; None: nothing.

    Returns:
        The experience in the order of `rollouts`, and the per-sequence scalars and moments for the
        driver. Zero sequences give an empty batch with zero moments.

    Raises:
        LedgerError: an input lacks a sequence or holds it twice.
        NonFiniteError: a number is NaN or infinite; names the field and the sequences.
        ConfigError: the estimator fails, or returns something else than advantages.
    """
    ids = rollouts.ids
    old_rows, ref_rows = _logprob_rows(rollouts, old, ref)
    value_rows = gather_fields([values], ids, "values").values if values is not None else None
    score = _finite_scores(rollouts, scores)
    if value_rows is not None:
        _require_finite(ids, values=value_rows)

    padded = _Padded(rollouts.sampled_lengths)
    mask = padded.mask
    sampled = padded.pad(rollouts.logprobs, "rollout_logprobs")
    logprobs = padded.pad(old_rows, "old_logprobs")
    reference = padded.pad(ref_rows, "ref_logprobs")
    early = gather_scores([scores], ids).steps
    steps = padded.pad(early, "step rewards") if early is not None else None
    rewards = kl_shaped_rewards(score, logprobs, reference, mask, shaping.kl_coefficient, steps)
    tokens = Tokens(
        rewards=rewards,
        mask=mask,
        log_ratio=kl_estimate(logprobs, reference),
        values=padded.pad(value_rows, "values") if value_rows is not None else None,
        sequence=_aligned(numbers, ids),
        gamma=shaping.gamma,
        lam=shaping.lam,
    )
    advantages, returns = token_advantages(find_estimator(shaping.estimator), tokens)

    batch = ExperienceBatch(
        ids=ids,
        tokens=rollouts.tokens,
        prompt_lengths=rollouts.prompt_lengths,
        rollout_logprobs=rollouts.logprobs,
        old_logprobs=old_rows,
        advantages=padded.unpad(advantages),
        returns=padded.unpad(returns) if returns is not None else None,
        values=value_rows,
        ref_logprobs=ref_rows if shaping.keeps_reference else None,
        sampled=rollouts.sampled,
    )
    summary = _summary(ids, mask, sampled, logprobs, reference, rewards, advantages)
    return batch, summary


def _finite_scores(rollouts: RolloutBatch, scores: Scores) -> torch.Tensor:
    """(B,) fp64, reward units, in the order of `rollouts`."""
    own = gather_scores([scores], rollouts.ids)
    assert not any(own.failures), "a failed sequence reached build_experience"
    assert bool((rollouts.sampled_lengths > 0).all()), "an empty response cannot carry a reward"
    rows = Ragged(own.values, np.arange(len(rollouts.ids) + 1, dtype=np.int64))
    _require_finite(rollouts.ids, scores=rows)
    return torch.from_numpy(own.values.astype(np.float64))


def _summary(
    ids: IntArray,
    mask: torch.Tensor,
    sampled: torch.Tensor,
    logprobs: torch.Tensor,
    reference: torch.Tensor,
    rewards: torch.Tensor,
    advantages: torch.Tensor,
) -> ExperienceSummary:
    gap = (logprobs - sampled).abs()
    # The engine sampled the tokens, so its log-probabilities are the first argument.
    k3 = kl_estimate(sampled, logprobs, "k3")
    return ExperienceSummary(
        ids=ids,
        kl=_float32(masked_sum(kl_estimate(logprobs, reference), mask, dim=1)),
        shaped_returns=_float32(masked_sum(rewards, mask, dim=1)),
        advantage_count=int(mask.sum()),
        advantage_sum=float(masked_sum(advantages, mask)),
        advantage_square_sum=float(masked_sum(advantages.square(), mask)),
        mismatch_max=float(gap.max()) if gap.numel() else 0.0,
        mismatch_mean=float(masked_mean(gap, mask)),
        mismatch_k3=float(masked_mean(k3, mask)),
    )


def _aligned(numbers: SequenceField | None, ids: IntArray) -> torch.Tensor | None:
    if numbers is None:
        return None
    return torch.from_numpy(gather_numbers([numbers], ids, "number of the estimator").values)


def _float32(x: torch.Tensor) -> FloatArray:
    return x.numpy().astype(np.float32)
