"""Records of generation: requests to rollout engines and their results."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from workers.records.arrays import FloatArray, IntArray, Ragged

T = TypeVar("T")


class Finish(enum.IntEnum):
    """Why a sequence ended."""

    STOP = 0  # the end-of-sequence token was sampled (it is part of the response)
    LENGTH = 1  # the token limit cut it
    ABORT = 2  # sampling was interrupted


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters. `temperature` also divides the logits wherever logprobs are computed."""

    temperature: float = 1.0
    max_tokens: int = 16
    allowed: tuple[int, ...] = ()  # ids that may be drawn, as if no others were; () = all


@dataclass(frozen=True, slots=True)
class Delivery:
    """How engines deliver finished sequences; a group is the K samples of one request."""

    part_sequences: int = 0  # deliver a part at this many sequences, whole groups; 0 = one part
    groups: int = 0  # stop after this many complete groups and abort the rest; 0 = all


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """K samples of one prompt; sample k is seeded with `seeds[k]` and named `ids[k]`."""

    prompt_id: int
    prompt_tokens: tuple[int, ...]  # of a later turn: the whole conversation so far
    ids: tuple[int, ...]
    seeds: tuple[int, ...]
    max_tokens: int = 0  # of a later turn: its limit; 0 = as `Sampling` says


@dataclass(frozen=True, slots=True)
class GenerationCall:
    """One sampling call to one engine."""

    number: int  # higher than that of every call before it
    requests: list[GenerationRequest]  # in the order in which they enter the engine
    sampling: Sampling  # for all of them
    version: int  # weight version that the engine must be admitted for
    delivery: Delivery  # size of the parts, and how many groups are enough


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """Sampled sequences of one engine, each with the policy versions that sampled it.

    The response of a conversation also holds what its environment said: tokens that the policy did
    not sample, which have no log-probability and are never trained on.
    """

    ids: IntArray  # (B,) unique in the run
    prompt_ids: IntArray  # (B,) row of the prompt data set
    tokens: Ragged  # int32, S per row: prompt then response, end-of-sequence token included
    prompt_lengths: IntArray  # (B,) tokens
    logprobs: Ragged  # float32, one per sampled token, nats, after temperature
    finish: IntArray  # (B,) Finish values
    versions: IntArray  # (B, 2) policy version of the first and the last token
    # bool, T per row; True = sampled by the policy. None = every response token is.
    sampled: Ragged | None = None
    earned: FloatArray | None = None  # (B,) sum of the environment's rewards; None = no environment

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def response_lengths(self) -> IntArray:
        """(B,) tokens T of each response."""
        return self.tokens.lengths - self.prompt_lengths

    @property
    def sampled_lengths(self) -> IntArray:
        """(B,) tokens of each response that the policy sampled."""
        return self.response_lengths if self.sampled is None else self.logprobs.lengths

    @property
    def turns(self) -> IntArray:
        """(B,) turns of the policy in each response."""
        if self.sampled is None:
            return np.ones(len(self), np.int64)
        return np.array([len(turns_of(row)) for row in self.sampled.rows()], np.int64)

    def prompt(self, i: int) -> list[int]:
        """Token ids of prompt i."""
        return self.tokens.row(i)[: self.prompt_lengths[i]].tolist()

    def response(self, i: int) -> list[int]:
        """Token ids of response i, end-of-sequence token included."""
        return self.tokens.row(i)[self.prompt_lengths[i] :].tolist()

    def select(self, rows: IntArray | Sequence[int]) -> RolloutBatch:
        """The chosen sequences, in the chosen order."""
        r = np.asarray(rows, dtype=np.int64)
        return RolloutBatch(
            self.ids[r], self.prompt_ids[r], self.tokens.select(r), self.prompt_lengths[r],
            self.logprobs.select(r), self.finish[r], self.versions[r],
            None if self.sampled is None else self.sampled.select(r),
            None if self.earned is None else self.earned[r],
        )  # fmt: skip

    @classmethod
    def concat(cls, parts: Sequence[RolloutBatch]) -> RolloutBatch:
        """Stack the batches of several engines in order."""
        return cls(
            np.concatenate([p.ids for p in parts]),
            np.concatenate([p.prompt_ids for p in parts]),
            Ragged.concat([p.tokens for p in parts]),
            np.concatenate([p.prompt_lengths for p in parts]),
            Ragged.concat([p.logprobs for p in parts]),
            np.concatenate([p.finish for p in parts]),
            np.concatenate([p.versions for p in parts]),
            _all_or_none([p.sampled for p in parts], Ragged.concat),
            _all_or_none([p.earned for p in parts], np.concatenate),
        )

    def summary(self) -> RolloutSummary:
        """The per-sequence scalars that the driver plans with."""
        return RolloutSummary(
            self.ids, self.prompt_ids, self.prompt_lengths, self.response_lengths, self.finish,
            self.versions, self.sampled_lengths, self.turns,
        )  # fmt: skip


def turns_of(sampled: npt.NDArray[np.generic]) -> list[tuple[int, int]]:
    """Where the turns of the policy are in a response: [first, end) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], sampled.astype(bool), [False]])))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def _all_or_none(parts: Sequence[T | None], together: Callable[[list[T]], T]) -> T | None:
    """A field that all parts have, or none of them."""
    there = [part for part in parts if part is not None]
    assert len(there) in (0, len(parts)), "some parts have the field, and some do not"
    return together(there) if there else None


@dataclass(frozen=True, slots=True)
class RolloutSummary:
    """Per-sequence scalars of a RolloutBatch; the driver gets only these."""

    ids: IntArray
    prompt_ids: IntArray
    prompt_lengths: IntArray
    response_lengths: IntArray
    finish: IntArray
    versions: IntArray
    sampled_lengths: IntArray  # tokens of each response that the policy sampled
    turns: IntArray  # of the policy in each response

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class EngineState:
    """Weight version and status of an engine. Status: empty -> unverified -> admitted."""

    version: int
    status: str
