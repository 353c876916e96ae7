"""Ranges of configuration values: declared with each field, checked over the whole configuration.

A field of the schema declares its range (`clip: float = positive(0.2)`), and `check_tree` walks
sections, lists, dictionaries and optional values, so that no key is missed and every message names
the full dotted key. Fields without a declared range have defaults: a number must be finite, a text
must have no control characters, a list must have no duplicates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from workers.errors import ConfigError

MOST_SECONDS = 1e9  # about 30 years: timers of the standard library overflow above 9e9
_MOST_COUNT = 10**9
_MOST_FLOAT = 1e15
_LEAST_FLOAT = 1e-30  # smallest nonzero magnitude: dividing by it stays finite
_MOST_SEED = 2**63 - 1
_MOST_NAME_BYTES = 255  # per component of a path, on the usual file systems
_MOST_PATH_BYTES = 4095
_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a key may have; the ends are included unless they are open."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` is in the range; NaN is in no range."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        tiny = isinstance(value, float) and 0 < abs(value) < _LEAST_FLOAT
        return above and below and not tiny

    def words(self) -> str:
        """The range in words."""
        low = f"above {self.low:,g}" if self.open_low else f"at least {_number(self.low)}"
        return f"{low} and {'below' if self.open_high else 'at most'} {_number(self.high)}"

    def short(self) -> str:
        """The range in words, without a bound that only keeps arithmetic finite."""
        if self.low <= -_MOST_COUNT and self.high >= _MOST_COUNT:
            return ""
        return self.words().partition(" and ")[0] if self.high >= _MOST_COUNT else self.words()


@dataclass(frozen=True, slots=True)
class Text:
    """The texts that a key may have."""

    needed: bool = False  # "" is refused
    is_path: bool = False  # path and components must be short enough for a file system
    is_name: bool = False  # one path component, not "." or ".."
    lines: bool = False  # line breaks and tabs are allowed
    secret: bool = False  # messages do not show it


_ANY_FLOAT = Range(-_MOST_FLOAT, _MOST_FLOAT)
_ANY_INT = Range(-_MOST_COUNT, _MOST_COUNT)
_ANY_TEXT = Text()
PATH = {"limits": Text(needed=True, is_path=True)}  # metadata of a field without a default


@runtime_checkable
class Checked(Protocol):
    """A section that also checks its values against each other."""

    def check(self, key: str) -> None:
        """Raise ConfigError if values conflict; `key` is the section's key, "" for the root."""


def positive(default: float | None, most: float | None = None) -> Any:
    """A number above 0; an integer of at least 1."""
    whole = isinstance(default, int)
    high = most if most is not None else _MOST_COUNT if whole else _MOST_FLOAT
    return _field(default, Range(1, high) if whole else Range(0, high, open_low=True))


def at_least(low: float, default: float | None, most: float | None = None) -> Any:
    """A number of at least `low`."""
    high = most if most is not None else _MOST_FLOAT if isinstance(default, float) else _MOST_COUNT
    return _field(default, Range(low, high))


def above_one(default: float | None) -> Any:
    """A number above 1."""
    return _field(default, Range(1, _MOST_FLOAT, open_low=True))


def any_number(default: float) -> Any:
    """A number of either sign."""
    return _field(default, Range(-_MOST_FLOAT, _MOST_FLOAT))


def fraction(default: float | None) -> Any:
    """A number from 0 to 1."""
    return _field(default, Range(0, 1))


def below_one(default: float) -> Any:
    """A number from 0 to 1, excluding 1."""
    return _field(default, Range(0, 1, open_high=True))


def between(low: float, default: float, high: float) -> Any:
    """A number between two bounds, which are included for integers and excluded for floats."""
    is_open = isinstance(default, float)
    return _field(default, Range(low, high, open_low=is_open, open_high=is_open))


def seconds(default: float, *, or_none: bool = False) -> Any:
    """A time in seconds above 0; with `or_none` also 0, which then has a special meaning."""
    return _field(default, Range(0, MOST_SECONDS, open_low=not or_none))


def any_seed(default: int) -> Any:
    """A seed of random numbers."""
    return _field(default, Range(0, _MOST_SEED))


def path(default: str, *, needed: bool = False) -> Any:
    """A file or a folder."""
    return _field(default, Text(needed=needed, is_path=True))


def name(default: str) -> Any:
    """A name that can be used for a folder."""
    return _field(default, Text(needed=True, is_name=True))


def words(default: str) -> Any:
    """A text that may have several lines."""
    return _field(default, Text(lines=True))


def secret(default: str) -> Any:
    """A text that may contain a secret by mistake, so messages do not show it."""
    return _field(default, Text(secret=True))


def needed(default: str) -> Any:
    """A text that is not empty."""
    return _field(default, Text(needed=True))


def _field(default: object, limits: Range | Text) -> Any:
    return dataclasses.field(default=default, metadata={"limits": limits})


def limits_of(each: dataclasses.Field[Any]) -> Range | Text | None:
    """The limits declared for a field, or None."""
    return each.metadata.get("limits")


