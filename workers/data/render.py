"""Examples as token rows: bare text as it stands, dialogues through a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from workers.data.examples import Comparison, Demonstration, Document, PromptExample, Rejected
from workers.data.rows import DocumentRow, PromptRow, RankedRow, TokenRow

if TYPE_CHECKING:  # seconds to import, and only a type here
    from transformers import PreTrainedTokenizerBase

TrainOn = Literal["last", "all"]


class Renderer:
    """Turns examples into token rows; each verb answers one result an example, in order.

    Args:
        tokenizer: Must have an end-of-sequence token.
        template: "auto" = the tokenizer's chat template, "default" = the built-in one for base
            models, else the path of a Jinja file. Only dialogues need one.
        train_on: "last" = the last assistant turn is the target; "all" = every assistant turn.
        max_prompt_tokens: Rows with a longer prompt are rejected.
        max_completion_tokens: Longer completions are cut and get no end token.

    Raises:
        DataError: If the template cannot be read.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: str = "auto",
        train_on: TrainOn = "last",
        max_prompt_tokens: int,
        max_completion_tokens: int,
    ) -> None: ...

    def demonstrations(self, examples: Sequence[Demonstration]) -> list[TokenRow | Rejected]:
        """Prompt then response."""
        ...

    def comparisons(self, examples: Sequence[Comparison]) -> list[RankedRow | Rejected]:
        """A prompt and its K completions."""
        ...

    def prompts(self, examples: Sequence[PromptExample]) -> list[PromptRow | Rejected]:
        """Prompts as the engine sees them."""
        ...

    def documents(self, examples: Sequence[Document]) -> list[list[DocumentRow] | Rejected]:
        """Windows of at most both limits together; the document ends with the end token."""
        ...
