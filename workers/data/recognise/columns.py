"""Map the columns of a data set to canonical fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from workers.data.formats.line import Line, kind_of
from workers.data.recognise.labels import check_better
from workers.errors import ConfigError, DataError

# A path, a list of paths (of "better": one per annotator) or, for "better" alone, a mapping with
# the keys of `workers.data.recognise.labels`.
Columns = Mapping[str, str | Sequence[str] | Mapping[str, object]]

# Fields that identify a row or a person; the others hold content.
ABOUT = ("id", "user", "annotator")
FIELDS = (
    *("prompt", "question", "instruction", "input", "system", "messages", "turns", "instances"),
    *("history", "completion", "answer", "output", "chosen", "rejected", "completions", "ranks"),
    *("scores", "better", "rank", "score", "text", *ABOUT),
)
_LISTS = ("completions", "ranks", "scores", "better")
_EACH = "*"  # in a path: every entry of a list


def check_columns(columns: Mapping[str, object], where: str = "columns") -> None:
    """Check that the keys are canonical fields, and the values names or lists of names.

    Raises:
        ConfigError: If a key is not a canonical field, a column is not text, or a field of one
            value has a list of columns.
    """
    if "better" in columns and (columns.keys() & {"ranks", "scores"}):
        raise ConfigError(
            "ranks or scores together with better: give only one of them",
            where=f"{where}.better",
            fix="map one of them",
        )
    for field, source in columns.items():
        if field not in FIELDS:
            near = get_close_matches(field, FIELDS, n=1, cutoff=0.5)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"no field {field!r} to map a column to",
                where=where,
                fix=f"{guess}fields: {', '.join(FIELDS)}",
            )
        if field == "better" and isinstance(source, Mapping):
            check_better(source, f"{where}.better")
            continue
        if isinstance(source, list | tuple) and field not in _LISTS:
            raise ConfigError(
                f"{field!r} holds one value, not a list of columns",
                where=f"{where}.{field}",
                fix=f"name one column; lists are for {', '.join(_LISTS)}",
            )
        for name in source if isinstance(source, list | tuple) and source else [source]:
            if not isinstance(name, str) or not name:
                raise ConfigError(
                    f"{name!r} names no column",
                    where=f"{where}.{field}",
                    fix="give the name of a column as text, a number in quotation marks: '\"3\"'",
                )


class ColumnMap:
    """Renames the fields of rows to their canonical names.

    `columns` maps a canonical field to the path of a column, or to a list of paths whose values
    form a list. A path is the name of a column, or names and list indices joined by dots:
    "turns.0", "6b_finetuning.solution"; `*` means each entry of a list: "answers.*.text".
    If the mapping names a field of content, only mapped columns are read, so that no other column
    is mistaken for a part of the row; if it names only ids, users and annotators, the other columns
    stay. A column that a row lacks is null in it.
    """

    def __init__(self, columns: Columns) -> None:
        self._paths = {field: _paths(source) for field, source in columns.items()}
        self._single = {f for f, source in columns.items() if not isinstance(source, list | tuple)}
        self._keeps_others = all(field in ABOUT for field in columns)
        self._unseen = {path for paths in self._paths.values() for path in paths}
        #: Field -> the columns that are mapped to it, for messages.
        self.names = {field: ", ".join(paths) for field, paths in self._paths.items()}

    def map(self, line: Line) -> Line:
        """One row under canonical names, without its null fields."""
        if not self._paths:
            return line.without_nulls()
        mapped: dict[str, object] = dict(line.fields) if self._keeps_others else {}
        for field, paths in self._paths.items():
            values = [self._value(line, path) for path in paths]
            mapped[field] = values[0] if field in self._single else values
        return Line(mapped, line.where, line.typed, self.names).without_nulls()

    def missing(self) -> list[str]:
        """The paths that were in no row so far."""
        return sorted(self._unseen)

    def columns_of(self, used: set[str]) -> set[str]:
        """The columns of canonical fields: whole paths and the first parts of the paths."""
        own = used if self._keeps_others or not self._paths else used & self._paths.keys()
        found = {path for field in own for path in self._paths.get(field, [field])}
        return found | {path.split(".")[0] for path in found}

    def _value(self, line: Line, path: str) -> object:
        found, value = column_of(line, path)
        if found:
            self._unseen.discard(path)
        return value


def column_of(line: Line, path: str) -> tuple[bool, object]:
    """Whether a row has the column of a path, and its value; None if not.

    Raises:
        DataLineError: If a value on the path is neither an object nor a list.
    """
    if path in line.fields:  # a name may hold a dot itself
        return True, line.fields[path]
    return _walk(line, path, line.fields, path.split("."))


def check_found(mapping: ColumnMap, where: str) -> None:
    """Refuse a mapping with a column that was in no row of the data set.

    Raises:
        DataError: If there is such a column; names the paths.
    """
    if missing := mapping.missing():
        named = ", ".join(f'"{path}"' for path in missing)
        raise DataError(
            f"no row of the data set has the column {named}",
            where=where,
            fix="correct data.columns, or leave that field out of it",
        )


def _paths(source: str | Sequence[str] | Mapping[str, object]) -> list[str]:
    if isinstance(source, Mapping):
        return [str(source["column"])]
    return [source] if isinstance(source, str) else list(source)


def _walk(line: Line, path: str, value: object, parts: Sequence[str]) -> tuple[bool, object]:
    """Whether a path exists in a value, and its value; a null on the path counts as existing.

    Raises:
        DataLineError: If a value on the path is neither an object nor a list.
    """
    for i, part in enumerate(parts):
        value = line.parsed(value)
        if value is None:
            return True, None
        if isinstance(value, list) and part == _EACH:
            found = [_walk(line, path, each, parts[i + 1 :]) for each in value]
            if value and not any(there for there, _ in found):
                return False, None
            return True, [each for _, each in found]
        if isinstance(value, Mapping) and part != _EACH:
            for end in range(len(parts), i, -1):  # a name may hold dots itself
                name = ".".join(parts[i:end])
                if name in value:
                    return _walk(line, path, value[name], parts[end:])
            return False, None
        if isinstance(value, list) and part.isdecimal():
            if int(part) >= len(value):
                return False, None
            value = value[int(part)]
        else:
            line.fail(
                f'column "{path}" is missing: {kind_of(value)} before "{part}" '
                f"(found {line.found()})",
                fix="correct data.columns, or this line",
            )
    return True, value
