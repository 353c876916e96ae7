"""Files of JSON lines that may still grow: what came since the last look."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from orchestrator.run_files.damage import Damage

T = TypeVar("T")
_CHUNK = 1 << 18  # bytes of one look
_LONGEST_LINE = 1 << 26  # bytes; a longer line is left out
_REMEMBERED = 64  # bytes before the place that was read to, to notice that they changed


@dataclass(frozen=True, slots=True)
class News(Generic[T]):
    """What one look at a file found."""

    records: list[T]
    replaced: bool = False  # the file was cut or replaced: forget all earlier records
    more: bool = False  # there is more to read at once


class Following(Generic[T]):
    """Reads a growing file of JSON lines piece by piece.

    A last line without line end is not a record yet; it is read once it is complete. A run that is
    resumed cuts its files to the state of a checkpoint, and one that overwrites another replaces
    them: both are noticed, and the file is read from its start.

    Args:
        path: The file; it may appear later.
        make: Converts the JSON value of a line; may raise like the typed readers.
    """

    def __init__(self, path: Path, make: Callable[[Any], T]) -> None:
        self.path = path
        #: What cannot be used, by line.
        self.damage = Damage()
        #: Bytes after the last line end: a line that is being written, or that a kill cut.
        self.torn = 0
        #: Bytes read, and bytes of the file at the last look.
        self.place, self.size = 0, 0
        self._make = make
        self._file: tuple[int, int] | None = None  # device and inode
        self._before = b""
        self._line = 0
        self._skipping = False  # inside a line that is too long

    def look(self) -> News[T]:
        """Read the next piece of the file."""
        try:
            if not self.path.is_file():  # a pipe would block
                return self._gone()
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                replaced = self._changed(file, (status.st_dev, status.st_ino), status.st_size)
                if replaced:
                    self._restart()
                self._file, self.size = (status.st_dev, status.st_ino), status.st_size
                records = self._read(file)
        except OSError as error:
            self.damage = Damage()
            self.damage.note(self.path, f"it cannot be read: {error.strerror}")
            return News([])
        return News(records, replaced, self.place + self.torn < self.size)

    def _gone(self) -> News[T]:
        known = self._file is not None
        self._restart()
        if os.path.lexists(self.path):
            self.damage.note(self.path, "it is no file")
        return News([], replaced=known)

    def _changed(self, file: BinaryIO, name: tuple[int, int], size: int) -> bool:
        if self._file is None:
            return False
        if name != self._file or size < self.place:
            return True
        file.seek(self.place - len(self._before))
        return file.read(len(self._before)) != self._before

    def _restart(self) -> None:
        self.damage, self.torn, self.place, self.size = Damage(), 0, 0, 0
        self._file, self._before, self._line, self._skipping = None, b"", 0, False

    def _read(self, file: BinaryIO) -> list[T]:
        length = _CHUNK
        while True:
            file.seek(self.place)
            data = file.read(length)
            end = data.rfind(b"\n") + 1
            if end or len(data) < length or length >= _LONGEST_LINE:
                break
            length *= 4
        if not end and len(data) >= _LONGEST_LINE:
            if not self._skipping:
                self.damage.note(self.path, "the line is too long", self._line + 1)
            self._skipping, end = True, len(data)
            lines = []
        else:
            lines = data[:end].split(b"\n")[:-1]
        self.torn = len(data) - end if len(data) < length else 0
        self.place += end
        self._before = (self._before + data[:end])[-_REMEMBERED:]
        return self._records(lines)

    def _records(self, lines: list[bytes]) -> list[T]:
        found: list[T] = []
        for line in lines:
            self._line += 1
            if self._skipping:
                self._skipping = False
                continue
            made = self.damage.line(self.path, self._line, line, self._make)
            if made is not None:
                found.append(made)
        return found
