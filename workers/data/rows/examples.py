"""Records of examples: demonstrations, comparisons, prompts and documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Speaker = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialogue."""

    role: Speaker
    content: str
    trained: bool = True  # assistant turns: False = the row marks it as not to be trained


Dialogue = tuple[Message, ...]
# Bare text is tokenized unchanged; a dialogue is rendered by a chat template first.
Context = str | Dialogue


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A response to imitate.

    A chat of several turns is one demonstration: `context` holds all turns before the last
    assistant turn, earlier assistant turns included.
    """

    context: Context
    response: str
    where: str  # FILE:LINE, for messages
    user: str = ""  # who wrote it; rows of one user stay in one split. "" = not named
    source: str = ""  # name of the data set
    trained: bool = True  # False: the row marks the response as not to be trained


@dataclass(frozen=True, slots=True)
class Comparison:
    """K completions of one context and their ranks."""

    context: Context
    completions: tuple[str, ...]  # K >= 2
    ranks: tuple[int, ...]  # 1 = best, equal = tie
    where: str
    user: str = ""
    source: str = ""
    annotator: str = ""
    tokens: tuple[tuple[int, ...], ...] = ()  # of each completion, as sampled; () = of its text
    likert: tuple[int, ...] = ()  # quality of each completion, 1 to 7; () = not rated


@dataclass(frozen=True, slots=True)
class PromptExample:
    """A context to sample from."""

    context: Context
    where: str
    user: str = ""
    source: str = ""
    row: str = ""  # its kept columns, see `workers.data.rows.kept`


@dataclass(frozen=True, slots=True)
class Document:
    """A document of pretraining text."""

    text: str
    where: str
    user: str = ""
    source: str = ""


Example = Demonstration | Comparison | PromptExample | Document


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is well formed but cannot be used; counted by reason, never silent."""

    reason: str  # a fixed phrase, because rows are counted by it
    where: str
    source: str = ""
