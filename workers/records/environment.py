"""Records of conversations: what an environment is asked, and what it says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ask:
    """A turn of the policy for an environment to answer, with all turns before it."""

    id: int  # of the sequence
    row: str  # kept columns of the prompt's row, and the prompt, as JSON
    seed: int  # of the sequence
    turns: tuple[tuple[int, ...], ...]  # token ids of each turn of the policy; the last is new
    observations: tuple[tuple[int, ...], ...]  # token ids after each turn but the last


@dataclass(frozen=True, slots=True)
class Told:
    """The answer of an environment to one turn, or why there is none."""

    id: int
    observation: tuple[int, ...] = ()  # token ids, up to where the policy speaks again
    reward: float = 0.0
    done: bool = False
    failure: str = ""  # why the sequence is lost, one of few texts; "" = it is not
    words: str = ""  # more of a failure
