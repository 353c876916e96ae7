"""The pocket world as a data source: every split is endless and generated on request."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
from transformers import PreTrainedTokenizerFast

from workers.data.batches import demonstration_batch, document_batch
from workers.data.records import ClozeTokens, Gold, Prompt
from workers.data.source import PromptSplit, Split
from workers.data.tokenize.tokenizers import detokenize
from workers.pocket.labeler import Labeler, judge
from workers.pocket.questions import Question
from workers.pocket.tokenizer import build_tokenizer
from workers.pocket.words import ARITHMETIC, BOS, EOS
from workers.pocket.world import World, polite_reply
from workers.records.arrays import Ragged
from workers.records.training import Ranking, TokenBatch

COLUMNS = ("answer", "category", "world")  # of each prompt
_PROMPT_SPLITS: tuple[PromptSplit, ...] = get_args(PromptSplit)
_IDS = {word: i for i, word in enumerate(ARITHMETIC)}  # begins with the ids of VOCABULARY
_BOS, _EOS = _IDS[BOS], _IDS[EOS]


class PocketSource:
    """Documents, demonstrations, prompts and rankings of one pocket world.

    Args:
        seed: Seed of the world and of its labeler.
        label_noise: Standard deviation of the labeler's error, in score units.
        tie_width: Completions whose noisy scores differ by less are ranked equal.
        keep: Those of `COLUMNS` that prompts keep for rewards.
        arithmetic: Whether every question is a sum.
        lookup: Whether texts leave out facts that a look-up tells.
    """

    def __init__(
        self,
        seed: int,
        label_noise: float,
        tie_width: float,
        keep: Sequence[str] = (),
        *,
        arithmetic: bool = False,
        lookup: bool = False,
    ) -> None:
        self.world = World(seed, arithmetic=arithmetic, lookup=lookup)
        self.labeler = Labeler(label_noise, tie_width, seed)
        self.tokenizer: PreTrainedTokenizerFast = build_tokenizer(arithmetic=arithmetic)
        self._keep = keep

    def pretraining(self, split: Split, start: int, count: int) -> TokenBatch:
        """Web documents, one per row; every token is a target."""
        documents = (self.world.web_document(split, i) for i in range(start, start + count))
        return document_batch([[_BOS, *_encode(text), _EOS] for text in documents])

    def demonstrations(self, split: Split, start: int, count: int) -> TokenBatch:
        """Demonstrations; targets are the reply and its end token, those of look-ups every turn."""
        if self.world.groups is not None:
            rows = [self._dialogue(split, i) for i in range(start, start + count)]
            return TokenBatch(
                Ragged.from_rows([tokens for tokens, _ in rows], np.int32),
                Ragged.from_rows([targets for _, targets in rows], np.bool_),
            )
        pairs = [self.world.demonstration(split, i) for i in range(start, start + count)]
        return demonstration_batch(
            [[_BOS, *_encode(self.world.prompt(question))] for question, _ in pairs],
            [[*_encode(reply), _EOS] for _, reply in pairs],
        )

    def _dialogue(self, split: Split, index: int) -> tuple[list[int], list[bool]]:
        """Tokens and targets of a demonstration in a world of look-ups."""
        shown = self.world.shown(split, index)
        asked = [(f"{shown.call} {EOS}", True), (f"user : {shown.record} reply :", False)]
        parts = [
            (self.world.prompt(shown.question), False),
            *(asked if shown.call else ()),
            (f"{shown.reply} {EOS}", True),
        ]
        rows = [(_encode(text), target) for text, target in parts]
        tokens = [_BOS, *(i for ids, _ in rows for i in ids)]
        return tokens, [False, *(target for ids, target in rows for _ in ids)]

    def demonstration_count(self) -> None:
        """None: the demonstrations are endless."""

    def prompts(self, split: PromptSplit, start: int, count: int) -> list[Prompt]:
        """Questions as prompts; word lists of "heldout" occur in no other split."""
        slot = _PROMPT_SPLITS.index(split)
        return [
            self._prompt(index, index * len(_PROMPT_SPLITS) + slot)
            for index in range(start, start + count)
        ]

    def prompted(self, prompts: Sequence[Prompt], shots: int) -> list[Prompt] | None:
        """The prompts after `shots` polite demonstrations, written as a thread of the internet.

        The same ones before every prompt, as the prefix of the paper's few-shot GPT-3.
        """
        drawn = (self.world.demonstration("train", i) for i in itertools.count())
        polite = ((q, reply) for q, reply in drawn if reply == polite_reply(q.answer))
        shown = [f"{self.world.prompt(q)} {reply}" for q, reply in itertools.islice(polite, shots)]
        texts = [" ".join([*shown, prompt.text]) for prompt in prompts]
        return [
            replace(prompt, tokens=(_BOS, *_encode(text)), text=text)
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    def rankings(self, split: Split) -> list[Ranking] | None:  # noqa: ARG002
        """None: the rankings are produced by sampling and labeling completions."""
        return None

    def ties(self) -> list[Ranking]:
        """No tied rankings are given."""
        return []

    def label(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[str]]
    ) -> list[list[int]]:
        """The noisy labeler's ranks of the completions of each prompt."""
        return [
            self.labeler.rank(self.question(prompt), texts, prompt.key)
            for prompt, texts in zip(prompts, completions, strict=True)
        ]

    def gold(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Gold] | None:
        """The gold score of one completion per prompt."""
        return [
            judge(self.question(prompt), text)
            for prompt, text in zip(prompts, completions, strict=True)
        ]

    def cloze(self, split: Split, start: int, count: int) -> list[ClozeTokens] | None:
        """Facts without their last word; every candidate is one token."""
        tasks = (self.world.cloze(split, i) for i in range(start, start + count))
        return [
            ClozeTokens(
                (_BOS, *_encode(task.prefix)),
                tuple((_IDS[word],) for word in task.candidates),
                task.candidates.index(task.answer),
            )
            for task in tasks
        ]

    def detokenize(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens left out."""
        return detokenize(self.tokenizer, ids)

    def question(self, prompt: Prompt) -> Question:
        """The question from which a prompt of this source was generated."""
        index, slot = divmod(prompt.key, len(_PROMPT_SPLITS))
        split = _PROMPT_SPLITS[slot]
        return self.world.question("heldout" if split == "heldout" else "train", index, split)

    def _prompt(self, index: int, key: int) -> Prompt:
        question = self.question(Prompt(index, (), "", key))
        text = self.world.prompt(question)
        columns = {
            "answer": " ".join(question.answer),
            "category": question.category,
            "world": str(self.world.seed),
        }
        row = json.dumps({name: columns[name] for name in self._keep}) if self._keep else ""
        return Prompt(index, (_BOS, *_encode(text)), text, key, row=row)


def _encode(text: str) -> list[int]:
    # Equal to the tokenizer but many times faster: world texts are known words and single spaces.
    return [_IDS[word] for word in text.split()]
