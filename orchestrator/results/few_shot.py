"""Names of base models that answer after demonstrations: `base+3` has seen three of them."""

from __future__ import annotations

_MARK = "+"


def prompted_name(model: str, shots: int) -> str:
    """The name of a base model whose prompts begin with demonstrations."""
    return f"{model}{_MARK}{shots}"


def prompted_parts(name: str) -> tuple[str, int]:
    """The model of a name, and its demonstrations; 0 = the name is that of a model."""
    model, _, number = name.partition(_MARK)
    return (model, int(number)) if number.isdecimal() else (name, 0)
