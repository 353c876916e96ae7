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

_UNIONS = (typing.Union, types.UnionType)


def filled(record: type[S], values: Mapping[str, object], key: Callable[[str], str]) -> S:
    """The record with these values; the others are its defaults.

    Args:
        record: A dataclass that `check_record` accepts.
        values: Value of each field.
        key: Configuration key of a field, for errors.

    Raises:
        UnknownKeyError: There is no such field.
        ConfigError: A value has another type, or is missing.
    """
    kinds = typing.get_type_hints(record)
    fields = {each.name: each for each in dataclasses.fields(typing.cast(Any, record)) if each.init}
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, 1, 0.5) or list(fields)
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


def check_record(record: object) -> None:
    """Require a dataclass with fields of types that a configuration has.

    Raises:
        TypeError: it is something else, or a field has another type.
    """
    if not (isinstance(record, type) and dataclasses.is_dataclass(record)):
        raise TypeError(f"the settings are {record!r}: they must be a class with @dataclass")
    try:
        kinds = typing.get_type_hints(record)
    except NameError as error:
        raise TypeError(f"the type of a field of {record.__name__} is unknown: {error}") from error
    for each in dataclasses.fields(record):
        if each.init and not _is_plain(kinds[each.name]):
            raise TypeError(
                f"{record.__name__}.{each.name} is of type {_words(kinds[each.name])}: a setting "
                "is bool, int, float, str, list, dict, Literal, one of several of these, or None"
            )


def _is_plain(kind: Any) -> bool:
    origin, within = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal or kind in (Any, bool, int, float, str, types.NoneType):
        return True
    if origin in _UNIONS:
        return all(map(_is_plain, within))
    return (origin or kind) in (list, dict) and all(map(_is_plain, within))


def _words(kind: Any) -> str:
    whole = typing.get_origin(kind) is None
    return (whole and getattr(kind, "__name__", None)) or str(kind).replace("typing.", "")


def _typed(value: object, kind: Any, key: str) -> object:
    kinds = typing.get_args(kind) if typing.get_origin(kind) in _UNIONS else (kind,)
    if _is(value, kind):
        return value
    if float in kinds and _is(value, int) and abs(typing.cast(int, value)) <= 2**53:
        return float(typing.cast(int, value))
    words = _words(kind)
    quoted = f"; text that looks like something else: {key}='\"{value}\"'" if str in kinds else ""
    raise ConfigError(
        f"{key}={value!r} is of type {type(value).__name__}, not {words}",
        where=key,
        fix=f"give a value of type {words}{quoted}",
    )


def _is(value: object, kind: Any) -> bool:
    origin, within = typing.get_origin(kind), typing.get_args(kind)
    if origin in _UNIONS:
        return any(_is(value, each) for each in within)
    if origin is typing.Literal:
        return any(value == each and type(value) is type(each) for each in within)
    if kind is Any or isinstance(value, bool):
        return kind in (Any, bool)
    if not isinstance(value, origin or kind):
        return False
    if isinstance(value, list) and within:
        takes = within[0] | int if within[0] is float else within[0]
        return all(_is(each, takes) for each in typing.cast(list[object], value))
    return True
