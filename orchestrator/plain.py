"""Records to plain JSON values and back, driven by their type annotations."""

from __future__ import annotations

import types
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints


def from_plain(kind: Any, value: Any) -> Any:
    """The inverse of `dataclasses.asdict` after a way through JSON.

    Args:
        kind: a dataclass, or an annotation made of dataclasses, list, tuple, dict (of str or int),
            `| None` and JSON's own types.
        value: what JSON gave.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if value is None:
        return None
    if origin in (Union, types.UnionType):
        return from_plain(next(each for each in inner if each is not type(None)), value)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        # a field that is newer than the file has its default
        given = [f.name for f in fields(kind) if f.name in value or _is_required(f)]
        return kind(  # type: ignore[operator]
            **{name: from_plain(hints[name], value[name]) for name in given}
        )
    if origin is dict:
        # JSON's keys are strings.
        return {inner[0](key): from_plain(inner[1], each) for key, each in value.items()}
    if origin is list or (origin is tuple and inner[-1] is Ellipsis):
        return origin(from_plain(inner[0], each) for each in value)
    if origin is tuple:
        return tuple(from_plain(k, each) for k, each in zip(inner, value, strict=True))
    return value


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
