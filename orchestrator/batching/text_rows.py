"""Pretraining text in full rows: concatenated documents, split where a row is full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.errors import DataError
from workers.records.arrays import Ragged
from workers.records.training import TokenBatch

Tokens = npt.NDArray[Any]
Documents = Callable[[int, int], TokenBatch]  # start, count -> documents of an endless stream

_AT_ONCE = 64  # documents per read
_MOST_EMPTY = 10_000  # consecutive empty documents


@dataclass(slots=True)
class _Place:
    """The start of a row: `offset` tokens into a document."""

    row: int = 0
    document: int = 0
    offset: int = 0


@dataclass(slots=True)
class TextRows:
    """Rows of exactly `row_tokens` tokens from an endless stream of documents, by row number.

    A row begins where the previous row ended, possibly within a document. The first token of a row,
    and with `apart` that of each document, is no target, because no token precedes it.

    Attributes:
        documents: the stream.
        row_tokens: tokens per row, at least 2.
        apart: each document attends only to itself; else a row is one sequence, as for GPT-3.
    """

    documents: Documents
    row_tokens: int
    apart: bool
    _place: _Place = field(default_factory=_Place)
    _read: tuple[int, list[Tokens]] = (0, [])  # number of the first document last read, documents

    def take(self, start: int, count: int) -> TokenBatch:
        """`count` rows from row `start`; continuing where the last call ended reads nothing twice.

        Raises:
            DataError: the documents have no tokens.
        """
        if start < self._place.row:
            self._place = _Place()
        while self._place.row < start:
            self._next_row()
        rows = [self._next_row() for _ in range(count)]
        return _batch(rows, self.apart)

    def _next_row(self) -> list[Tokens]:
        """The pieces of documents that fill the next row."""
        place, room, empty = self._place, self.row_tokens, 0
        pieces: list[Tokens] = []
        while room:
            tokens = self._document(place.document)
            piece = tokens[place.offset : place.offset + room]
            empty = 0 if len(piece) else empty + 1
            if empty > _MOST_EMPTY:
                raise DataError(
                    f"{_MOST_EMPTY} consecutive documents of pretraining text hold no token",
                    where="data.files.pretraining",
                    fix="give a file with text in it",
                )
            if len(piece):
                pieces.append(piece)
            room -= len(piece)
            place.offset += len(piece)
            if place.offset >= len(tokens):
                place.document, place.offset = place.document + 1, 0
        place.row += 1
        return pieces

    def _document(self, number: int) -> Tokens:
        first, held = self._read
        if not first <= number < first + len(held):
            first, held = number, list(self.documents(number, _AT_ONCE).tokens.rows())
            self._read = first, held
        return held[number - first]


def _batch(rows: list[list[Tokens]], apart: bool) -> TokenBatch:
    positions = [[np.arange(len(piece), dtype=np.int32) for piece in row] for row in rows]
    targets = [np.concatenate(at) > 0 if apart else np.arange(sum(map(len, at))) > 0
               for at in positions]  # fmt: skip
    return TokenBatch(
        Ragged.from_rows([np.concatenate(row) for row in rows], np.int32),
        Ragged.from_rows(targets, np.bool_),
        Ragged.from_rows([np.concatenate(at) for at in positions], np.int32) if apart else None,
    )
