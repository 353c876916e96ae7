"""Rewards of the run's reward model: its scalar at the last token of a sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workers.errors import TokenizerMismatchError
from workers.records.arrays import Ragged
from workers.records.specs import FrozenModelSpec, RewardSpec
from workers.scorers.source import Batch, Needs, RewardSource, Scored, Scorer

# The token rows for the reward model, and per row the reason why it has none.
Bridge = Callable[[Batch], tuple[Ragged, list[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Keys of `reward` that it reads."""

    bridge: str  # tokens | text


def _make(settings: Settings, spec: RewardSpec) -> Scorer:
    """Load the model.

    A sequence gets a failure reason in place of a score if, encoded for the reward model, it
    exceeds the model's positions or does not fit its chat template.

    Raises:
        TokenizerMismatchError: policy and reward model have different tokenizers, but the
            bridge passes token ids on unchanged.
        MissingCheckpointError: no such folder.
        BrokenCheckpointError: the folder does not hold a complete scalar-head model.
        DataError: the reward model's chat template does not fit its tokenizer.
    """
    # Imported here: they import torch and transformers, and a plan reads only what is needed.
    from workers.model_folders.shape import read_shape
    from workers.models.frozen_model import FrozenModel, sequence_scores
    from workers.models.load import load_scalar

    given = spec.model
    assert given is not None, "needs.model"
    bridge = make_bridge(settings, spec.policy_checkpoint, given)
    loaded = load_scalar(
        given.checkpoint, dtype=given.dtype, attention=given.attention, packed=given.packed
    )
    model, positions = FrozenModel(loaded, given), read_shape(Path(given.checkpoint)).positions

    def score(batch: Batch) -> Scored:
        rows, reasons = bridge(batch)
        for row, length in enumerate(rows.lengths.tolist()):
            if positions is not None and length > positions:
                reasons[row] = f"reward model: more than its {positions} tokens"
            elif not length and not reasons[row]:
                reasons[row] = "reward model: no tokens"
        fits = np.array([not reason for reason in reasons], bool)
        fitting = rows.select(np.flatnonzero(fits))
        values = np.full(len(rows), np.nan, np.float32)
        values[fits] = sequence_scores(model.passes, fitting, model.budget, model.device)
        for row in np.flatnonzero(fits & ~np.isfinite(values)):
            reasons[row] = "reward model: not finite"
        return Scored(values, reasons)

    return score


def make_bridge(settings: Settings, policy_checkpoint: str, model: FrozenModelSpec) -> Bridge:
    """How sequences become token rows of the reward model."""
    from workers.data.tokenize.fingerprint import tokenizer_fingerprint
    from workers.data.tokenize.tokenizers import load_tokenizer
    from workers.scorers.text_bridge import TextBridge

    reward = load_tokenizer(model.checkpoint)
    if settings.bridge == "text":
        bridge = TextBridge(reward)
        return lambda batch: bridge(batch.texts)
    if tokenizer_fingerprint(load_tokenizer(policy_checkpoint)) != tokenizer_fingerprint(reward):
        raise TokenizerMismatchError(
            "policy and reward model do not share a tokenizer",
            where=f"{policy_checkpoint} and {model.checkpoint}",
            fix="set reward.bridge=text, or give a reward model with the policy's tokenizer",
        )
    return lambda batch: (batch.rollouts.tokens, [""] * len(batch.rollouts))


SOURCE = RewardSource(
    Settings, _make, lambda settings: Needs(text=settings.bridge == "text", model=True)
)
