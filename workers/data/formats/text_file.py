"""Read plain text files as documents of a few kB."""

from __future__ import annotations

from collections.abc import Iterator

from workers.data.formats.kinds import Format
from workers.data.formats.line import Line
from workers.data.formats.lines import Meter, bounded_lines, holds_nul
from workers.errors import DataLineError

PIECE_CHARACTERS = 4096  # a document ends at the first blank line after this many characters
_LONGEST = 2 * PIECE_CHARACTERS  # or at a line end, or within a line, after this many


def scan_text(path: str, meter: Meter | None = None) -> Iterator[Line | DataLineError]:
    """Yield the text in pieces as {"text"}; their concatenation is the file.

    A bad line is left out of its piece, and its error is yielded before the piece. White space
    alone is not a piece: it stays at the end of the preceding piece.

    Raises:
        DataError: If the file cannot be opened, or its compression is broken.
    """
    piece: list[str] = []
    size, first = 0, 1
    for number, raw in bounded_lines(path, meter):
        text = raw if isinstance(raw, DataLineError) else _decoded(raw, path, number)
        if isinstance(text, DataLineError):
            yield text
            continue
        blank = not text.strip()
        if not blank and piece and _full(size, piece[-1]):
            yield Line({"text": "".join(piece)}, f"{path}:{first}")
            piece, size = [], 0
        if not piece:
            first = number
        while len(text) > _LONGEST:
            yield Line({"text": "".join([*piece, text[:_LONGEST]])}, f"{path}:{first}")
            piece, size, first, text = [], 0, number, text[_LONGEST:]
        piece.append(text)
        size += len(text)
    if "".join(piece).strip():
        yield Line({"text": "".join(piece)}, f"{path}:{first}")


def _full(size: int, last: str) -> bool:
    return size >= _LONGEST or (size >= PIECE_CHARACTERS and not last.strip())


def _decoded(raw: bytes, path: str, number: int) -> str | DataLineError:
    if b"\0" in raw:
        return holds_nul(f"{path}:{number}")
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        return DataLineError(
            f"invalid UTF-8 at byte {error.start + 1} of the line",
            where=f"{path}:{number}",
            fix="save the file as UTF-8, or correct this line",
        )


FORMAT = Format(scan_text, suffixes=(".txt", ".text"), family="text")
