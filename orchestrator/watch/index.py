"""Index of a run's recorded sequences: SQLite in a temporary file that nobody else can open.

The run folder is only read. A temporary file, not memory: the texts of a long run are gigabytes,
of which SQLite keeps 64 MiB in memory. It has no name, so it is gone when this process ends, also
when it is killed. SQLite finds and orders by figures; `Texts` searches.
"""

from __future__ import annotations

import sqlite3
import threading
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from orchestrator.watch.sequences import (
    ANY_DROP,
    ORDERS,
    PAGE,
    TRAINED,
    Filter,
    Sequence,
    prompt_key,
)
from orchestrator.watch.texts import Texts
from workers.errors import DataError

_TABLES = """
CREATE TABLE prompt (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE response (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE sequence (
    id INTEGER PRIMARY KEY, stage TEXT NOT NULL, step INTEGER, number INTEGER NOT NULL,
    version TEXT NOT NULL, prompt INTEGER NOT NULL, reward REAL, kl REAL, length INTEGER NOT NULL,
    in_tokens INTEGER NOT NULL, finish TEXT NOT NULL, dropped TEXT NOT NULL,
    terms TEXT NOT NULL
);
CREATE INDEX of_prompt ON sequence (prompt);
"""
_CACHE_KIB = 64 * 1024
_REMEMBERED = 8  # results of filters, so that further pages cost nothing
_COLUMNS = ("s.id, stage, step, number, version, p.text, r.text, reward, kl, length, in_tokens, "
            "finish, dropped, terms")  # fmt: skip
_JOINED = "sequence s JOIN prompt p ON p.id = s.prompt JOIN response r ON r.id = s.id"


@dataclass(frozen=True, slots=True)
class Found:
    """A sequence and its number in the index."""

    id: int
    sequence: Sequence

    @property
    def prompt_key(self) -> int:
        """The number of its prompt."""
        return prompt_key(self.sequence.prompt)


@dataclass(frozen=True, slots=True)
class Result:
    """One page of the sequences that a filter lets through."""

    shown: list[Found]
    total: int
    page: int
    pages: int


@dataclass(slots=True)
class Values:
    """What occurs in each column that is chosen from a list, with its count."""

    stages: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    finishes: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)

    def add(self, sequence: Sequence) -> None:
        """Count a sequence."""
        self.stages[sequence.stage] += 1
        self.versions[sequence.version] += 1
        if sequence.finish:
            self.finishes[sequence.finish] += 1
        if sequence.dropped:
            self.drops[sequence.dropped] += 1


