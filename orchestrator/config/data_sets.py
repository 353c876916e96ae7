"""Schema of `data.sets.NAME`, checked here because Hydra cannot.

Hydra refuses to add an entry to a dictionary of dataclasses from the command line, so `data.sets`
is declared as a dictionary of Any and this module checks its entries.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from typing import Any

from orchestrator.config.ranges import PATH, positive
from workers.data.recognise.columns import check_columns
from workers.data.tokenize.data_sets import SetKind
from workers.errors import ConfigError, UnknownKeyError


@dataclass(slots=True, kw_only=True)
class DataSetConfig:
    """One data set. Data sets of the same kind are mixed in proportion to their weights."""

    kind: SetKind
    """What its rows are used as."""
    path: str = field(metadata=PATH)
    """A file, a folder, or the id of a Hugging Face data set."""
    format: str = "auto"
    """auto | jsonl | json | parquet | csv | text | datasets | package.module:NAME of your own."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Canonical column name -> column name in this data set, where it is not recognised."""
    split: str = "train"
    """Split of a Hugging Face data set."""
    subset: str = ""
    """Configuration of a Hugging Face data set."""
    weight: float = positive(1.0)
    """Share among the data sets of the same kind; only ratios matter."""


KEYS = tuple(each.name for each in fields(DataSetConfig))


def data_set(name: str, given: object) -> DataSetConfig:
    """Convert one entry of data.sets to a DataSetConfig.

    Raises:
        UnknownKeyError: a key that DataSetConfig does not have.
        ConfigError: kind or path is missing, or a value has the wrong type or is out of range.
    """
    if isinstance(given, DataSetConfig):
        return given
    where = f"data.sets.{name}"
    if not isinstance(given, dict):
        raise ConfigError(
            f"{given!r} is no data set",
            where=where,
            fix=f"set {where}.kind=demonstrations {where}.path=FILE",
        )
    values: dict[str, Any] = {str(key): value for key, value in given.items()}
    for key in values:
        if key not in KEYS:
            raise unknown_set_key(name, key)
    for key, usual in (("kind", "demonstrations"), ("path", "FILE")):
        if not values.get(key):
            raise ConfigError(f"no {key} is set", where=where, fix=f"set {where}.{key}={usual}")
    for key in ("path", "format", "split", "subset"):
        if key in values:
            values[key] = _text(values[key], f"{where}.{key}")
    return DataSetConfig(
        **values
        | {
            "kind": _kind(values["kind"], where),
            "columns": _columns(values.get("columns") or {}, where),
            "weight": _weight(values.get("weight", 1.0), where),
        }
    )


def unknown_set_key(name: str, key: str) -> UnknownKeyError:
    """The error for a key that DataSetConfig does not have."""
    near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.5) or KEYS
    return UnknownKeyError(
        f"unknown key data.sets.{name}.{key}",
        where="configuration",
        fix=f"did you mean {' or '.join(f'data.sets.{name}.{each}' for each in near)}?",
    )


def _text(value: object, where: str) -> str:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ConfigError(f"{value!r} is no text", where=where, fix="write one word or a path")
    return str(value)


def _kind(value: object, where: str) -> SetKind:
    if isinstance(value, SetKind):
        return value
    names = [kind.value for kind in SetKind]
    if str(value) in names:
        return SetKind(str(value))
    near = difflib.get_close_matches(str(value), [*names, "rankings"], n=1, cutoff=0.5)
    wanted = "comparisons" if near == ["rankings"] else "".join(near)
    hint = f"did you mean {wanted}? " if wanted else ""
    raise ConfigError(
        f"{value!r} is no kind of data set",
        where=f"{where}.kind",
        fix=f"{hint}kinds: {', '.join(names)}",
    )


def _columns(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(
            f"{value!r} is no column mapping",
            where=f"{where}.columns",
            fix=f"write {where}.columns.prompt=COLUMN",
        )
    columns = {str(key): each for key, each in value.items()}
    check_columns(columns, f"{where}.columns")
    return columns


def _weight(value: object, where: str) -> float:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if number is None or not 0.0 < number < float("inf"):
        raise ConfigError(
            f"weight={value} must be a finite number above 0",
            where=f"{where}.weight",
            fix="give the set's share among the sets of its kind, or leave the set out",
        )
    return float(number)
