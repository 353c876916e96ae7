"""Records for workers, filled from the configuration by the names of their fields."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any, TypeVar, cast

S = TypeVar("S")


def from_sections(record: type[S], *sections: object, **derived: object) -> S:
    """A record each of whose fields is the key of the same name in one of the sections.

    An enumeration becomes its value, a list a tuple.

    Args:
        record: A dataclass.
        sections: Sections of the configuration; keys that the record does not have are left out.
        derived: Fields whose values are computed.

    Raises:
        TypeError: A field is neither derived nor in exactly one section, or there is no such field.
    """
    values = dict(derived)
    for each in dataclasses.fields(cast(Any, record)):
        if each.name in derived:
            continue
        found = [section for section in sections if each.name in _names(section)]
        if len(found) != 1:
            places = ", ".join(type(section).__name__ for section in found or sections)
            how = "in several of" if found else "neither derived nor in"
            raise TypeError(f"{record.__name__}.{each.name} is {how} {places}")
        values[each.name] = plain(getattr(found[0], each.name))
    return record(**values)


def _names(section: object) -> set[str]:
    return {each.name for each in dataclasses.fields(cast(Any, section))}


def plain(value: Any) -> Any:
    """The value of a key as workers get it."""
    if isinstance(value, Enum):
        return value.value
    return tuple(value) if isinstance(value, list) else value
