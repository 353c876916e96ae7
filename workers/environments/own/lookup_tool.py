"""What the pocket world knows of an animal or of a home (data.pocket.lookup)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from workers.environments.tools import Tool
from workers.pocket.lookups import CALL, record
from workers.pocket.questions import Animal
from workers.pocket.world import World

COLUMN = "world"  # of the prompt's row: the seed of its world


def lookup(word: str, row: Mapping[str, Any]) -> str:
    """The facts in a few sentences."""
    return record(_facts(int(row[COLUMN])), word.strip())


@cache
def _facts(seed: int) -> dict[str, Animal]:
    return World(seed).facts


TOOL = Tool(lookup, columns=(COLUMN,), word=CALL)
