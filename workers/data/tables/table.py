"""The table of all rows of one kind: gathered from its sets, filtered, split, read by cursor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from workers.data.filters.filters import at_most_per_user, first_of_each, first_of_each_beginning
from workers.data.filters.personal_data import PII_KINDS
from workers.data.filters.splits import BoolArray, HashArray, split_rows, stable_hash
from workers.data.recognise.rankings_by_fields import TIED
from workers.data.tables.accounts import SetAccount, with_key
from workers.data.tables.mixture import interleave
from workers.data.tables.sampler import LengthGroupedSampler, MixedSampler, Stream
from workers.data.tables.store import RowStore
from workers.data.tokenize.data_sets import DataSet, Feeding, SetKind
from workers.data.tokenize.encode import Chunk, PiiArray
from workers.errors import EmptyDatasetError
from workers.records.arrays import IntArray, Ragged


class Gatherer:
    """Collects the chunks of all sets of one kind."""

    def __init__(self) -> None:
        self._columns: tuple[list[HashArray], ...] = ([], [], [])
        self._pii: list[PiiArray] = []
        self._sets: list[IntArray] = []
        self._within = RowStore(np.uint64)
        self._tokens = RowStore(np.int32)
        self._targets = RowStore(np.bool_)
        self._ranks = RowStore(np.int16)
        self._likert = RowStore(np.int16)
        self._texts = RowStore(np.uint8)
        self._dialogues = RowStore(np.uint8)
        self._kept = RowStore(np.uint8)

    def add(self, number: int, chunk: Chunk, account: SetAccount) -> None:
        """Append a chunk of set `number`."""
        for column, part in zip(
            self._columns, (chunk.keys, chunk.users, chunk.prefixes), strict=True
        ):
            column.append(part)
        self._pii.append(chunk.pii)
        self._sets.append(np.full(len(chunk.keys), number, np.int64))
        self._within.extend(chunk.within)
        self._tokens.extend(chunk.tokens)
        self._targets.extend(chunk.targets)
        self._ranks.extend(chunk.ranks)
        self._likert.extend(chunk.likert)
        self._texts.extend(chunk.texts)
        self._dialogues.extend(chunk.dialogues)
        self._kept.extend(chunk.kept)
        account.read += len(chunk.keys) + chunk.dropped.total()
        for reason, count in chunk.dropped.items():
            account.drop(reason, count)
        account.cut += chunk.cut

    def finish(self) -> Rows:
        """Everything that was added, in order."""
        empty = np.zeros(0, np.uint64)
        keys, users, prefixes = (np.concatenate([*c, empty]) for c in self._columns)
        return Rows(
            np.concatenate([*self._sets, np.zeros(0, np.int64)]),
            keys,
            users,
            prefixes,
            np.concatenate([*self._pii, np.zeros(0, np.int8)]),
            self._within.finish(),
            self._tokens.finish(),
            self._targets.finish(),
            self._ranks.finish(),
            self._likert.finish(),
            self._texts.finish(),
            self._dialogues.finish(),
            self._kept.finish(),
        )


@dataclass(frozen=True, slots=True)
class Held:
    """Prompts and users that no stage may train on."""

    keys: HashArray  # of prompts
    users: HashArray  # never 0

    @classmethod
    def together(cls, parts: Sequence[Held]) -> Held:
        """The union of several."""
        empty = np.zeros(0, np.uint64)
        return cls(
            np.concatenate([empty, *(part.keys for part in parts)]),
            np.concatenate([empty, *(part.users for part in parts)]),
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """Columns of R rows; see `workers.data.tokenize.encode.Chunk`."""

    sets: IntArray  # (R,) number of the set
    keys: HashArray
    users: HashArray
    prefixes: HashArray
    pii: PiiArray
    within: Ragged
    tokens: Ragged
    targets: Ragged
    ranks: Ragged
    likert: Ragged
    texts: Ragged
    dialogues: Ragged
    kept: Ragged

    def tied(self) -> BoolArray:
        """(R,) True = a ranking in which every completion ties; other kinds have none."""
        if not len(self.ranks):
            return np.zeros(len(self.keys), bool)
        first = self.ranks.offsets[:-1]
        values = self.ranks.values
        return np.minimum.reduceat(values, first) == np.maximum.reduceat(values, first)

    def lengths(self) -> IntArray:
        """(R,) tokens of each row; all completions of a ranking together."""
        lengths = self.tokens.lengths
        if not len(self.ranks):
            return lengths
        return np.add.reduceat(lengths, self.ranks.offsets[:-1])


class Sieve:
    """The rows that remain after filtering; every drop is counted by set and reason."""

    def __init__(self, rows: Rows, accounts: Sequence[SetAccount]) -> None:
        self._rows = rows
        self._accounts = accounts
        self.left: BoolArray = np.ones(len(rows.keys), bool)

    def drop(self, where: BoolArray, reason: str) -> None:
        """Drop the remaining rows of `where`."""
        gone = where & self.left
        counts = np.bincount(self._rows.sets[gone], minlength=len(self._accounts))
        for account, count in zip(self._accounts, counts.tolist(), strict=True):
            if count:
                account.drop(reason, count)
        self.left &= ~gone

    def keep_first(self, hashes: HashArray, reason: str) -> None:
        """Of the remaining rows, keep the first of each hash."""
        self._keep(first_of_each(hashes[self.left]), reason)

    def keep_first_beginnings(self, reason: str) -> None:
        """Of the remaining rows with equal beginnings, keep those with the first row's prompt."""
        prefixes, keys = self._rows.prefixes[self.left], self._rows.keys[self.left]
        self._keep(first_of_each_beginning(prefixes, keys), reason)

    def keep_of_user(self, most: int) -> None:
        """Of the remaining rows, keep the first `most` of each user."""
        stays = at_most_per_user(self._rows.users[self.left], most)
        self._keep(stays, f"more than {most} rows of one user")

    def _keep(self, stays: BoolArray, reason: str) -> None:
        where = np.zeros(len(self.left), bool)
        where[np.flatnonzero(self.left)[~stays]] = True
        self.drop(where, reason)


