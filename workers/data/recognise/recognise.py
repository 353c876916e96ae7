"""Read the examples of a data set of any accepted shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Literal

from workers.data.formats.line import Line
from workers.data.formats.lines import Meter
from workers.data.formats.readers import Row, scan_rows
from workers.data.recognise import rankings_by_fields, shapes
from workers.data.recognise.columns import (
    ColumnMap,
    Columns,
    check_columns,
    check_found,
    column_of,
)
from workers.data.recognise.rankings_by_labels import Rankings
from workers.data.recognise.signs import contradicted_by
from workers.data.rows.examples import Comparison, Example, PromptExample, Rejected
from workers.data.rows.fields import ANNOTATORS, USERS
from workers.data.rows.kept import pack_columns
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
_ABOUT = {"id", *USERS, *ANNOTATORS}  # columns that are never reported as unread
_MOST_NAMES = 1000  # most names of unread columns that are counted


@dataclass(slots=True)
class Noted:
    """Facts about a data set that reading collects besides its examples."""

    rows: int = 0  # rows or rankings that gave examples
    unread: Counter[str] = field(default_factory=Counter)  # column -> rows in which it was not read
    labels: str = ""  # how labels were interpreted, and scores that contradict them; "" = none

    def unread_columns(self) -> list[str]:
        """Columns that were not read in some rows, by descending number of such rows."""
        return [name for name, _ in self.unread.most_common()]


MOST_COMPLETIONS = 256  # per ranking, which is one element of a reward-model batch


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
    keep: Sequence[str] = (),
    meter: Meter | None = None,
    noted: Noted | None = None,
) -> Iterator[Example | Rejected]:
    """Yield the examples of a data set in order; a row that cannot be used is a `Rejected`.

    Args:
        path: File, folder or Hugging Face id, as in `read_rows`.
        kind: The kind of examples to read the rows as.
        format: As in `read_rows`.
        columns: Canonical field to column, for a data set with other names.
        split: The split to read, if the data set has several.
        subset: The configuration to read, if a Hugging Face data set has several.
        name: Name of the data set, the `source` of the examples.
        on_bad_line: "fail" raises on a line that cannot be read; "drop" yields a `Rejected` with
            the reason "bad line" instead.
        keep: Columns that every row must have, and that its prompts keep; paths as in `ColumnMap`.
        meter: Receives the progress of reading.
        noted: Receives the other facts about the data set.

    Raises:
        ConfigError: If `columns` names an unknown field.
        DataError: As `read_rows`; if a mapped column is in no row; if the labels of
            `columns.better` can be read in more than one way.
        DataLineError: On a bad line, or a row whose shape is not recognised.
    """
    columns = columns or {}
    check_columns(columns)
    noted = noted or Noted()
    reader = _Reader(kind, columns, path, name, keep)
    if kind == "comparisons":
        reader.survey(scan_rows(path, format=format, split=split, subset=subset), noted)
    for row in scan_rows(path, format=format, split=split, subset=subset, meter=meter):
        try:
            if isinstance(row, DataLineError):
                raise row
            # as a list: if one example of a row is bad, none of the row is used
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
    """Turns the rows of one data set into examples."""

    def __init__(
        self, kind: Kind, columns: Columns, path: str, name: str, keep: Sequence[str] = ()
    ) -> None:
        self._kind: Kind = kind
        self._columns = columns
        self._path = path
        self._name = name
        self._keep = keep
        self._mapping = ColumnMap(columns)
        self._mapped = self._mapping.columns_of(set(columns))
        self._rankings: Rankings | None = None
        self._seen: set[bytes] = set()
        self._held: Counter[str] = Counter()  # columns of rows whose ranking is not complete
        self._pairs = 0
        self._contradicted: Counter[tuple[str, str]] = Counter()  # (score columns) -> pairs

    def survey(self, rows: Iterator[Row], noted: Noted) -> None:
        """Scan all rows once for what later ranking of a single row depends on."""
        self._rankings = Rankings(self._columns, self._usable, self._path)
        noted.labels = self._rankings.survey(rows)

    def examples(self, row: Line, noted: Noted) -> Iterator[Example]:
        """The examples of a row; none while further rows of the same ranking follow.

        Raises:
            DataLineError: If the row cannot be read.
            Unusable: If it cannot be used.
        """
        line = self._usable(row)
        whole = self._rankings.whole(line) if self._rankings else line
        here = Counter(name for name, value in row.fields.items() if value is not None)
        if whole is None:
            self._held += here
            return
        here += self._held
        self._held.clear()
        examples = self._with_kept(list(SHAPES[self._kind](whole, self._name)), row)
        if "chosen" in whole.used:
            self._pairs += 1
            if columns := contradicted_by(row):
                self._contradicted[columns] += 1
        read = self._mapping.columns_of(line.used | whole.used | _ABOUT)
        read |= {name for path in self._keep for name in (path, path.split(".")[0])}
        _note(noted, here, read | marks_read(row, self._kind))
        if _is_repeated(whole, examples, self._seen):
            raise Unusable("duplicate id")
        if any(_too_many(each) for each in examples):
            raise Unusable(f"over {MOST_COMPLETIONS} completions")
        yield from examples

    def _with_kept(self, examples: list[Example], row: Line) -> list[Example]:
        if not self._keep:
            return examples
        kept = pack_columns(row, {path: column_of(row, path)[1] for path in self._keep})
        return [
            replace(each, row=kept) if isinstance(each, PromptExample) else each
            for each in examples
        ]

    def check_done(self) -> None:
        """Check what is known only after all rows have been read.

        Raises:
            DataError: If a mapped column was in no row, or the data set changed during reading.
        """
        check_found(self._mapping, self._path)
        if self._rankings:
            self._rankings.check_done()

    def say_contradictions(self, noted: Noted) -> None:
        """Note where scores contradict the order of pairs; the order is used as written."""
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
    """Whether a row with the same id came earlier.

    The id of a ranking is often that of its prompt: rankings count as the same only if the same
    annotator ranked the same completions. Each id is stored as a digest, about 75 bytes of memory.
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
