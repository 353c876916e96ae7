"""JSONL files: one JSON object a line, every complaint with FILE:LINE."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from workers.errors import DataError, DataLineError


@dataclass(frozen=True, slots=True)
class Line:
    """One object of a file, with typed access to its fields."""

    fields: Mapping[str, object]
    where: str  # FILE:LINE

    def text(self, name: str) -> str:
        """A string field.

        Raises:
            DataLineError: If it is missing, not a string, or not encodable.
        """
        return self._checked_text(self._field(name), name)

    def texts(self, name: str) -> list[str]:
        """A field that lists strings."""
        return [self._checked_text(item, f"{name}[{i}]") for i, item in enumerate(self._list(name))]

    def ranks(self, name: str, count: int) -> list[int]:
        """A field that lists `count` whole numbers of at least 1."""
        ranks = self._list(name)
        if len(ranks) != count:
            self.fail(f'"{name}" has {len(ranks)} entries for {count} completions')
        return [self._checked_rank(item, f"{name}[{i}]") for i, item in enumerate(ranks)]

    def fail(self, what: str) -> NoReturn:
        """Refuse the line."""
        raise DataLineError(what, where=self.where, mend="correct or delete this line")

    def _field(self, name: str) -> object:
        if name not in self.fields:
            found = ", ".join(f'"{key}"' for key in self.fields) or "nothing"
            self.fail(f'field "{name}" is missing (found {found})')
        return self.fields[name]

    def _list(self, name: str) -> list[object]:
        value = self._field(name)
        if not isinstance(value, list):
            self.fail(f'"{name}" must be a list, not {_kind(value)}')
        return value

    def _checked_text(self, value: object, name: str) -> str:
        if not isinstance(value, str):
            self.fail(f'"{name}" must be a string, not {_kind(value)}')
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can escape half of a surrogate pair
            self.fail(f'"{name}" holds an unpaired surrogate')
        return value

    def _checked_rank(self, value: object, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(f'"{name}" must be a whole number, not {_kind(value)}')
        if value < 1:
            self.fail(f'"{name}" is {value}; ranks start at 1 (best)')
        return value


def read_jsonl(path: str | Path) -> Iterator[Line]:
    """Yield the objects of a file; blank lines are skipped.

    Raises:
        DataError: If the file cannot be opened.
        DataLineError: If a line is not UTF-8, not JSON, not an object, or holds NaN or Infinity.
    """
    try:
        stream = Path(path).open("rb")  # noqa: SIM115 - closed by the with below
    except OSError as error:
        raise DataError(
            f"cannot open the data file: {error.strerror}",
            where=str(path),
            mend="correct the path under data.files",
        ) from error
    with stream:
        for number, raw in enumerate(stream, start=1):
            if raw.strip():
                yield _parse(raw, f"{path}:{number}")


def _parse(raw: bytes, where: str) -> Line:
    try:
        value: object = json.loads(raw.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        reason = f"invalid UTF-8 at byte {error.start + 1} of the line"
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:  # malformed JSON, NaN, or an integer of absurd length
        reason = f"not valid JSON: {error}"
    else:
        if isinstance(value, dict):
            return Line(value, where)
        reason = f"a line must be a JSON object, not {_kind(value)}"
    raise DataLineError(reason, where=where, mend="correct or delete this line")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names: dict[type, str] = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
    }
    names |= {list: "a list", dict: "an object"}
    return names[type(value)]
