"""From a file of any usual shape to examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

from workers.data.formats.jsonl import Line
from workers.data.formats.lines import Meter
from workers.data.formats.readers import Row, scan_rows
from workers.data.recognise import rankings_by_fields, shapes
from workers.data.recognise.columns import ColumnMap, Columns, check_columns, check_found
from workers.data.recognise.rankings_by_labels import Rankings
from workers.data.recognise.signs import contradicted_by
from workers.data.rows.examples import Comparison, Example, Rejected
from workers.data.rows.fields import ANNOTATORS, USERS
from workers.data.rows.meaning import check_row, marks_read
from workers.data.rows.unusable import Unusable
from workers.errors import DataLineError

Kind = Literal["demonstrations", "comparisons", "prompts", "pretraining"]
OnBadLine = Literal["fail", "drop"]
SHAPES: dict[Kind, Callable[[Line, str], Iterator[Example]]] = {
    "demonstrations": shapes.demonstrations,
    "comparisons": rankings_by_fields.comparisons,
    "prompts": shapes.prompts,
    "pretraining": shapes.documents,
}
_ABOUT = {"id", *USERS, *ANNOTATORS}  # columns that are read where there is a use for them
_MOST_NAMES = 1000  # of unread columns that are remembered


@dataclass(slots=True)
class Noted:
    """What reading found out about a data set besides its examples."""

    rows: int = 0  # that gave examples
    unread: Counter[str] = field(default_factory=Counter)  # column -> rows in which nobody read it
    labels: str = ""  # how labels were read, and what speaks against them; "" = nothing to say

    def unread_columns(self) -> list[str]:
        """Columns of which no part was read, those of most rows first."""
        return [name for name, _ in self.unread.most_common()]


MOST_COMPLETIONS = 256  # of one ranking, which a reward model reads as one element


def read_examples(
    path: str,
    kind: Kind,
    *,
    format: str = "auto",  # noqa: A002
    columns: Columns | None = None,
    split: str = "train",
    subset: str = "",
    name: str = "",
    on_bad_line: OnBadLine = "fail",
    meter: Meter | None = None,
    noted: Noted | None = None,
) -> Iterator[Example | Rejected]:
    """Yield the examples of a data set in order; a row that cannot be used is a `Rejected`.

    Args:
        path: File, folder or Hugging Face id, as `read_rows` takes it.
        kind: What the rows are to be read as.
        format: As `read_rows` takes it.
        columns: Canonical field to column, where the names of a data set are its own.
        split: Of a data set with several, which one.
        subset: Of a Hugging Face data set with several configurations, which one.
        name: Name of the data set that examples carry as `source`.
        on_bad_line: "fail" raises on a line that cannot be read; "drop" makes it a `Rejected` of
            the reason "bad line".
        meter: Told how far reading has come.
        noted: Told what else was found out.

    Raises:
        ConfigError: If `columns` names a field that there is not.
        DataError: As `read_rows`; if a mapped column is in no row; if the labels of
            `columns.better` can be read in more than one way.
        DataLineError: On a bad line, or a row whose shape is not recognised.
    """
    columns = columns or {}
    check_columns(columns)
    noted = noted or Noted()
    reader = _Reader(kind, columns, path, name)
    if kind == "comparisons":
        reader.survey(scan_rows(path, format=format, split=split, subset=subset), noted)
    for row in scan_rows(path, format=format, split=split, subset=subset, meter=meter):
        try:
            if isinstance(row, DataLineError):
                raise row
            # as a list: of a row of which a part is bad, no part is used
            yield from list(reader.examples(row, noted))
        except Unusable as unusable:
            yield Rejected(str(unusable), row.where, name)
        except DataLineError as error:
            if on_bad_line == "fail":
                raise
            yield Rejected("bad line", error.where, name)
    reader.check_done()
    reader.say_contradictions(noted)


class _Reader:
    """From rows of one data set to examples."""

    def __init__(self, kind: Kind, columns: Columns, path: str, name: str) -> None:
        self._kind: Kind = kind
        self._columns = columns
        self._path = path
        self._name = name
        self._mapping = ColumnMap(columns)
        self._mapped = self._mapping.columns_of(set(columns))
        self._rankings: Rankings | None = None
        self._seen: set[bytes] = set()
        self._held: Counter[str] = Counter()  # columns of rows whose ranking is not complete
        self._pairs = 0
        self._contradicted: Counter[tuple[str, str]] = Counter()  # by which columns of scores

    def survey(self, rows: Iterator[Row], noted: Noted) -> None:
        """Find out what a ranking needs to know of all rows."""
        self._rankings = Rankings(self._columns, self._usable, self._path)
        noted.labels = self._rankings.survey(rows)

    def examples(self, row: Line, noted: Noted) -> Iterator[Example]:
        """The examples of a row; none where further rows of its prompt follow.

        Raises:
            DataLineError: If the row cannot be read.
            Unusable: If it is of no use.
        """
        line = self._usable(row)
        whole = self._rankings.whole(line) if self._rankings else line
        here = Counter(name for name, value in row.fields.items() if value is not None)
        if whole is None:
            self._held += here
            return
        here += self._held
        self._held.clear()
        examples = list(SHAPES[self._kind](whole, self._name))
        if "chosen" in whole.used:
            self._pairs += 1
            if columns := contradicted_by(row):
                self._contradicted[columns] += 1
        read = self._mapping.columns_of(line.used | whole.used | _ABOUT)
        _note(noted, here, read | marks_read(row, self._kind))
        if _is_repeated(whole, examples, self._seen):
            raise Unusable("duplicate id")
        if any(_too_many(each) for each in examples):
            raise Unusable(f"over {MOST_COMPLETIONS} completions")
        yield from examples

    def check_done(self) -> None:
        """Refuse what is known to be wrong only now that all rows have been read.

        Raises:
            DataError: If a mapped column was in no row, or the data set changed meanwhile.
        """
        check_found(self._mapping, self._path)
        if self._rankings:
            self._rankings.check_done()

    def say_contradictions(self, noted: Noted) -> None:
        """Say where the scores of a pair are against its order, which is taken as it is written."""
        for (one, other), rows in self._contradicted.items():
            noted.labels += "; " if noted.labels else ""
            noted.labels += (
                f'"{one}" and "{other}": by these the rejected completion is the better one in '
                f"{rows:,} of {self._pairs:,} rows (read as the worse one)"
            )

    def _usable(self, row: Line) -> Line:
        line = self._mapping.map(row)
        check_row(row, self._kind, self._mapped)
        return line


def _note(noted: Noted, columns: Counter[str], read: set[str]) -> None:
    noted.rows += 1
    for column, rows in columns.items():
        known = column in noted.unread or len(noted.unread) < _MOST_NAMES
        if column not in read and known:
            noted.unread[column] += rows


def _too_many(example: Example) -> bool:
    return isinstance(example, Comparison) and len(example.completions) > MOST_COMPLETIONS


def _is_repeated(line: Line, examples: Sequence[Example], seen: set[bytes]) -> bool:
    """Whether the same row came before, by its id.

    Rankings often carry the id of their prompt: they are the same only if the same annotator ranked
    the same completions. An id is remembered by a digest, in about 75 bytes of memory.
    """
    if line.fields.get("id") is None:
        return False
    parts = [line.name("id")]
    for example in examples:
        if isinstance(example, Comparison):
            parts += [example.annotator, *example.completions]
    digest = blake2b("\x1e".join(parts).encode(), digest_size=8).digest()
    if digest in seen:
        return True
    seen.add(digest)
    return False
