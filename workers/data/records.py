"""What a data source returns besides token batches: prompts, cloze tasks and gold verdicts."""

from __future__ import annotations

from dataclasses import dataclass

from workers.data.rows.asked import Asked
from workers.data.rows.examples import Context


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to sample from."""

    id: int  # row of the prompt data set
    tokens: tuple[int, ...]  # beginning-of-sequence token first, where the tokenizer has one
    text: str  # as the tokenizer saw it
    key: int  # identifies the prompt across all splits of its source
    # the dialogue before the chat template, or bare text without control tokens; "" = `text`
    words: Context = ""
    row: str = ""  # kept columns of its row as JSON (data.keep_columns); "" = none

    @property
    def context(self) -> Context:
        """The dialogue, or the bare text."""
        return self.words or self.text

    @property
    def asked(self) -> Asked:
        """The prompt as text, for reward functions, reward models and judges."""
        return Asked(self.id, self.context, self.text, self.row)


@dataclass(frozen=True, slots=True)
class ClozeTokens:
    """A prefix, the candidate continuations, and which of them is right."""

    prefix: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    answer: int  # index into `candidates`


@dataclass(frozen=True, slots=True)
class Gold:
    """The noise-free verdict on one completion; for evaluation only, no trainer sees it."""

    score: float
    correct: bool  # the first sentence gives exactly the right answer
    truthful: bool  # claims nothing false; admitting ignorance or dodging is truthful
    rude: bool
    polite: bool
