"""What a data source hands out besides token batches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to sample from."""

    id: int  # row of the prompt data set
    tokens: tuple[int, ...]  # beginning-of-sequence token first, where the tokenizer has one
    text: str
    key: int  # names the prompt across all splits of its source


@dataclass(frozen=True, slots=True)
class ClozeTokens:
    """A prefix, the token sequences that could follow it, and which of them is right."""

    prefix: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    answer: int  # index into `candidates`
