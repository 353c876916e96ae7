"""Reading of damaged files: unreadable parts are noted with file and line, the rest is used."""

from __future__ import annotations

import json
import math
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from os.path import lexists
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from workers.errors import DataError

T = TypeVar("T")
_SHOWN = 5  # damaged parts per file that get a note each
_LONGEST = 160  # characters of a complaint
_LARGEST = 2**53  # integers that JSON readers agree on
# Errors that wrong file content can raise when JSON is parsed or converted to records.
_CONTENT = (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError,
            RecursionError)  # fmt: skip


class Damage:
    """Collects what is wrong with the files of one folder."""

    def __init__(self) -> None:
        self._notes: list[str] = []
        self._of_file: Counter[Path] = Counter()

    def note(self, file: Path, complaint: str, line: int = 0) -> None:
        """Note that a file, or a line or part of it, is not used."""
        self._of_file[file] += 1
        if self._of_file[file] <= _SHOWN:
            place = f"{file}:{line}" if line else str(file)
            self._notes.append(f"{place}: {complaint}")

    def part(self, file: Path, what: str, make: Callable[[], T], otherwise: T) -> T:
        """The result of `make` for a part of a file; if it fails, `otherwise` and a note."""
        try:
            return make()
        except _CONTENT as error:
            self.note(file, f"{what} cannot be used: {complaint(error)}")
            return otherwise

    def text(self, file: Path, most: int = 1 << 30) -> str | None:
        """The text of a UTF-8 file, or None and a note; invalid bytes become escapes and a note.

        Args:
            file: Its path.
            most: Maximum number of bytes to read; a longer file gets a note.
        """
        raw = self._bytes(file, most)
        if raw is None:
            return None
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            self.note(file, f"no UTF-8: {error.reason} at byte {error.start}", line)
            return raw.decode("utf-8", errors="backslashreplace")

    def lines(self, file: Path, make: Callable[[Any], T]) -> Iterator[T]:
        """The result of `make` for the JSON value of each complete line; other lines are noted.

        A killed run can leave a last line without newline, which is not a record.
        """
        raw = self._bytes(file)
        if raw is None:
            return
        whole = raw.split(b"\n")[:-1]
        if not whole:
            self.note(file, "it is empty" if not raw else "it holds no whole line")
        for number, line in enumerate(whole, start=1):
            if (made := self.line(file, number, line, make)) is not None:
                yield made

    def line(self, file: Path, number: int, line: bytes, make: Callable[[Any], T]) -> T | None:
        """The result of `make` for the JSON value of a line; None and a note if it fails."""
        try:
            return make(json.loads(line.decode("utf-8")))
        except _CONTENT as error:
            self.note(file, complaint(error), number)
            return None

    def notes(self) -> list[str]:
        """One sentence per damaged part; per file only the first few, and the number of others."""
        more = [
            f"{file}: {count - _SHOWN:,} more like these"
            for file, count in self._of_file.items()
            if count > _SHOWN
        ]
        return [*self._notes, *more]

    def _bytes(self, file: Path, most: int = 1 << 34) -> bytes | None:
        try:
            if not file.exists():
                self.note(file, "a link to nothing" if lexists(file) else "there is no such file")
            elif not file.is_file():  # reading a pipe would block forever
                self.note(file, "it is no file")
            else:
                with file.open("rb") as opened:
                    raw = opened.read(most)
                    if opened.read(1):
                        self.note(file, f"only its first {most:,} bytes are used")
                    return raw
        except OSError as error:
            self.note(file, f"it cannot be read: {error.strerror}")
        return None


def complaint(error: BaseException) -> str:
    """A short sentence for an error that wrong content raised."""
    if isinstance(error, KeyError):
        words = f"there is no {error.args[0]!r}"
    elif isinstance(error, RecursionError):
        words = "it is nested too deeply"
    elif isinstance(error, DataError):
        words = error.what
    else:
        words = " ".join(str(error).split())
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]} ..."


def whole(kind: type[T], plain: dict[str, Any]) -> T:
    """Create and verify a dataclass `kind`; every field must be given, also those with defaults.

    Raises:
        KeyError: a field is missing.
        TypeError, ValueError: a field is unknown, or does not match its annotation.
    """
    for name in _hints(kind):
        _ = plain[name]
    return verified(kind(**plain))


def verified(record: T, *, finite: bool = True) -> T:
    """Return the record after checking that every field matches its annotation.

    Args:
        record: A dataclass, whose fields are dataclasses, list, tuple, dict, Literal, `| None`,
            str, bool, int, float or Any.
        finite: Whether floats must be finite.

    Raises:
        TypeError: a field is of another type.
        ValueError: a number is not finite, or too large.
    """
    for name, kind in _hints(type(record)).items():
        _verify(kind, getattr(record, name), name, finite)
    return record


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _verify(kind: Any, value: Any, name: str, finite: bool) -> None:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is not None:
            _verify(next(k for k in inner if k is not type(None)), value, name, finite)
    elif is_dataclass(kind):
        _require(isinstance(value, kind), name, value, kind.__name__)  # type: ignore[arg-type]
        verified(value, finite=finite)
    elif origin in (dict, list, tuple):
        _verify_entries(origin, inner, value, name, finite)
    elif origin is Literal:
        _require(value in inner, name, value, f"one of {', '.join(map(str, inner))}")
    elif kind is float:
        require_number(value, name, finite=finite)
    elif kind is int:
        require_count(value, name)
    elif kind is not Any:
        _require(isinstance(value, kind), name, value, "text" if kind is str else kind.__name__)


def _verify_entries(
    origin: type, inner: tuple[Any, ...], value: Any, name: str, finite: bool
) -> None:
    _require(isinstance(value, origin), name, value, "an object" if origin is dict else "a list")
    if origin is dict:
        for key, each in value.items():
            _verify(inner[0], key, f"a key of {name}", finite)
            _verify(inner[1], each, f"{name}.{key}"[:_LONGEST], finite)
        return
    several = origin is tuple and inner[-1] is not Ellipsis
    for n, each in enumerate(value):
        _verify(inner[n if several else 0], each, f"an entry of {name}", finite)


def require_list(value: Any) -> list[Any]:
    """Return the value, or raise TypeError if it is no list (an empty object is no list)."""
    _require(isinstance(value, list), "it", value, "a list")
    return value


def require_number(value: Any, name: str, *, finite: bool = True) -> None:
    """Raise TypeError or ValueError unless `value` is a number (and finite)."""
    _require(type(value) in (int, float), name, value, "a number")
    if type(value) is int:
        require_count(value, name)
    if finite and not math.isfinite(value):
        raise ValueError(f"{name} is {value}")


def require_count(value: Any, name: str) -> None:
    """Raise TypeError or ValueError unless `value` is an integer that JSON can represent."""
    _require(type(value) is int, name, value, "a whole number")
    if abs(value) > _LARGEST:
        raise ValueError(f"{name} is too large")


def _require(fits: bool, name: str, value: object, wanted: str) -> None:
    if not fits:
        raise TypeError(f"{name} must be {wanted}, not {_shown(value)}")


def _shown(value: object) -> str:
    names = {"dict": "an object", "list": "a list", "NoneType": "null", "bool": "true or false"}
    return names.get(type(value).__name__) or repr(value)[:40]
