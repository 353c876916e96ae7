"""One row of a data set, and the strict parsing of JSON values."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from dataclasses import field as attribute
from typing import NoReturn

from workers.errors import DataLineError

_FIX = "correct or delete this line"
_IDS = "write names of users, annotators and rows as text or as whole numbers"
_WHOLE = re.compile(r"-?[0-9]+\.0")  # a whole number in a CSV column that also has empty cells
_EXACT = 2.0**53  # larger whole numbers are not exact as floats
_PLACE_CHARACTERS = 200  # of a place within a row; the middle of a longer one is left out
_NULL_LEVELS = 16  # depth to which nulls are removed; no accepted shape is deeper


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a data set, with typed access to its fields."""

    fields: Mapping[str, object]
    where: str  # FILE:LINE, or FILE row N
    typed: bool = True  # False: every value is text, as in CSV; numbers and lists are parsed
    # field -> the column that is mapped to it, for messages
    columns: Mapping[str, str] = attribute(default_factory=dict, compare=False)
    nulls: tuple[str, ...] = attribute(default=(), compare=False)  # removed null fields
    used: set[str] = attribute(default_factory=set, compare=False)  # fields read so far

    def without_nulls(self) -> Line:
        """The row without its null fields, including those of nested objects.

        Null entries of lists stay, so that parallel lists stay aligned. An object whose fields are
        all null, as tables write for a missing value, counts as null.
        """
        fields = {
            key: value
            for key, given in self.fields.items()
            if (value := without_nulls(given)) is not None
        }
        nulls = tuple(key for key in self.fields if key not in fields)
        return replace(self, fields=fields, nulls=nulls)

    def text(self, name: str) -> str:
        """A string field.

        Raises:
            DataLineError: If it is missing, not a string, or not encodable.
        """
        return self.checked_text(self.field(name), name)

    def texts(self, name: str) -> list[str]:
        """A field that is a list of strings; null entries are left out."""
        return [
            self.checked_text(item, f"{name}[{i}]")
            for i, item in enumerate(self.list(name))
            if item is not None
        ]

    def optional_rank(self, value: object, name: str) -> int | None:
        """A value that is a whole number of at least 1, or null."""
        return None if value is None else self._checked_rank(value, name)

    def optional_score(self, value: object, name: str) -> float | None:
        """A value that is a finite number, a boolean (True counts 1), or null."""
        return None if value is None else self._checked_score(value, name)

    def name(self, name: str) -> str:
        """An optional field that names a person or thing; "" where it is missing or null.

        The name of a whole number is its digits. Tables write 7 as 7.0 if the column has an empty
        cell; this is read as 7. Beyond 2^53 such numbers are inexact and refused.
        """
        value = self.fields.get(name)
        if value is None:
            return ""
        self.used.add(name)
        return self.checked_name(value, name)

    def checked_name(self, value: object, name: str) -> str:
        """The value as a name: a string, or the digits of a whole number."""
        if not self.typed and isinstance(value, str) and _WHOLE.fullmatch(value):
            return value.partition(".")[0]
        if isinstance(value, float) and value.is_integer():
            if abs(value) > _EXACT:
                self.fail(f'"{name}" is {value:.0f}, a decimal number too large to be exact', _IDS)
            return str(int(value))
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.checked_text(value, name)

    def field(self, name: str) -> object:
        """A field of any type, which must not be missing or null."""
        self.used.add(name)
        if self.fields.get(name) is None:
            column = self.columns.get(name, name)
            of = f' (column "{column}")' if column != name else ""
            self.fail(f'field "{name}"{of} is missing or null (found {self.found()})')
        return self.fields[name]

    def list(self, name: str) -> list[object]:
        """A field that is a list with entries of any type."""
        value = self.parsed(self.field(name))
        if not isinstance(value, list):
            self.fail(f'"{name}" must be a list, not {kind_of(value)}')
        return value

    def checked_text(self, value: object, name: str) -> str:
        """The value, which must be a string that can be encoded."""
        if not isinstance(value, str):
            self.fail(f'"{name}" must be a string, not {kind_of(value)}')
        if not _encodes(value):  # JSON can escape half of a surrogate pair
            self.fail(f'"{name}" holds an unpaired surrogate')
        return value

    def parsed(self, value: object) -> object:
        """The value; in an untyped row, JSON text of a list or an object is parsed."""
        if not self.typed and isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            return without_nulls(parse_json(value, self.where))
        return value

    def found(self) -> str:
        """The names of the fields, for messages."""
        names = ", ".join(f'"{shown(key)}"' for key in self.fields) or "nothing"
        nulls = ", ".join(f'"{shown(key)}"' for key in self.nulls)
        return f"{names}; null: {nulls}" if nulls else names

    def fail(self, what: str, fix: str = _FIX) -> NoReturn:
        """Refuse the line."""
        raise DataLineError(what, where=self.where, fix=fix)

    def _checked_rank(self, value: object, name: str) -> int:
        value = self._number(value)
        if isinstance(value, float) and value.is_integer():  # tables may store integers as floats
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(f'"{name}" must be a whole number, not {kind_of(value)}')
        if value < 1:
            self.fail(
                f'"{name}" is {value}; ranks start at 1 (best)',
                "count ranks from 1; where more is better, map the column to scores (data.columns)",
            )
        return value

    def _checked_score(self, value: object, name: str) -> float:
        value = self._number(value)
        if not isinstance(value, bool | int | float):
            fix = "write numbers without quotation marks" if isinstance(value, str) else _FIX
            self.fail(f'"{name}" must be a number or a boolean, not {kind_of(value)}', fix)
        try:
            score = float(value)
        except OverflowError:
            score = math.inf
        if not math.isfinite(score):
            self.fail(f'"{name}" is {score}, and a score must be finite')
        return score

    def _number(self, value: object) -> object:
        if self.typed or not isinstance(value, str):
            return value
        if value.strip().lower() in ("true", "false"):
            return value.strip().lower() == "true"
        try:
            return float(value)
        except ValueError:
            return value


