"""Text of models in a page: what would be invisible or change the order of words is shown."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

FOLDED_FROM = 4000  # characters shown before the rest is folded
# Controls and formats of Unicode are what can hide text, or show it in another order than it is
# read by a model: of them emoji and several scripts need the joiners, and text the line ends.
_HARMLESS = "\n\t\u200c\u200d"
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a text: as it is, or the names of characters that cannot be seen."""

    text: str
    mark: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """A text in pieces; a long one has a rest that is folded."""

    head: tuple[Part, ...]
    rest: tuple[Part, ...]
    more: int  # characters of the rest


def shown(text: str) -> Shown:
    """A text for the template, which escapes every piece."""
    text = text.replace("\r\n", "\n")
    head, rest = text[:FOLDED_FROM], text[FOLDED_FROM:]
    return Shown(tuple(parts(head)), tuple(parts(rest)), len(rest))


def parts(text: str) -> Iterator[Part]:
    """A text in pieces, of which the template escapes every one."""
    for hidden, characters in groupby(text, _is_hidden):
        piece = "".join(characters)
        yield Part(" ".join(f"U+{ord(c):04X}" for c in piece), mark=True) if hidden else Part(piece)


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN and character not in _HARMLESS
