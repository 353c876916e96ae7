"""Freezing of weights chosen by name pattern."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from transformers import PreTrainedModel

from workers.errors import ConfigError

EMBEDDINGS = "embeddings"  # pattern for the input embeddings of any architecture


def freeze(model: PreTrainedModel, patterns: Sequence[str]) -> None:
    """Freeze every weight whose name matches a pattern.

    Names are those of `named_parameters()`. A tied weight has several names, and is frozen if one
    of them matches: freezing embeddings also freezes an output layer tied to them.

    Args:
        model: the model to change.
        patterns: shell patterns, such as `model.layers.0.*`, or the word `embeddings`.

    Raises:
        ConfigError: a pattern matches no weight, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for pattern in patterns:
        if pattern == EMBEDDINGS:
            model.get_input_embeddings().requires_grad_(False)
            continue
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            raise ConfigError(
                f"the pattern {pattern!r} matches no weight of {type(model).__name__}",
                where="model.freeze",
                fix=f"its weights are called {', '.join(names[:2])}, ..., {names[-1]}",
            )
        for name in matched:
            model.get_parameter(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            "every weight is frozen",
            where="model.freeze",
            fix="leave at least one weight to train",
        )