def parse_json(text: str, where: str) -> object:
    """Parse one JSON value strictly.

    Raises:
        DataLineError: If it is not JSON, holds NaN or Infinity (the error names the field), or has
            an object in which a name occurs twice or cannot be encoded.
    """
    odd: list[str] = []
    wrong_keys: list[str] = []

    def note(name: str) -> float:
        odd.append(name)
        return float(name)

    def fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            wrong_keys.append(f"{_twice(pairs)!r} is twice in one object")
        wrong_keys.extend(
            f"the name {key!r} holds an unpaired surrogate"
            for key in found
            if not key.isascii() and not _encodes(key)
        )
        return found

    try:
        value: object = json.loads(text, parse_constant=note, object_pairs_hook=fields)
    except RecursionError:
        reason = "nested too deeply"
    except json.JSONDecodeError as error:
        at = min(error.pos, len(text.rstrip()))
        reason = f"not valid JSON: {error.msg} after {at:,} characters"
    except ValueError as error:  # an integer of absurd length
        reason = f"not valid JSON: {error}"
    else:
        if not odd and not wrong_keys:
            return value
        reason = (
            wrong_keys[0]
            if wrong_keys
            else f'"{_place_of_constant(value)}" is {odd[0]}, which is not a JSON number'
        )
    raise DataLineError(reason, where=where, fix=_FIX)


def _twice(pairs: list[tuple[str, object]]) -> str:
    seen: set[str] = set()
    return next(key for key, _ in pairs if key in seen or seen.add(key))


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def without_nulls(value: object, levels: int = _NULL_LEVELS) -> object:
    """A value without null fields; None where it is null or an object of nulls only."""
    if isinstance(value, dict) and levels:
        kept = {
            key: found
            for key, item in value.items()
            if (found := without_nulls(item, levels - 1)) is not None
        }
        return kept if kept or not value else None
    if isinstance(value, list) and levels:
        return [without_nulls(item, levels - 1) for item in value]
    return value


def shown(name: str) -> str:
    """A name for messages: lone surrogates escaped, the middle of a long name left out."""
    return _shortened(name.encode("utf-8", "backslashreplace").decode())


def kind_of(value: object) -> str:
    """The type of a parsed value, as a phrase for messages."""
    if value is None:
        return "null"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    names: dict[type, str] = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"of type {type(value).__name__}")


def _place_of_constant(value: object) -> str:
    """Dotted path of the first NaN or infinite number; the middle of a long path is left out.

    Iterative with an explicit stack: parsed values may be nested deeper than Python's recursion
    limit.
    """
    ahead: list[tuple[str, object]] = [("", value)]
    while ahead:
        path, value = ahead.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return path
        ahead += reversed(list(_entries(path, value)))
    return ""


def _entries(path: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield _shortened(f"{path}.{key}" if path else str(key)), item
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield _shortened(f"{path}[{i}]"), item


def _shortened(place: str) -> str:
    half = _PLACE_CHARACTERS // 2
    return place if len(place) <= _PLACE_CHARACTERS else f"{place[:half]}...{place[-half:]}"
