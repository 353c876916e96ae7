"""The data source that reads data sets from files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from workers.data.batches import document_batch
from workers.data.recognise.recognise import Kind, Noted, read_examples
from workers.data.records import ClozeTokens, Gold, Prompt
from workers.data.rows.asked import unpack_dialogue
from workers.data.source import PromptSplit, Split
from workers.data.tables.accounts import SetAccount
from workers.data.tables.cache import RowCache
from workers.data.tables.mixture import quotas
from workers.data.tables.table import Gatherer, Held, Table
from workers.data.tokenize.data_sets import DataSet, Feeding, Rendering, SetKind, naming_key
from workers.data.tokenize.encode import Chunk, Encoder
from workers.data.tokenize.pool import Encode, open_encoder
from workers.data.tokenize.tokenizers import detokenize
from workers.errors import ConfigError, DataError
from workers.records.arrays import IntArray, Ragged
from workers.records.training import Ranking, TokenBatch

if TYPE_CHECKING:  # seconds to import, and only a type here
    from transformers import PreTrainedTokenizerBase


class FileSource:
    """Demonstrations, comparisons, prompts and pretraining text of any number of data sets.

    Every set is read, tokenised and checked on construction, so a bad line ends the run before any
    training. Large columns are in a memory-mapped file (`RowStore`). Sets of one kind are mixed in
    proportion to their weights. `evaluation_prompts`, when given, replace the held-out part of
    `prompts`; they and all rows of their users are held out of every other kind, too.

    Args:
        sets: What to read; names are unique.
        rendering: Tokenizer, chat template and token limits.
        feeding: Filters, split, order and number of data-loading processes.

    Attributes:
        tokenizer: Encodes and decodes every token id of this source; has the chat template used.
        date: The date given to the template, where the template uses it; else "".
        accounts: Row counts of each set: kept, held out and dropped by reason.

    Raises:
        DataError: A file cannot be read; a line cannot be read and `on_bad_line` is "fail"; or a
            token id is outside the models' embeddings.
        EmptyDatasetError: A set has no usable row.
        ConfigError: A weight is out of range.
    """

    def __init__(self, sets: Sequence[DataSet], rendering: Rendering, feeding: Feeding) -> None:
        encoder = Encoder(rendering)
        self._rendering = rendering
        self.tokenizer: PreTrainedTokenizerBase = encoder.tokenizer
        self.date = encoder.date
        self._cache = RowCache(feeding.cache_mib << 20, encoder, rendering)
        self._feeding = feeding
        self._sets = {kind: [s for s in sets if s.kind is kind] for kind in SetKind}
        for own in self._sets.values():
            if own:
                quotas([each.weight for each in own])  # raises on a bad weight before any reading
        self._accounts = {
            kind: [SetAccount(s.name, s.kind.value, s.path, s.weight) for s in own]
            for kind, own in self._sets.items()
        }
        with open_encoder(rendering, feeding.workers, feeding.call_seconds, encoder) as encode:
            evaluation = self._read(SetKind.evaluation_prompts, encode, Held.together([]))
            held = evaluation.held_out()
            self._tables = {SetKind.evaluation_prompts: evaluation} | {
                kind: self._read(kind, encode, held)
                for kind in SetKind
                if kind is not SetKind.evaluation_prompts
            }
        self._finish()

    @property
    def notes(self) -> list[str]:
        """Messages for the user about the cache of rows."""
        return self._cache.notes

    @property
    def accounts(self) -> list[SetAccount]:
        """Row counts of each set, in the order of `SetKind`."""
        return [account for kind in SetKind for account in self._accounts[kind]]

    def pretraining(self, split: Split, start: int, count: int) -> TokenBatch:
        """Documents in windows of at most the prompt and completion limits together."""
        table = self._tables[SetKind.pretraining]
        tokens = table.rows.tokens
        return document_batch([_ids(tokens, i) for i in table.take(split, start, count)])

    def demonstrations(self, split: Split, start: int, count: int) -> TokenBatch:
        """Demonstrations; targets are the trained responses and their end tokens."""
        table = self._tables[SetKind.demonstrations]
        chosen = table.take(split, start, count)
        return TokenBatch(table.rows.tokens.select(chosen), table.rows.targets.select(chosen))

    def demonstration_count(self) -> int:
        """Number of training demonstrations."""
        return len(self._tables[SetKind.demonstrations].numbers("train"))

    def prompts(self, split: PromptSplit, start: int, count: int) -> list[Prompt]:
        """Prompts; "reward_model" and "ppo" both read the training rows."""
        evaluation = self._tables[SetKind.evaluation_prompts]
        given, table = len(evaluation.rows.keys), self._tables[SetKind.prompts]
        if split == "heldout" and given:
            return [self._prompt(evaluation, i, i) for i in evaluation.take(split, start, count)]
        return [self._prompt(table, i, given + i) for i in table.take(split, start, count)]

    def prompted(self, prompts: Sequence[Prompt], shots: int) -> list[Prompt] | None:  # noqa: ARG002
        """None: how a demonstration would look in front of a prompt is not known."""
        return None

    def rankings(self, split: Split) -> list[Ranking] | None:
        """One epoch of the rankings of a split; None when there is no set of comparisons."""
        table = self._tables[SetKind.comparisons]
        if not table.sets:
            return None
        return [_ranking(table, i) for i in table.mixed(split)]

    def ties(self) -> list[Ranking]:
        """Rankings in which every completion ties and the annotator is named."""
        table = self._tables[SetKind.comparisons]
        return [_ranking(table, i) for i in table.tied]

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
            "sampled completions cannot be ranked",
            where="data.files.rankings",
            fix="set data.files.rankings to a file of ranked completions",
        )

    def gold(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Gold] | None:  # noqa: ARG002
        """None: files hold no gold verdicts."""
        return None

    def cloze(self, split: Split, start: int, count: int) -> list[ClozeTokens] | None:  # noqa: ARG002
        """None: files hold no cloze tasks."""
        return None

    def detokenize(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens left out."""
        return detokenize(self.tokenizer, ids)

    def _read(self, kind: SetKind, encode: Encode, held: Held) -> Table:
        gatherer = Gatherer()
        accounts = self._accounts[kind]
        for number, each in enumerate(self._sets[kind]):
            with naming_key(each):
                for chunk in self._chunks(kind, encode, each, accounts[number]):
                    self._check_ids(chunk, each)
                    gatherer.add(number, chunk, accounts[number])
        return Table(kind, self._sets[kind], accounts, gatherer.finish(), self._feeding, held)

    def _chunks(
        self, kind: SetKind, encode: Encode, each: DataSet, account: SetAccount
    ) -> Iterator[Chunk]:
        """The rows of a set: from the cache, or else read, encoded and cached now."""
        key = self._cache.key(each, self._feeding.on_bad_line)
        kept = self._cache.find(key)
        if kept is not None:
            yield from kept.chunks()
            account.unread, account.labels = kept.facts["unread"], kept.facts["labels"]
            return
        noted = Noted()
        examples = read_examples(
            each.path,
            _shape(kind),
            format=each.format,
            columns=each.columns,
            split=each.split,
            subset=each.subset,
            name=each.name,
            on_bad_line=self._feeding.on_bad_line,
            keep=each.keep,
            noted=noted,
        )
        with self._cache.store(key, each.path) as store:
            for chunk in encode(kind, examples):
                store.add(chunk)
                yield chunk
            account.unread, account.labels = noted.unread_columns(), noted.labels
            store.finish({"unread": account.unread, "labels": account.labels})

    def _prompt(self, table: Table, row: int, number: int) -> Prompt:
        rows = table.rows
        tokens = tuple(rows.tokens.row(row).tolist())
        text = bytes(rows.texts.row(row)).decode()
        dialogue = unpack_dialogue(bytes(rows.dialogues.row(row)))
        words = dialogue or text.removeprefix(str(self.tokenizer.bos_token or ""))
        kept = bytes(rows.kept.row(row)).decode()
        return Prompt(int(number), tokens, text, int(number), words, kept)

    def _check_ids(self, chunk: Chunk, each: DataSet) -> None:
        known = self._rendering.embeddings
        highest = int(chunk.tokens.values.max(initial=0))
        if known and highest >= known:
            token = self.tokenizer.convert_ids_to_tokens(highest)
            raise DataError(
                f"the tokenizer writes token id {highest} ({token!r}), but the models have "
                f"embeddings for {known:,} ids only",
                where=f"{each.path}, read by the tokenizer of {self._rendering.checkpoint}",
                fix="give the model more embeddings (model.resize_token_embeddings(len(tokenizer)"
                ") and save_pretrained), or save the tokenizer that it was trained with in its "
                "folder",
            )

    def _finish(self) -> None:
        held = Held.together([table.held_out() for table in self._tables.values()])
        # the evaluation prompts, or else the held-out part of the prompts
        evaluated = (SetKind.evaluation_prompts, SetKind.prompts)
        asked = np.concatenate([self._tables[kind].asked() for kind in evaluated])
        for table in self._tables.values():
            table.drop_from_training(held)
            table.drop_continued(asked)
            if self._feeding.drop_pii:
                table.drop_pii()
            table.close()
        comparisons = self._tables[SetKind.comparisons]
        if comparisons.sets:
            comparisons.count_pairs()


def _shape(kind: SetKind) -> Kind:
    return cast("Kind", "prompts" if kind is SetKind.evaluation_prompts else kind.value)


def _ids(rows: Ragged, number: int) -> IntArray:
    return cast("IntArray", rows.row(number))


def _ranking(table: Table, row: int) -> Ranking:
    rows = table.rows
    first, last = rows.ranks.offsets[row : row + 2]
    start = rows.tokens.offsets[first]
    offsets = rows.tokens.offsets[first : last + 1]
    return Ranking(
        table.first_of_prompt(row),
        Ragged(rows.tokens.values[start : offsets[-1]], offsets - start),
        rows.ranks.row(row).astype(np.int64),
        source=table.sets[rows.sets[row]].name,
        annotator=bytes(rows.texts.row(row)).decode(),
        prompt_length=int((rows.targets.row(first) == 0).sum()),
        likert=rows.likert.row(row).astype(np.int64) if len(rows.likert.row(row)) else None,
    )
