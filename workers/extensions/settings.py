"""Settings of an extension: a record of its own, filled with values of the configuration.

The schema cannot declare keys of parts that it does not know, so they are checked here.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from workers.errors import ConfigError, UnknownKeyError

S = TypeVar("S")


def filled(record: type[S], values: Mapping[str, object], key: Callable[[str], str]) -> S:
    """The record with these values; the others are its defaults.

    Args:
        record: A dataclass. Its fields are bool, int, float, str, lists, and these or None.
        values: Value of each field.
        key: Configuration key of a field, for errors.

    Raises:
        UnknownKeyError: There is no such field.
        ConfigError: A value has another type, or is missing.
    """
    kinds = typing.get_type_hints(record)
    fields = {each.name: each for each in dataclasses.fields(typing.cast(Any, record))}
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1, 0.5) or list(fields)
            known = f"did you mean {' or '.join(map(key, near))}?" if near else "it has no keys"
            raise UnknownKeyError(f"unknown key {key(name)}", where=key(name), fix=known)
    for name, each in fields.items():
        required = (
            each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        )
        if name not in values and required:
            raise ConfigError(
                f"{key(name)} is not set", where=key(name), fix=f"set {key(name)}=VALUE"
            )
    return record(**{name: _typed(value, kinds[name], key(name)) for name, value in values.items()})


def _typed(value: object, kind: Any, key: str) -> object:
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if any(_is(value, each) for each in kinds):
        return value
    if float in kinds and _is(value, int):
        return float(typing.cast(int, value))
    words = getattr(kind, "__name__", None) or str(kind)
    quoted = f"; text that looks like something else: {key}='\"{value}\"'" if str in kinds else ""
    raise ConfigError(
        f"{key}={value!r} is of type {type(value).__name__}, not {words}",
        where=key,
        fix=f"give a value of type {words}{quoted}",
    )


def _is(value: object, kind: Any) -> bool:
    plain = typing.get_origin(kind) or kind
    if isinstance(value, bool):
        return plain is bool
    return plain is Any or isinstance(value, plain)
