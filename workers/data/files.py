"""JSONL files as a data source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from workers.data.batches import demonstration_batch, document_batch
from workers.data.jsonl import read_jsonl
from workers.data.records import ClozeTokens, Prompt
from workers.data.source import PromptSplit, Split
from workers.data.table import Table
from workers.data.tokenizers import detokenize, load_tokenizer
from workers.errors import ConfigError
from workers.messages import IntArray, Ragged, Ranking, TokenBatch
from workers.pocket.labeler import Gold

_BATCH = 4096  # texts handed to the tokenizer at once


class FileSource:
    """Demonstrations, rankings, prompts and pretraining text of JSONL files.

    Every file that is named is read and checked at once, so a bad line ends the run before any
    training. Prompts are used as written, after the beginning-of-sequence token where the
    tokenizer has one. The last tenth of each file by stable hash of its prompt (or text) is held
    out. `evaluation_prompts`, when given, replaces the held-out part of `prompts`; its prompts are
    held out of demonstrations and rankings too.

    Args:
        checkpoint: Hugging Face folder whose tokenizer is used.
        demonstrations: File of {"prompt", "completion"}; empty = none, as for the others.
        rankings: File of {"prompt", "completions", "ranks"}.
        prompts: File of {"prompt"}.
        evaluation_prompts: File of {"prompt"}; its prompts are taken out of `prompts`.
        pretraining: File of {"text"}.
        max_prompt_tokens: Rows with a longer prompt are left out and counted.
        max_completion_tokens: Longer completions are cut (and get no end token) and counted.
        seed: Fixes the order of training rows.

    Attributes:
        drops: Rows left out, counted by "file: reason".
        cuts: Completions cut, counted by file.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        demonstrations: str = "",
        rankings: str = "",
        prompts: str = "",
        evaluation_prompts: str = "",
        pretraining: str = "",
        max_prompt_tokens: int,
        max_completion_tokens: int,
        seed: int,
    ) -> None:
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(checkpoint)
        eos = self.tokenizer.eos_token_id
        assert isinstance(eos, int), "load_tokenizer refuses a tokenizer without one"
        self._eos = eos
        self.drops: Counter[str] = Counter()
        self.cuts: Counter[str] = Counter()
        self._max_prompt = max_prompt_tokens
        self._max_completion = max_completion_tokens
        self._seed = seed
        evaluation = self._prompt_rows(evaluation_prompts, "evaluation_prompts")
        held = frozenset(prompt.text for prompt in evaluation)
        self._demonstrations = self._read_demonstrations(demonstrations, held)
        self._rankings = self._read_rankings(rankings, held) if rankings else None
        self._prompts = self._join_prompts(prompts, evaluation)
        self._documents = self._read_documents(pretraining)

    def pretraining(self, split: Split, start: int, count: int) -> TokenBatch:
        """Documents in windows of at most the prompt and completion limits together."""
        chosen = self._documents.take(split, start, count, self._seed)
        return document_batch([self._documents.rows[i] for i in chosen])

    def demonstrations(self, split: Split, start: int, count: int) -> TokenBatch:
        """Demonstrations; targets are the completion and its end token."""
        table = self._demonstrations
        pairs = [table.rows[i] for i in table.take(split, start, count, self._seed)]
        return demonstration_batch([p for p, _ in pairs], [c for _, c in pairs])

    def demonstration_count(self) -> int:
        """Demonstrations to train on."""
        return len(self._demonstrations.numbers("train"))

    def prompts(self, split: PromptSplit, start: int, count: int) -> list[Prompt]:
        """Prompts; "reward_model" and "ppo" both read the training rows."""
        return [self._prompts.rows[i] for i in self._prompts.take(split, start, count, self._seed)]

    def rankings(self, split: Split) -> list[Ranking] | None:
        """All rankings of a split in file order; None when no file is given."""
        if self._rankings is None:
            return None
        return [self._rankings.rows[i] for i in self._rankings.numbers(split)]

    def label(
        self,
        prompts: Sequence[Prompt],  # noqa: ARG002
        completions: Sequence[Sequence[str]],  # noqa: ARG002
    ) -> list[list[int]]:
        """Refuse: files have no labeler.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "nobody can rank sampled completions",
            where="data.files.rankings",
            mend="set data.files.rankings to a file of ranked completions",
        )

    def gold(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Gold] | None:  # noqa: ARG002
        """None: nobody knows the truth."""
        return None

    def cloze(self, split: Split, start: int, count: int) -> list[ClozeTokens] | None:  # noqa: ARG002
        """None: files hold no cloze tasks."""
        return None

    def detokenize(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens left out."""
        return detokenize(self.tokenizer, ids)

    def _read_demonstrations(
        self, path: str, held: frozenset[str]
    ) -> Table[tuple[IntArray, IntArray]]:
        lines = list(read_jsonl(path)) if path else []
        texts = [line.text("prompt") for line in lines]
        completions = self._encode([line.text("completion") for line in lines])
        rows: list[tuple[IntArray, IntArray]] = []
        keys: list[str] = []
        for text, prompt, completion in zip(
            texts, self._encode_prompts(texts), completions, strict=True
        ):
            if not len(completion):
                self.drops["demonstrations: empty completion"] += 1
            elif self._usable(text, prompt, "demonstrations"):
                rows.append((prompt, self._ended(completion, "demonstrations")))
                keys.append(text)
        return Table.split("demonstrations", rows, keys, held)

    def _read_rankings(self, path: str, held: frozenset[str]) -> Table[Ranking]:
        lines = list(read_jsonl(path))
        texts = [line.text("prompt") for line in lines]
        rows: list[Ranking] = []
        keys: list[str] = []
        ids: dict[str, int] = {}  # several people may have ranked completions of one prompt
        for i, (line, prompt) in enumerate(zip(lines, self._encode_prompts(texts), strict=True)):
            completions = line.texts("completions")
            if len(completions) < 2:
                line.fail('"completions" needs at least two entries')
            ranks = np.array(line.ranks("ranks", len(completions)), dtype=np.int64)
            if len(set(ranks.tolist())) == 1:
                self.drops["rankings: every completion ties"] += 1
            elif self._usable(texts[i], prompt, "rankings"):
                ended = [self._ended(c, "rankings") for c in self._encode(completions)]
                sequences = Ragged.from_rows([np.append(prompt, c) for c in ended], np.int32)
                rows.append(Ranking(ids.setdefault(texts[i], i), sequences, ranks))
                keys.append(texts[i])
        return Table.split("rankings", rows, keys, held)

    def _join_prompts(self, path: str, evaluation: list[Prompt]) -> Table[Prompt]:
        held = frozenset(prompt.text for prompt in evaluation)
        rows = [*evaluation, *self._prompt_rows(path, "prompts", held, len(evaluation))]
        if not evaluation:
            return Table.split("prompts", rows, [prompt.text for prompt in rows])
        return Table(
            "prompts", rows, np.arange(len(evaluation), len(rows)), np.arange(len(evaluation))
        )

    def _prompt_rows(
        self, path: str, name: str, held: frozenset[str] = frozenset(), first_id: int = 0
    ) -> list[Prompt]:
        texts = [line.text("prompt") for line in read_jsonl(path)] if path else []
        rows: list[Prompt] = []
        seen: set[str] = set()
        for text, tokens in zip(texts, self._encode_prompts(texts), strict=True):
            if text in held:
                self.drops[f"{name}: also an evaluation prompt"] += 1
            elif text in seen:
                self.drops[f"{name}: repeated"] += 1
            elif self._usable(text, tokens, name):
                number = first_id + len(rows)
                rows.append(Prompt(number, tuple(tokens.tolist()), text, number))
            seen.add(text)
        return rows

    def _read_documents(self, path: str) -> Table[IntArray]:
        texts = [line.text("text") for line in read_jsonl(path)] if path else []
        window = self._max_prompt + self._max_completion
        rows: list[IntArray] = []
        keys: list[str] = []
        for text, ids in zip(texts, self._encode_prompts(texts), strict=True):
            if not text.strip():
                self.drops["pretraining: empty text"] += 1
                continue
            document = np.append(ids, self._eos)
            # A window of one token would hold no target: its first token has no predecessor.
            windows = [document[i : i + window] for i in range(0, len(document) - 1, window)]
            rows += windows
            keys += [text] * len(windows)
        return Table.split("pretraining", rows, keys)

    def _usable(self, text: str, prompt: IntArray, name: str) -> bool:
        # Some tokenizers drop characters; without a start token nothing may be left of a text.
        if not text.strip() or not len(prompt):
            self.drops[f"{name}: empty prompt"] += 1
        elif len(prompt) > self._max_prompt:
            self.drops[f"{name}: prompt over {self._max_prompt} tokens"] += 1
        else:
            return True
        return False

    def _ended(self, completion: IntArray, name: str) -> IntArray:
        # The end token counts towards the limit, as it does when a response is sampled.
        if len(completion) < self._max_completion:
            return np.append(completion, self._eos)
        self.cuts[name] += 1
        return completion[: self._max_completion]

    def _encode_prompts(self, texts: Sequence[str]) -> list[IntArray]:
        bos = self.tokenizer.bos_token_id
        rows = self._encode(texts)
        if bos is None:
            return rows
        # A prompt that was rendered by a chat template may start with the token already.
        return [row if len(row) and row[0] == bos else np.append(bos, row) for row in rows]

    def _encode(self, texts: Sequence[str]) -> list[IntArray]:
        rows: list[IntArray] = []
        for first in range(0, len(texts), _BATCH):
            batch = self.tokenizer(
                list(texts[first : first + _BATCH]), add_special_tokens=False, verbose=False
            )
            rows += [np.array(ids, dtype=np.int64) for ids in batch["input_ids"]]
        return rows