class Table:
    """Rows of one kind with their training and held-out parts.

    Args:
        kind: The kind of the rows.
        sets: The sets that were gathered, in order of their numbers.
        accounts: One per set; drops are counted in them.
        rows: The gathered rows.
        feeding: Filters, split and order.
        held: Evaluation prompts and their users; always held out, and dropped from `prompts`.
    """

    def __init__(
        self,
        kind: SetKind,
        sets: Sequence[DataSet],
        accounts: Sequence[SetAccount],
        rows: Rows,
        feeding: Feeding,
        held: Held,
    ) -> None:
        self.kind = kind
        self.sets = sets
        self.accounts = accounts
        self.rows = rows
        self._feeding = feeding
        self._sieve = Sieve(rows, accounts)
        self._stream: Stream | None = None
        self._firsts: IntArray | None = None
        self._tied = np.flatnonzero(rows.tied())
        # evaluation prompts replace the held-out part of prompts
        self._held_elsewhere = kind is SetKind.prompts and len(held.keys) > 0
        self._train, self._heldout = self._split(held)

    @property
    def tied(self) -> IntArray:
        """Row numbers of rankings in which every completion ties: verdicts, but not trained."""
        return self._tied

    def held_out(self) -> Held:
        """Prompts and users of the held-out rows; users alone for pretraining text."""
        rows = self._heldout
        keys, users = self.rows.keys[rows], self.rows.users[rows]
        # a pretraining text that equals a prompt does not hold that prompt out
        asked = keys[:0] if self.kind is SetKind.pretraining else keys
        return Held(asked, users[users != 0])

    def drop_from_training(self, held: Held) -> None:
        """Drop training rows whose prompt or user any table of the run holds out.

        Rows of one user stay on one side of the split, and so do rows of one prompt; where the two
        rules conflict, the training row is dropped.
        """
        rows = self._train
        if self.kind is not SetKind.pretraining:  # there the keys are those of texts, not prompts
            leaks = np.isin(self.rows.keys[rows], held.keys)
            self._drop_training(rows[leaks], "its prompt is held out with another row")
        rows = self._train
        leaks = np.isin(self.rows.users[rows], held.users)
        self._drop_training(rows[leaks], "its user is held out with another row")

    def asked(self) -> HashArray:
        """Hashes of the prompts of the held-out rows, without system turns."""
        within = self.rows.within
        return np.asarray(within.values[within.offsets[1:][self._heldout] - 1], np.uint64)

    def drop_continued(self, asked: HashArray) -> None:
        """Drop training dialogues that begin with one of these prompts."""
        within = self.rows.within
        found = np.cumsum([0, *np.isin(within.values, asked)])[within.offsets]
        continues = found[1:] > found[:-1]
        gone = self._train[continues[self._train]]
        self._drop_training(gone, "a dialogue that begins with an evaluation prompt")

    def drop_pii(self) -> None:
        """Drop training rows that hold personal data."""
        found = self.rows.pii[self._train]
        for kind, name in enumerate(PII_KINDS):
            self._drop_training(self._train[found == kind], f"personal data: {name}")
            found = self.rows.pii[self._train]

    def close(self) -> None:
        """Count the rows that are kept.

        Raises:
            EmptyDatasetError: A set has no row left for its purpose, or the kind has no held-out
                row.
        """
        lengths = self.rows.lengths()
        for number, (each, account) in enumerate(zip(self.sets, self.accounts, strict=True)):
            train, heldout = (self._of_set(rows, number) for rows in (self._train, self._heldout))
            account.train, account.heldout = len(train), len(heldout)
            account.tokens = int(lengths[train].sum() + lengths[heldout].sum())
            evaluates = self.kind is SetKind.evaluation_prompts
            if not len(heldout if evaluates else train):
                raise _empty([each], [account], "evaluation" if evaluates else "training")
        if self.sets and not len(self._heldout) and not self._held_elsewhere:
            raise self._nothing_held_out()

    def count_pairs(self) -> None:
        """Count the pairs in the kept comparisons, and those that tie."""
        for rows, heldout in ((self._train, False), (self._heldout, True)):
            for row in rows.tolist():
                ranks = self.rows.ranks.row(row)
                every = len(ranks) * (len(ranks) - 1) // 2
                ties = np.unique(ranks, return_counts=True)[1]
                tied = int((ties * (ties - 1) // 2).sum())
                account = self.accounts[int(self.rows.sets[row])]
                account.tied_pairs += tied
                if heldout:
                    account.heldout_pairs += every - tied
                else:
                    account.train_pairs += every - tied

    def first_of_prompt(self, row: int) -> int:
        """The first row of the same prompt, which serves as the prompt's id."""
        if self._firsts is None:
            _, first, number = np.unique(self.rows.keys, return_index=True, return_inverse=True)
            self._firsts = first[number]
        return int(self._firsts[row])

    def numbers(self, split: str) -> IntArray:
        """All row numbers of a split, each once, with the sets interleaved by weight.

        Raises:
            EmptyDatasetError: The split holds no row.
        """
        rows = self._heldout if split == "heldout" else self._train
        if not len(rows):
            raise _empty(self.sets, self.accounts, split, self.kind)
        by_set = [self._of_set(rows, number) for number in range(len(self.sets))]
        sets, places = interleave([len(own) for own in by_set], [s.weight for s in self.sets])
        starts = np.cumsum([0, *(len(own) for own in by_set[:-1])])
        return np.concatenate(by_set)[starts[sets] + places]

    def take(self, split: str, start: int, count: int) -> IntArray:
        """Row numbers at the cursor: endless in training, each row at most once in "heldout".

        Raises:
            EmptyDatasetError: The split holds no row.
        """
        if split == "heldout":
            rows = self.numbers(split)
            return rows[np.arange(start, start + min(count, len(rows))) % len(rows)]
        if self._stream is None:
            self._stream = self._make_stream()
        return self._stream.take(start, count)

    def mixed(self, split: str) -> IntArray:
        """One epoch of a split: held-out rows once each; training rows mixed by weight.

        One set is read in order, each row once. Of several sets as many rows are drawn as they
        hold in all, so a set whose weight exceeds its share of rows repeats and others are read in
        part.
        """
        rows = self.numbers(split)
        if split == "heldout" or len(self.sets) == 1:
            return rows
        return self._mixture(rows).take(0, len(rows))

    def _split(self, held: Held) -> tuple[IntArray, IntArray]:
        rows, sieve = self.rows, self._sieve
        is_held, by_user = np.isin(rows.keys, held.keys), np.isin(rows.users, held.users)
        sieve.drop(rows.tied(), TIED)
        prompts = self.kind in (SetKind.prompts, SetKind.evaluation_prompts)
        if self.kind is SetKind.prompts:
            sieve.drop(is_held, "also an evaluation prompt")
            sieve.drop(by_user, "of a user with an evaluation prompt")
        if prompts:
            sieve.keep_first(rows.keys, "repeated")
        if self.kind not in (SetKind.evaluation_prompts, SetKind.pretraining):
            sieve.keep_first_beginnings("shares a long beginning with an earlier row")
            if self._feeding.max_rows_per_user:
                sieve.keep_of_user(self._feeding.max_rows_per_user)
        left = np.flatnonzero(sieve.left)
        nothing = left[:0]
        if self.kind is SetKind.evaluation_prompts:
            return nothing, left
        if self._held_elsewhere:
            return left, nothing
        if self.kind is SetKind.pretraining:
            is_held[:] = False
        is_held |= by_user
        units = np.where(rows.users != 0, rows.users, rows.keys)[left]
        feeding = self._feeding
        train, heldout = split_rows(
            units, feeding.heldout_fraction, is_held[left], feeding.heldout_fold
        )
        return left[train], left[heldout]

    def _nothing_held_out(self) -> EmptyDatasetError:
        rows = self._train
        users = len(np.unique(self.rows.users[rows][self.rows.users[rows] != 0]))
        prompts = len(np.unique(self.rows.keys[rows]))
        return EmptyDatasetError(
            f"no row of {self.kind.value} is held out, so no stage could measure its result: "
            f"{len(rows):,} rows of {prompts:,} different prompts or texts, "
            f"{users:,} users named",
            where=", ".join(each.key for each in self.sets),
            fix="all rows of one user or of one prompt are on one side: give rows of more users "
            "or prompts, map no user, or raise data.heldout_fraction",
        )

    def _drop_training(self, gone: IntArray, reason: str) -> None:
        where = np.zeros(len(self.rows.keys), bool)
        where[gone] = True
        self._sieve.drop(where, reason)
        self._train = self._train[~where[self._train]]

    def _of_set(self, rows: IntArray, number: int) -> IntArray:
        return rows[self.rows.sets[rows] == number]

    def _make_stream(self) -> Stream:
        rows = self._train
        if not len(rows):
            raise _empty(self.sets, self.accounts, "train", self.kind)
        stream = self._mixture(rows)
        batch = self._feeding.batch_rows.get(self.kind, 0)
        if not (self._feeding.length_grouped and batch):
            return stream
        return LengthGroupedSampler(
            stream,
            self.rows.lengths(),
            batch=batch,
            window=self._feeding.length_group_batches,
            epoch=len(rows) if len(self.sets) == 1 else 0,
            seed=(self._feeding.seed, stable_hash("length groups")),
        )

    def _mixture(self, rows: IntArray) -> MixedSampler:
        """The training rows of all sets, mixed by weight; the seed of a set uses its name."""
        seed = self._feeding.seed
        return MixedSampler(
            [self._of_set(rows, number) for number in range(len(self.sets))],
            [each.weight for each in self.sets],
            [(seed, stable_hash(each.name)) for each in self.sets],
            (seed, stable_hash(self.kind.value)),
        )


def _empty(
    sets: Iterable[DataSet],
    accounts: Sequence[SetAccount],
    purpose: str,
    kind: SetKind | None = None,
) -> EmptyDatasetError:
    names = (
        ", ".join(each.key for each in sets) or f"data.sets (none of kind {kind and kind.value})"
    )
    dropped = [
        f"{n:,} x {with_key(reason)}" for each in accounts for reason, n in each.dropped.items()
    ]
    return EmptyDatasetError(
        f"no usable row for {purpose!r}",
        where=f"{names} ({sum(each.read for each in accounts):,} rows read)",
        fix="add rows (two different ones are the least), or relax a filter; left out: "
        + ("; ".join(dropped) or "nothing"),
    )
