"""Conversion of JSON values to dataclasses, driven by their type annotations."""

from __future__ import annotations

import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from orchestrator.run_files.damage import verified

T = TypeVar("T")


def from_plain(kind: type[T], value: Any) -> T:
    """The inverse of `dataclasses.asdict` followed by JSON; checks types by the annotations.

    Args:
        kind: a dataclass whose fields are dataclasses, list, tuple, dict (of str or int), Literal,
            `| None` and JSON's own types.
        value: the parsed JSON value. Missing fields get their default, as for records of an
            earlier version; fields that the dataclass does not have are ignored.

    Raises:
        TypeError: it is no object, or a field does not match its annotation.
        ValueError: a field without a default is missing, or a number is not finite or too large.
    """
    return verified(_made(kind, value, kind.__name__))


def _made(kind: Any, value: Any, name: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType) and value is not None:
        return _made(next(each for each in inner if each is not type(None)), value, name)
    if is_dataclass(kind):
        return _record(kind, value, name)
    if origin is dict and isinstance(value, dict):
        # JSON's keys are strings.
        return {inner[0](key): _made(inner[1], each, str(key)) for key, each in value.items()}
    if origin is list and isinstance(value, list):
        return [_made(inner[0], each, name) for each in value]
    if origin is tuple and isinstance(value, list):
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) != len(value):
            raise ValueError(f"{name} has {len(value)} entries instead of {len(kinds)}")
        return tuple(_made(k, each, name) for k, each in zip(kinds, value, strict=True))
    return value


def _record(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"{name} is no object")
    needed = [f for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    if missing := [f.name for f in needed if f.name not in value]:
        raise ValueError(f"{name} lacks {', '.join(missing)}")
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind) if f.name in value]
    return kind(**{each: _made(hints[each], value[each], each) for each in names})
