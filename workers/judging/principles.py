"""A constitution: principles by which a model judges, criticises and revises answers.

A YAML file with a list `principles`, each with texts for its uses (Bai et al., arXiv 2212.08073,
appendix C).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from workers.errors import ConfigError

Use = Literal["preference", "critique", "revision"]
USES: tuple[Use, ...] = ("preference", "critique", "revision")
_MOST_TEXT = 10_000  # characters
_MOST_BYTES = 10 << 20


@dataclass(frozen=True, slots=True)
class Principle:
    """One principle; a text is "" where it has none for that use."""

    name: str
    preference: str = ""  # which of two answers is better
    critique: str = ""  # what is wrong with an answer
    revision: str = ""  # a better answer

    def text(self, use: Use) -> str:
        """Its text for one use."""
        return getattr(self, use)


def read_principles(path: Path, uses: Sequence[Use], where: str) -> tuple[Principle, ...]:
    """Those principles of a file that have a text for each of the uses.

    Args:
        path: The file.
        uses: What they are needed for.
        where: The configuration key that names the file.

    Raises:
        ConfigError: it cannot be read, is no list of principles, or none fits.
    """
    place = f"{where}={path}"
    fix = "write `principles:`, a list of entries with name, preference, critique and revision"
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError("the file is far too long", where=place, fix=fix)
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            f"the principles cannot be read: {' '.join(str(error).split())[:200]}",
            where=place,
            fix=fix,
        ) from error
    entries = read.get("principles") if isinstance(read, dict) else None
    if not isinstance(entries, list):
        raise ConfigError("there is no list of principles", where=place, fix=fix)
    made = [_principle(entry, n, place, fix) for n, entry in enumerate(entries, start=1)]
    names = [each.name for each in made]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two principles are called {twice[0]!r}", where=place,
                          fix="give each another name")  # fmt: skip
    found = tuple(each for each in made if all(each.text(use) for use in uses))
    if not found:
        raise ConfigError(f"no principle has a text for {' and '.join(uses)}", where=place, fix=fix)
    return found


def _principle(entry: Any, number: int, place: str, fix: str) -> Principle:
    known = {"name", *USES}
    texts = entry if isinstance(entry, dict) else {}
    wrong = [key for key in texts if key not in known]
    if not texts or wrong:
        said = f"has the unknown key {wrong[0]!r}" if wrong else "is no mapping of texts"
        raise ConfigError(f"principle {number} {said}", where=place, fix=fix)
    for key, text in texts.items():
        if not isinstance(text, str) or not 0 < len(text.strip()) <= _MOST_TEXT:
            raise ConfigError(
                f"{key} of principle {number} is no text of 1 to {_MOST_TEXT:,} characters",
                where=place,
                fix=fix,
            )
    stripped = {key: " ".join(text.split()) for key, text in texts.items()}
    return Principle(**{"name": str(number)} | stripped)
