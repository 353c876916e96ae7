"""Records of sequences from the shards of several workers, matched by sequence id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from workers.errors import LedgerError
from workers.records.arrays import IntArray, Ragged
from workers.records.generation import RolloutBatch
from workers.records.training import (
    ExperienceBatch,
    Scores,
    SequenceField,
    TermScores,
    TokenField,
)

N = TypeVar("N", bound=np.generic)


@dataclass(frozen=True, slots=True)
class _Places:
    """Location of each requested id: row `rows[i]` of shard `shards[i]`."""

    shards: IntArray
    rows: IntArray

    def take(self, parts: Sequence[Ragged]) -> Ragged:
        """The rows of one ragged field."""
        places = zip(self.shards.tolist(), self.rows.tolist(), strict=True)
        return Ragged.from_rows(
            [parts[int(s)].row(int(r)) for s, r in places], parts[0].values.dtype
        )

    def take_if_any(self, parts: Sequence[Ragged | None]) -> Ragged | None:
        """The rows of a ragged field that all shards have, or none."""
        there = [part for part in parts if part is not None]
        assert len(there) in (0, len(parts)), "some shards have the field, and some do not"
        return self.take(there) if there else None

    def pick(self, parts: Sequence[NDArray[N]]) -> NDArray[N]:
        """The entries of one per-sequence field."""
        starts = np.cumsum([0, *(len(p) for p in parts[:-1])])
        return np.concatenate(parts)[starts[self.shards] + self.rows]

    def pick_if_any(self, parts: Sequence[NDArray[N] | None]) -> NDArray[N] | None:
        """The entries of a per-sequence field that all shards have, or none."""
        there = [part for part in parts if part is not None]
        assert len(there) in (0, len(parts)), "some shards have the field, and some do not"
        return self.pick(there) if there else None

    def pick_words(self, parts: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
        """The entries of one per-sequence field of texts."""
        places = zip(self.shards.tolist(), self.rows.tolist(), strict=True)
        return tuple(parts[int(s)][int(r)] for s, r in places)


def _find(shards: Sequence[IntArray], ids: IntArray, what: str) -> _Places:
    """Locate every id.

    Raises:
        LedgerError: an id is in no shard, or in several.
    """
    assert len(shards) > 0, f"no shard of {what}"
    place: dict[int, tuple[int, int]] = {}
    for s, own in enumerate(shards):
        for row, i in enumerate(own.tolist()):
            if i in place:
                raise LedgerError(f"sequence {i} appears twice", where=what)
            place[i] = (s, row)
    missing = [i for i in ids.tolist() if i not in place]
    if missing:
        raise LedgerError(f"no {what} for sequences {named(missing)}", where=what)
    found = np.asarray([place[i] for i in ids.tolist()], np.int64).reshape(-1, 2)
    return _Places(found[:, 0], found[:, 1])


def named(ids: Sequence[int]) -> str:
    """Sequence ids in words; only the first ones of many."""
    return ", ".join(map(str, ids[:8])) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")


def gather_rollouts(shards: Sequence[RolloutBatch], ids: IntArray) -> RolloutBatch:
    """The sequences `ids`, in that order, from the shards of several engines.

    Raises:
        LedgerError: an id is in no shard, or in several.
    """
    at = _find([s.ids for s in shards], ids, "rollout")
    return RolloutBatch(
        ids=np.asarray(ids, np.int64),
        prompt_ids=at.pick([s.prompt_ids for s in shards]),
        tokens=at.take([s.tokens for s in shards]),
        prompt_lengths=at.pick([s.prompt_lengths for s in shards]),
        logprobs=at.take([s.logprobs for s in shards]),
        finish=at.pick([s.finish for s in shards]),
        versions=at.pick([s.versions for s in shards]),
        sampled=at.take_if_any([s.sampled for s in shards]),
        earned=at.pick_if_any([s.earned for s in shards]),
    )


def gather_fields(shards: Sequence[TokenField], ids: IntArray, what: str = "field") -> TokenField:
    """The rows of the sequences `ids`, in that order, from several shards.

    Raises:
        LedgerError: an id is in no shard, or in several.
    """
    at = _find([s.ids for s in shards], ids, what)
    return TokenField(np.asarray(ids, np.int64), at.take([s.values for s in shards]))


def gather_numbers(shards: Sequence[SequenceField], ids: IntArray, what: str) -> SequenceField:
    """The numbers of the sequences `ids`, in that order, from several shards.

    Raises:
        LedgerError: an id is in no shard, or in several.
    """
    at = _find([s.ids for s in shards], ids, what)
    return SequenceField(np.asarray(ids, np.int64), at.pick([s.values for s in shards]))


def gather_experience(shards: Sequence[ExperienceBatch], ids: IntArray) -> ExperienceBatch:
    """The sequences `ids`, in that order, from several shards of experience.

    Raises:
        LedgerError: an id is in no shard, or in several.
    """
    at = _find([s.ids for s in shards], ids, "experience")
    return ExperienceBatch(
        ids=np.asarray(ids, np.int64),
        tokens=at.take([s.tokens for s in shards]),
        prompt_lengths=at.pick([s.prompt_lengths for s in shards]),
        rollout_logprobs=at.take([s.rollout_logprobs for s in shards]),
        old_logprobs=at.take([s.old_logprobs for s in shards]),
        advantages=at.take([s.advantages for s in shards]),
        returns=at.take_if_any([s.returns for s in shards]),
        values=at.take_if_any([s.values for s in shards]),
        ref_logprobs=at.take_if_any([s.ref_logprobs for s in shards]),
        sampled=at.take_if_any([s.sampled for s in shards]),
    )


def gather_scores(shards: Sequence[Scores], ids: IntArray) -> Scores:
    """The scores of the sequences `ids`, in that order, from several shards.

    Raises:
        LedgerError: an id is in no shard, or in several.
    """
    at = _find([s.ids for s in shards], ids, "score")
    return Scores(
        np.asarray(ids, np.int64),
        at.pick([s.values for s in shards]),
        at.pick_words([s.failures for s in shards]),
        at.pick_words([s.words or ("",) * len(s.ids) for s in shards]),
        _gather_terms(at, shards),
        at.take_if_any([s.steps for s in shards]),
    )


def _gather_terms(at: _Places, shards: Sequence[Scores]) -> TermScores | None:
    parts = [s.terms for s in shards if s.terms is not None]
    if len(parts) < len(shards):
        return None
    return replace(parts[0], values=at.pick([part.values for part in parts]))


def told(scores: Scores) -> list[str]:
    """One line per sequence without a score: the reason and any error message of the reward."""
    words = scores.words or ("",) * len(scores.failures)
    return [
        f"{reason}: {said}" if said else reason
        for reason, said in zip(scores.failures, words, strict=True)
        if reason
    ]
