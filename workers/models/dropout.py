"""Dropout rates in a model's configuration, under the names of each architecture."""

from __future__ import annotations

from typing import Any

from workers.errors import ConfigError

# Names of the dropout on the residual stream in transformers' families; then of that on attention
# weights, the only one of Llama-like families.
_RESIDUAL = ("resid_pdrop", "resid_dropout", "hidden_dropout", "hidden_dropout_prob", "dropout")
_ATTENTION = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
_OTHER = ("embd_pdrop", "embedding_dropout", "activation_dropout")


def set_dropout(config: Any, rate: float | None) -> dict[str, float]:
    """Set the dropout that a model will be built with.

    Args:
        config: a transformers configuration, changed in place.
        rate: fraction of activations to drop on the residual stream, or on attention weights if
            the architecture has no other; 0 turns every dropout off; None changes nothing.

    Returns:
        The previous values of the changed settings.

    Raises:
        ConfigError: the architecture has no dropout.
    """
    if rate is None:
        return {}
    known = [n for n in (*_RESIDUAL, *_ATTENTION, *_OTHER) if hasattr(config, n)]
    residual = [n for n in known if n in _RESIDUAL]
    chosen = residual or [n for n in known if n in _ATTENTION]
    if rate > 0.0 and not chosen:
        raise ConfigError(
            f"the architecture {config.model_type} has no dropout to set to {rate:g}",
            where="sft.dropout",
            fix="set sft.dropout=0",
        )
    changed = known if rate == 0.0 else chosen
    before = {name: getattr(config, name) for name in changed}
    config.update(dict.fromkeys(changed, rate))
    return before
