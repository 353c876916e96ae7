"""Tables and texts on standard output, as wide as the terminal or a fixed width elsewhere."""

from __future__ import annotations

import io
import os
import sys
from typing import Literal, TextIO

from rich.console import Console, RenderableType

from orchestrator.process.command_exit import visible

_PIPE_WIDTH = 100  # columns where there is no terminal to ask
# bars, the brackets around trained text, and what stands for text left out; one column each
_ASCII = str.maketrans({"\u2588": "#", "\u27e6": "{", "\u27e7": "}", "\u2026": "~"})


def plain_console(stream: TextIO) -> Console:
    """A rich console that prints paths and reasons literally, without markup."""
    console = Console(file=stream, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    return console


class _Page(io.StringIO):
    """Buffer of printed text that reports which characters the stream can show."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream that the text is for: rich draws tables in ASCII where it has no other."""
        return self._encoding


def rendered(what: RenderableType, stream: TextIO | None = None) -> str:
    """The text that standard output (or the stream) should show; writing it is the caller's.

    Rich itself ends the process where a reader has left.
    """
    target = plain_console(stream or sys.stdout)
    page = _Page(target.encoding)
    Console(
        file=page, markup=False, emoji=False, highlight=False, width=target.width,
        force_terminal=target.is_terminal, color_system=_colours(target),
    ).print(what)  # fmt: skip
    text = visible(page.getvalue())
    return text.translate(_ASCII) if target.options.ascii_only else text


def _colours(console: Console) -> Literal["standard", "256", "truecolor"] | None:
    found = console.color_system
    return found if found in ("standard", "256", "truecolor") else None
