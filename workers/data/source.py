"""The interface of a data source, which every stage reads its data from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from workers.data.records import ClozeTokens, Gold, Prompt
from workers.records.training import Ranking, TokenBatch

if TYPE_CHECKING:  # seconds to import, and only a type here
    from transformers import PreTrainedTokenizerBase

Split = Literal["train", "heldout"]
PromptSplit = Literal["reward_model", "ppo", "heldout"]


class DataSource(Protocol):
    """Examples by cursor: rows [start, start + count) of an endless stream, the same every time.

    A stage's whole data state is therefore one integer. On training splits `start` may exceed the
    size of a finite data set: further epochs follow, each in a different order. On "heldout",
    which no stage trains on, a finite source returns each row at most once, and so at most as many
    rows as it has, because repeated rows would make an evaluation look better founded than it is.
    """

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of every token id below, with the chat template that renders dialogues."""
        ...

    def pretraining(self, split: Split, start: int, count: int) -> TokenBatch:
        """Pretraining text; every token is a target."""
        ...

    def demonstrations(self, split: Split, start: int, count: int) -> TokenBatch:
        """Prompt and demonstrated response; targets are the response and its end token."""
        ...

    def demonstration_count(self) -> int | None:
        """Rows of one epoch of the training demonstrations; None for an endless source."""
        ...

    def prompts(self, split: PromptSplit, start: int, count: int) -> list[Prompt]:
        """Prompts to sample from."""
        ...

    def prompted(self, prompts: Sequence[Prompt], shots: int) -> list[Prompt] | None:
        """The prompts after `shots` demonstrations, for base models; None where there are none."""
        ...

    def rankings(self, split: Split) -> list[Ranking] | None:
        """All rankings of a split; None = sample completions and `label` them."""
        ...

    def ties(self) -> list[Ranking]:
        """Rankings in which every completion ties: not trained, but verdicts of annotators."""
        ...

    def label(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[str]]
    ) -> list[list[int]]:
        """Ranks (1 = best, equal = tie) of the K completions of each prompt.

        Raises:
            ConfigError: If the source has no labeler.
        """
        ...

    def gold(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Gold] | None:
        """Noise-free verdict on one completion per prompt; None where the source has none."""
        ...

    def cloze(self, split: Split, start: int, count: int) -> list[ClozeTokens] | None:
        """Cloze tasks in pretraining style; None where the source has none."""
        ...

    def detokenize(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens left out."""
        ...
