"""Records of token rows, one class per kind of example."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.records.arrays import IntArray

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """The token sequence of one demonstration."""

    tokens: IntArray  # (S,)
    targets: BoolArray  # (S,) True = trained: response tokens and their end tokens
    prompt: str  # the text before the first target, as the tokenizer saw it
    where: str  # FILE:LINE
    cut: bool = False  # True = truncated at the token limit, without the last end token
    user: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class RankedRow:
    """K completions of one prompt."""

    tokens: IntArray  # the prompt, (P,)
    completions: tuple[IntArray, ...]  # K rows, each with its end token unless truncated
    ranks: tuple[int, ...]  # 1 = best, equal = tie
    prompt: str
    where: str
    cut: int = 0  # number of completions truncated at the token limit
    user: str = ""
    source: str = ""
    annotator: str = ""
    likert: tuple[int, ...] = ()  # quality of each completion, 1 to 7; () = not rated


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt exactly as the engine sees it."""

    tokens: IntArray  # (P,)
    prompt: str
    where: str
    user: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """A window of pretraining text; every token but the first is a target."""

    tokens: IntArray  # (S,), S >= 2
    text: str  # the whole document, the same for all of its windows
    where: str
    user: str = ""
    source: str = ""