def paths_of(section: object) -> Iterator[tuple[str, str]]:
    """Every key below a section that is declared as a path, with its value."""
    for each, its_key in _sections(section, ""):
        for declared in dataclasses.fields(each):
            limits = limits_of(declared)
            if isinstance(limits, Text) and limits.is_path:
                yield _join(its_key, declared.name), str(getattr(each, declared.name))


def check_tree(section: object, key: str = "") -> None:
    """Check every value below a section, then run each section's own `check`.

    Args:
        section: A dataclass, such as the whole Config.
        key: Its dotted key; "" for the root.

    Raises:
        ConfigError: Names the full key, the value, and what is allowed.
    """
    sections = list(_sections(section, key))
    for each, its_key in sections:
        for declared in dataclasses.fields(each):
            value = getattr(each, declared.name)
            _check_value(value, _join(its_key, declared.name), limits_of(declared))
    for each, its_key in sections:
        if isinstance(each, Checked):
            each.check(its_key)


def _sections(section: Any, key: str) -> Iterator[tuple[Any, str]]:
    """A section and those below it, each with its dotted key."""
    yield section, key
    for declared in dataclasses.fields(section):
        value, its_key = getattr(section, declared.name), _join(key, declared.name)
        if declared.default_factory is not dataclasses.MISSING:
            wanted = type(declared.default_factory())
            if not isinstance(value, wanted):  # an interpolation (`${model}`) gave another section
                raise ConfigError(
                    f"{its_key} holds what belongs to another key ({type(value).__name__})",
                    where=its_key,
                    fix=f"set the keys below {its_key} one by one",
                )
        if dataclasses.is_dataclass(value):
            yield from _sections(value, its_key)
        elif isinstance(value, Mapping):
            for inner, each in value.items():
                if dataclasses.is_dataclass(each):
                    yield from _sections(each, _join(its_key, str(inner)))


def _check_value(value: object, key: str, limits: Range | Text | None) -> None:
    if isinstance(value, bool | Enum) or value is None:
        return
    if isinstance(value, int | float):
        default = _ANY_FLOAT if isinstance(value, float) else _ANY_INT
        _check_number(value, key, limits if isinstance(limits, Range) else default)
    elif isinstance(value, str):
        _check_text(value, key, limits if isinstance(limits, Text) else _ANY_TEXT)
    elif isinstance(value, list):
        _check_list(value, key)
    elif isinstance(value, Mapping):
        for inner, each in value.items():
            _check_text(str(inner), f"a name in {key}", Text(needed=True))
            _check_value(each, _join(key, str(inner)), None)


def _check_number(value: float, key: str, limits: Range) -> None:
    if limits.holds(value):
        return
    shown = _shown(str(value)) if isinstance(value, int) else repr(value)
    finite = isinstance(value, int) or math.isfinite(value)
    kind = "a whole number" if isinstance(value, int) else "a number"
    raise ConfigError(
        f"{key}={shown} is " + ("out of range" if finite else "not a finite number"),
        where=key,
        fix=f"set {key} to {kind} {limits.words()}",
    )


def _check_text(value: str, key: str, limits: Text) -> None:
    trouble = _trouble(value, limits)
    if trouble is not None:
        what, fix = trouble
        given = key if limits.secret else f"{key}={_shown(repr(value))}"
        raise ConfigError(f"{given} {what}", where=key, fix=fix)


def _trouble(value: str, limits: Text) -> tuple[str, str] | None:
    """What is wrong with a text and how to fix it; None when it is valid."""
    allowed = "\n\t" if limits.lines else ""
    bad = next((c for c in value if ord(c) < 32 or ord(c) == 127 if c not in allowed), None)
    if bad is not None:
        return f"holds the control character {bad!r}", "write it without"
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return "is not valid UTF-8", "write it in UTF-8, or give the file another name"
    if limits.needed and not value.strip():
        return "is empty", "give a value, or leave the key out to keep the default"
    if limits.is_name and ("/" in value or value in (".", "..") or size > _MOST_NAME_BYTES):
        return "is not the name of one folder", "write a short name without slashes"
    if limits.is_path:
        longest = max(len(part.encode()) for part in value.split("/"))
        if longest > _MOST_NAME_BYTES or size > _MOST_PATH_BYTES:
            return (
                f"is too long for a path: a part of it has {longest:,} bytes, all {size:,}",
                f"name parts of at most {_MOST_NAME_BYTES} bytes, {_MOST_PATH_BYTES:,} together",
            )
    return None


def _check_list(values: list[Any], key: str) -> None:
    for index, each in enumerate(values):
        if each is None or (isinstance(each, str) and not each.strip()):
            raise ConfigError(
                f"entry {index} of {key} is empty", where=key, fix=f"write {key}=[] for none"
            )
        if each in values[:index]:
            raise ConfigError(
                f"{key} names {_plain(each)} twice", where=key, fix="name each entry once"
            )
        _check_value(each, f"{key}.{index}", None)


def _plain(value: object) -> str:
    return _shown(str(value.value if isinstance(value, Enum) else value))


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
