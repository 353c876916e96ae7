"""From a file of any usual shape to examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Literal

from workers.data import shapes
from workers.data.columns import Columns, check_columns, map_columns
from workers.data.dialogues import Unusable
from workers.data.examples import Comparison, Example, Rejected
from workers.data.jsonl import Line
from workers.data.lines import Meter
from workers.data.readers import scan_rows
from workers.errors import DataLineError

Kind = Literal["demonstrations", "comparisons", "prompts", "pretraining"]
OnBadLine = Literal["fail", "drop"]
_SHAPES: dict[Kind, Callable[[Line, str], Iterator[Example]]] = {
    "demonstrations": shapes.demonstrations,
    "comparisons": shapes.comparisons,
    "prompts": shapes.prompts,
    "pretraining": shapes.documents,
}

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

    Raises:
        ConfigError: If `columns` names a field that there is not.
        DataError: As `read_rows`.
        DataLineError: On a bad line, or a row whose shape is not recognised.
    """
    columns = columns or {}
    check_columns(columns)
    seen: set[bytes] = set()
    for row in scan_rows(path, format=format, split=split, subset=subset, meter=meter):
        try:
            if isinstance(row, DataLineError):
                raise row
            line = map_columns(row, columns)
            # as a list: of a row of which a part is bad, no part is used
            examples = list(_SHAPES[kind](line, name))
            if _is_repeated(line, examples, seen):
                yield Rejected("duplicate id", line.where, name)
            elif any(_too_many(each) for each in examples):
                yield Rejected(f"over {MOST_COMPLETIONS} completions", line.where, name)
            else:
                yield from examples
        except Unusable as unusable:
            yield Rejected(str(unusable), row.where, name)
        except DataLineError as error:
            if on_bad_line == "fail":
                raise
            yield Rejected("bad line", error.where, name)


def kind_of_data(
    path: str,
    columns: Columns | None = None,
    on_bad_line: OnBadLine = "fail",
    *,
    format: str = "auto",  # noqa: A002
    split: str = "train",
    subset: str = "",
) -> Kind:
    """What a data set can be read as, by its first row or, with "drop", the first one of any shape.

    Raises:
        ConfigError: If `columns` names a field that there is not.
        DataError: As `read_rows`.
        DataLineError: If the row has no shape of any kind; with "drop", if no row has one.
    """
    refused: list[DataLineError] = []
    for row in scan_rows(path, format=format, split=split, subset=subset):
        try:
            if isinstance(row, DataLineError):
                raise row
            return kind_of_row(row, columns)
        except DataLineError as error:
            refused = refused or [error]
            if on_bad_line == "fail":
                break
    raise refused[0]


def kind_of_row(row: Line, columns: Columns | None = None) -> Kind:
    """What a row can be read as, the richest first: comparisons before demonstrations.

    Raises:
        ConfigError: If `columns` names a field that there is not.
        DataLineError: If it has no shape of any kind.
    """
    check_columns(columns or {})
    line = map_columns(row, columns or {})
    kinds: tuple[Kind, ...] = ("comparisons", "demonstrations", "prompts", "pretraining")
    for kind in kinds:
        if _has_shape(line, kind):
            return kind
    raise DataLineError(
        f"a row of no known shape: found {line.found()}",
        where=line.where,
        mend="; ".join(f"{kind}: {accepted}" for kind, accepted in shapes.ACCEPTED.items()),
    )


def _has_shape(line: Line, kind: Kind) -> bool:
    try:
        list(_SHAPES[kind](line, ""))
    except DataLineError:
        return False
    except Unusable:
        return True
    return True


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
