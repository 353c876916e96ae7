"""The commands of the documents: fenced blocks, and what stands between backticks."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(path.name for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"),
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
# Every word of these is read by a test of its own.
READ_ELSEWHERE = {"docs/deploy.md": "tests/deploy/test_deploy_page.py"}
_FENCE = re.compile(r"^```([^`\n]*)\n(.*?)^```", flags=re.M | re.S)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_PROGRAMS = ("python -m ", ".venv/bin/", "rehearsal ", "make ", "uv ")


@dataclass(frozen=True, slots=True)
class Command:
    """A command as a page shows it."""

    page: str
    text: str
    is_span: bool  # between backticks, where it may be a part of a command

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"

    def words(self) -> list[str]:
        """The words after the shell has read them, without settings of environment variables."""
        words = shlex.split(self.text, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        return words


def commands() -> list[Command]:
    """All commands of all pages but those in READ_ELSEWHERE."""
    return [each for page in PAGES if page not in READ_ELSEWHERE for each in commands_of(page)]


def commands_of(page: str) -> list[Command]:
    """Each line of an untagged block is one command; so is a span that begins with a program."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for language, block in _FENCE.findall(text):
        lines = block.replace("\\\n", " ").splitlines()
        if not language:
            found += [
                Command(page, line, is_span=False)
                for line in map(str.strip, lines)
                if line and not line.startswith("#")
            ]
    spans = _SPAN.findall(_FENCE.sub("", text))
    return found + [Command(page, s, is_span=True) for s in spans if s.startswith(_PROGRAMS)]


def blocks(language: str) -> list[tuple[str, str]]:
    """Page and text of each block in a language."""
    return [
        (page, block)
        for page in PAGES
        for tag, block in _FENCE.findall((ROOT / page).read_text(encoding="utf-8"))
        if tag == language
    ]
