"""Read JSON files object by object: a list of objects, or an object that holds one list."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from workers.data.formats.kinds import Format
from workers.data.formats.line import Line, kind_of, parse_json
from workers.data.formats.lines import MAX_LINE_BYTES, Meter, only_space, open_bytes, too_long
from workers.errors import DataError, DataLineError

_CHUNK = 2**18
_SHAPE = "a JSON data file is a list of objects, or an object that holds one list of objects"
_FIX = "correct the file, or declare its format by data.format"
_ONE_ROW = "if the object is a row itself, make a list of it: [ before it and ] after it"
_SPACE = re.compile(r"[ \t\r\n]*")


def scan_json(path: str, meter: Meter | None = None) -> Iterator[Line | DataLineError]:
    """Yield the objects of the list, one in memory at a time.

    Raises:
        DataError: If the file is not JSON of one of the two shapes.
        DataLineError: If one value is over `MAX_LINE_BYTES`.
    """
    with open_bytes(path, meter) as (stream, raw):
        text = _Text(stream, raw, path, meter)
        if text.peek() == "[":
            yield from _rows(text)
        elif text.peek() == "{":
            yield from _rows_of_object(text)
        elif text.peek():
            raise text.error(_SHAPE)
        else:
            return
        if text.peek():
            raise text.error("more text after the end of the JSON value")


def is_turn(value: object) -> bool:
    """Whether a value is a turn of a dialogue, and so not a row."""
    return isinstance(value, dict) and (
        {"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()
    )


def _rows_of_object(text: _Text) -> Iterator[Line | DataLineError]:
    text.take("{")
    seen = False
    while text.peek() != "}":
        text.value()
        text.take(":")
        if text.peek() != "[":
            text.value()
        elif seen:
            raise text.error(f"the object holds a second list; {_SHAPE}", _ONE_ROW)
        else:
            seen = True
            for row in _rows(text):
                if isinstance(row, Line) and is_turn(row.fields):
                    raise text.error("the object is one dialogue, its list the turns", _ONE_ROW)
                yield row
        if text.peek() != "}":
            text.take(",")
    text.take("}")
    if not seen:
        raise text.error(f"the object holds no list; {_SHAPE}", _ONE_ROW)


def _rows(text: _Text) -> Iterator[Line | DataLineError]:
    text.take("[")
    number = 0
    while text.peek() != "]":
        number += 1
        where = f"{text.path} row {number}"
        source = text.value()
        try:
            value = parse_json(source, where)
        except DataLineError as error:
            yield error
        else:
            yield Line(value, where) if isinstance(value, dict) else _not_an_object(value, where)
        if text.peek() != "]":
            text.take(",")
    text.take("]")


def _not_an_object(value: object, where: str) -> DataLineError:
    return DataLineError(
        f"a row must be a JSON object, not {kind_of(value)}",
        where=where,
        fix="correct or delete this row",
    )


class _Text:
    """The text of a file after a cursor, read and decoded as far as needed."""

    def __init__(self, stream: BinaryIO, raw: BinaryIO, path: str, meter: Meter | None) -> None:
        self.path = path
        self._stream, self._raw, self._meter = stream, raw, meter
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._bytes = 0  # read so far
        self._ended = False

    def peek(self) -> str:
        """The next character that is not white space; "" at the end of the file."""
        space = 0
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None, "no space is a match, too"
            space += match.end() - self._at
            self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if space > MAX_LINE_BYTES:
                raise only_space(f"{self.path} before byte {self._bytes}")
            if not self._more(_CHUNK):
                return ""

    def take(self, character: str) -> None:
        """Skip the next character, which must be `character`."""
        found = self.peek()
        if found != character:
            raise self.error(f"not valid JSON: {character!r} expected, {found!r} found")
        self._at += 1

    def value(self) -> str:
        """The source text of the next value.

        A value is parsed from the text in memory. While that fails, more text is read, up to twice
        as much each time, so that parsing a long value takes linear time in all.
        """
        self.peek()
        while True:
            try:
                _, end = self._scan.raw_decode(self._text, self._at)
                # a number at the end of the text in memory may continue
                if end < len(self._text) or self._ended:
                    source = self._text[self._at : end]
                    self._at = end
                    return source
            except RecursionError as error:
                raise self.error("nested too deeply") from error
            except ValueError as error:
                if self._ended:
                    raise self.error(f"not valid JSON: {error}") from error
            at_hand = len(self._text) - self._at
            if at_hand > MAX_LINE_BYTES:
                raise too_long(f"{self.path} before byte {self._bytes}")
            self._more(min(max(_CHUNK, at_hand), MAX_LINE_BYTES + 1 - at_hand))

    def error(self, what: str, fix: str = _FIX) -> DataError:
        """An error that names the place of the cursor."""
        return DataError(what, where=f"{self.path} before byte {self._bytes}", fix=fix)

    def _more(self, size: int) -> bool:
        data = self._stream.read(size)
        self._ended = not data
        self._bytes += len(data)
        try:
            text = self._decode.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            raise self.error(f"invalid UTF-8 ({error.reason})") from error
        self._text = self._text[self._at :] + text
        self._at = 0
        if self._meter is not None:
            self._meter.done = self._raw.tell()
        return not self._ended


FORMAT = Format(scan_json, family="JSON")  # ".json" is also used for JSONL: the content decides
