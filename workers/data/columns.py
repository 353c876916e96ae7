"""Which columns of a data set hold what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from workers.data.jsonl import Line
from workers.errors import ConfigError

Columns = Mapping[str, str | Sequence[str]]

# Fields that say who or what a row is; the others say what it holds.
ABOUT = ("id", "user", "annotator")
FIELDS = (
    *("prompt", "question", "instruction", "input", "system", "messages", "turns", "instances"),
    *("completion", "answer", "output", "chosen", "rejected", "completions", "ranks", "scores"),
    *("text", *ABOUT),
)
_LISTS = ("completions", "ranks", "scores")


def check_columns(columns: Mapping[str, object], where: str = "columns") -> None:
    """Check the keys of a mapping, and that names or lists of names stand where they belong.

    Raises:
        ConfigError: If a key is no canonical field, a column is no text, or a list of columns
            stands for one value.
    """
    for field, source in columns.items():
        if field not in FIELDS:
            near = get_close_matches(field, FIELDS, n=1, cutoff=0.5)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"no field {field!r} to map a column to",
                where=where,
                mend=f"{guess}fields: {', '.join(FIELDS)}",
            )
        if isinstance(source, list | tuple) and field not in _LISTS:
            raise ConfigError(
                f"{field!r} holds one value, not a list of columns",
                where=f"{where}.{field}",
                mend=f"name one column; lists are for {', '.join(_LISTS)}",
            )
        for name in source if isinstance(source, list | tuple) and source else [source]:
            if not isinstance(name, str) or not name:
                raise ConfigError(
                    f"{name!r} names no column",
                    where=f"{where}.{field}",
                    mend="give the name of a column as text, a number in quotation marks: '\"3\"'",
                )


def map_columns(line: Line, columns: Columns) -> Line:
    """The line with its fields under their canonical names.

    `columns` maps a canonical field to the path of a column, or to a list of paths whose values
    make a list. A path is the name of a column, or names and list places joined by dots:
    "turns.0", "6b_finetuning.solution". Where the mapping names anything that a row holds, only
    mapped columns are seen, so that no other column is taken for a part of the row; where it names
    nothing but ids, users and annotators, the other columns stay.

    Raises:
        DataLineError: If a mapped column is missing; names the path.
    """
    if not columns:
        return line
    mapped: dict[str, object] = {}
    if all(field in ABOUT for field in columns):
        mapped.update(line.fields)
    for field, source in columns.items():
        if isinstance(source, str):
            mapped[field] = _value(line, source)
        else:
            mapped[field] = [_value(line, path) for path in source]
    return Line(mapped, line.where, line.typed)


def _value(line: Line, path: str) -> object:
    if path in line.fields:  # a name may hold a dot itself
        return line.fields[path]
    value: object = line.fields
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            line.fail(
                f'column "{path}" is missing (found {line.found()})',
                mend="correct data.columns, or this line",
            )
    return value