class Index:
    """The sequences of a run. Threads may share it: they wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._results: OrderedDict[Filter, tuple[int, array[int]]] = OrderedDict()
        self._open()

    def _open(self) -> None:
        # "" is SQLite's private temporary file; it needs neither a journal nor a flushed disk
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._db.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_TABLES}")
        self._in_prompts, self._in_responses = Texts(), Texts()
        self._prompts: set[int] = set()
        self.values, self.count = Values(), 0

    def _shut(self) -> None:
        for each in (self._db, self._in_prompts, self._in_responses):
            each.close()

    def close(self) -> None:
        """Delete the index."""
        with self._lock:
            self._shut()

    def clear(self) -> None:
        """Forget all sequences."""
        with self._lock:
            self._shut()
            self._results.clear()
            self._open()

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Add sequences in their order in the run.

        Raises:
            DataError: the disk of the temporary file is full.
        """
        rows = list(sequences)
        with self._lock, _explained():
            first = self.count + 1
            keys = [prompt_key(each.prompt) for each in rows]
            self._db.execute("BEGIN")
            fresh = {k: s.prompt for k, s in zip(keys, rows, strict=True) if k not in self._prompts}
            self._db.executemany(
                "INSERT INTO prompt VALUES (?, ?)", [(k, _valid(p)) for k, p in fresh.items()]
            )
            self._db.executemany(
                "INSERT INTO response VALUES (?, ?)",
                [(n, _valid(s.response)) for n, s in enumerate(rows, first)],
            )
            self._db.executemany(
                "INSERT INTO sequence VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (n, s.stage, s.step, s.number, s.version, key, s.reward, s.kl, s.length,
                     s.in_tokens, s.finish, _valid(s.dropped), _valid(s.terms))
                    for (n, s), key in zip(enumerate(rows, first), keys, strict=True)
                ],
            )  # fmt: skip
            self._db.execute("COMMIT")
            self._in_prompts.add(fresh.items())
            self._in_responses.add((n, s.response) for n, s in enumerate(rows, first))
            self._prompts.update(fresh)
            self.count += len(rows)
            for each in rows:
                self.values.add(each)

    def find(self, wanted: Filter) -> Result:
        """One page of the sequences that a filter lets through; a page too far is the last."""
        with self._lock, _explained():
            ids = self._ids(wanted)
            pages = max(1, -(-len(ids) // PAGE))
            page = min(wanted.page, pages)
            shown = [self._row(i) for i in ids[(page - 1) * PAGE : page * PAGE]]
        return Result([found for found in shown if found], len(ids), page, pages)

    def sequence(self, number: int) -> Found | None:
        """The sequence of a number."""
        with self._lock, _explained():
            return self._row(number)

    def of_prompt(self, key: int, most: int) -> list[Found]:
        """Up to `most` responses to one prompt, in their order in the run."""
        with self._lock, _explained():
            rows = self._db.execute(
                f"SELECT {_COLUMNS} FROM {_JOINED} WHERE s.prompt = ? ORDER BY s.id LIMIT ?",
                (key, most),
            ).fetchall()
        return [_found(row) for row in rows]

    def _row(self, number: int) -> Found | None:
        row = self._db.execute(
            f"SELECT {_COLUMNS} FROM {_JOINED} WHERE s.id = ?", (number,)
        ).fetchone()
        return _found(row) if row else None

    def _ids(self, wanted: Filter) -> array[int]:
        """The numbers of all sequences that a filter lets through, in its order."""
        key = replace(wanted, page=1)
        known = self._results.get(key)
        if known is None or known[0] != self.count:
            where, values = conditions(wanted)
            order = ORDERS[wanted.order][1]
            rows = self._db.execute(
                f"SELECT id, prompt FROM sequence{where} ORDER BY {order}", values
            )
            known = (self.count, array("q", self._with_text(rows, wanted.text)))
            self._results[key] = known
        self._results.move_to_end(key)
        if len(self._results) > _REMEMBERED:
            self._results.popitem(last=False)
        return known[1]

    def _with_text(self, rows: Iterable[tuple[int, int]], text: str) -> list[int]:
        """The sequences (number, prompt) that hold a text in prompt or response, in their order."""
        if not text:
            return [number for number, _ in rows]
        prompts, responses = self._in_prompts.find(text), self._in_responses.find(text)
        return [number for number, prompt in rows if number in responses or prompt in prompts]


def conditions(wanted: Filter) -> tuple[str, list[object]]:
    """All of a filter but its text, as SQL."""
    parts: list[str] = []
    values: list[object] = []
    for column in ("stage", "version", "finish"):
        if value := getattr(wanted, column):
            parts.append(f"{column} = ?")
            values.append(_valid(value))
    if wanted.dropped in (ANY_DROP, TRAINED):
        parts.append("dropped <> ''" if wanted.dropped == ANY_DROP else "dropped = ''")
    elif wanted.dropped:
        parts.append("dropped = ?")
        values.append(_valid(wanted.dropped))
    for column in ("step", "reward", "kl", "length"):
        for end, sign in (("from", ">="), ("to", "<=")):
            bound = getattr(wanted, f"{column}_{end}")
            if bound is not None:
                parts.append(f"{column} {sign} ?")
                values.append(bound)
    return (" WHERE " + " AND ".join(parts) if parts else ""), values


def _valid(text: str) -> str:
    # JSON can hold half of a surrogate pair, which SQLite's UTF-8 cannot
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _found(row: tuple) -> Found:
    number, stage, step, own, version, prompt, response, reward, kl, length, tokens, *rest = row
    return Found(
        number,
        Sequence(stage, step, own, version, prompt, response, reward, kl, length, bool(tokens),
                 *rest),
    )  # fmt: skip


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise DataError(
            f"the index of the sequences cannot be used: {error}",
            where="a temporary file",
            fix="make room on that disk, or set TMPDIR to a folder on another one",
        ) from error
