"""What an environment is: it is made for one sequence, and answers each turn of the policy.

`factory(row, seed)` makes one; `row` holds the kept columns of the prompt's row (data.keep_columns)
and the prompt's text as `prompt`, `seed` is that of the sequence. It must be a function of these
and of the texts that it is given: if its process is lost, it is made again and gets the same texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Turn:
    """The answer of an environment to one turn of the policy."""

    observation: str = ""  # what the policy reads next; not read if `done`
    reward: float = 0.0  # reward units; the rewards of a sequence are summed
    done: bool = False  # the turn was the last one


class Environment(Protocol):
    """The environment of one sequence."""

    def step(self, text: str) -> Turn:
        """Answer a turn of the policy.

        Args:
            text: What the policy said, without control tokens.
        """
        ...


Factory = Callable[[Mapping[str, Any], int], Environment]
PROMPT = "prompt"  # key of the prompt's text in the row, unless a column has this name
