"""The records that cross role borders: frozen, numpy only, no engine imported.

Axis letters: B sequences, T response tokens, S prompt + response tokens. Rows of unequal length are
stored end to end (`Ragged`), so nothing that travels holds padding and Ray moves each array without
a copy on one node.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


class Finish(enum.IntEnum):
    """Why a sequence ended."""

    STOP = 0  # the end-of-sequence token was sampled (it is part of the response)
    LENGTH = 1  # the token limit cut it
    ABORT = 2  # an operator or a failure cut it


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of unequal length stored end to end: row i is `values[offsets[i]:offsets[i + 1]]`."""

    values: npt.NDArray[np.generic]
    offsets: IntArray

    @classmethod
    def from_rows(
        cls, rows: Sequence[Sequence[object] | npt.NDArray[np.generic]], dtype: npt.DTypeLike
    ) -> Self:
        """Pack rows; an empty list gives zero rows."""
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(r) for r in rows], out=offsets[1:])
        values = np.empty(int(offsets[-1]), dtype=dtype)
        for i, row in enumerate(rows):
            values[offsets[i] : offsets[i + 1]] = row
        return cls(values, offsets)

    @classmethod
    def concat(cls, parts: Sequence[Ragged]) -> Self:
        """Stack the rows of several records in order."""
        lengths = np.concatenate([p.lengths for p in parts]) if parts else np.zeros(0, np.int64)
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(np.concatenate([p.values for p in parts]), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """(B,) number of values in each row."""
        return np.diff(self.offsets)

    def row(self, i: int) -> npt.NDArray[np.generic]:
        """Row i as a view."""
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def rows(self) -> Iterable[npt.NDArray[np.generic]]:
        """Every row as a view, in order."""
        return (self.row(i) for i in range(len(self)))

    def select(self, rows: IntArray | Sequence[int]) -> Ragged:
        """The chosen rows, in the chosen order, as a copy."""
        return Ragged.from_rows([self.row(int(i)) for i in rows], self.values.dtype)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the policy is sampled. `temperature` also divides logits wherever logprobs are taken."""

    temperature: float = 1.0
    max_tokens: int = 16


@dataclass(frozen=True, slots=True)
class Delivery:
    """How finished sequences leave the engines; a group is the K samples of one request."""

    part_sequences: int = 0  # leave as soon as so many are there, whole groups; 0 = all together
    groups: int = 0  # so many are enough, the rest is aborted; 0 = all


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """K samples of one prompt; sample k is seeded with `seeds[k]` and named `ids[k]`."""

    prompt_id: int
    prompt_tokens: tuple[int, ...]
    ids: tuple[int, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GenerationCall:
    """What one engine is asked to sample at once."""

    number: int  # higher than that of every call before it
    requests: list[GenerationRequest]  # in the order in which they enter the engine
    sampling: Sampling  # for all of them
    version: int  # that the engine must be admitted for
    delivery: Delivery  # when sequences leave, and how many groups are enough


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """Sampled sequences of one engine, each stamped with the policy versions that made it."""

    ids: IntArray  # (B,) unique in the run
    prompt_ids: IntArray  # (B,) row of the prompt data set
    tokens: Ragged  # int32, S per row: prompt then response, end-of-sequence token included
    prompt_lengths: IntArray  # (B,) tokens
    logprobs: Ragged  # float32, T per row, nats, after temperature
    finish: IntArray  # (B,) Finish values
    versions: IntArray  # (B, 2) policy version of the first and the last token

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def response_lengths(self) -> IntArray:
        """(B,) tokens T of each response."""
        return self.tokens.lengths - self.prompt_lengths

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
        )

    def summary(self) -> RolloutSummary:
        """The per-sequence scalars that the driver plans with."""
        return RolloutSummary(
            self.ids, self.prompt_ids, self.prompt_lengths, self.response_lengths, self.finish,
            self.versions,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RolloutSummary:
    """Per-sequence scalars of a RolloutBatch; all that the driver sees of it."""

    ids: IntArray
    prompt_ids: IntArray
    prompt_lengths: IntArray
    response_lengths: IntArray
    finish: IntArray
    versions: IntArray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class TokenField:
    """One number a response token (logprobs or values), keyed by sequence id."""

    ids: IntArray  # (B,)
    values: Ragged  # float32, T per row


@dataclass(frozen=True, slots=True)
class Scores:
    """One reward a sequence. A failed one is a recorded drop, never a zero."""

    ids: IntArray  # (B,)
    values: FloatArray  # (B,) reward units; NaN where failed
    failures: tuple[str, ...]  # (B,) empty string = ok, else the reason, by which drops are counted
    words: tuple[str, ...] = ()  # (B,) what an error of the reward's own says; () = none says any


@dataclass(frozen=True, slots=True)
class Work:
    """One rank's share of a pass: which sequences, in which micro-batches.

    Every rank of a group gets the same number of micro-batches; an empty one is a dummy that runs
    with zero weight, so no collective is ever short of a peer.
    """

    micro_batches: tuple[IntArray, ...]  # sequence ids

    @property
    def ids(self) -> IntArray:
        """All sequence ids of this rank, in order."""
        return np.concatenate([*self.micro_batches, np.zeros(0, np.int64)])


@dataclass(frozen=True, slots=True)
class StepWork:
    """One rank's share of one optimizer step, with the counts of the whole step over all ranks."""

    work: Work
    tokens: int  # counted tokens in the step, all ranks (> 0)
    sequences: int  # counted sequences (or rankings) in the step, all ranks


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Supervised examples: every token, and which of them are targets."""

    tokens: Ragged  # int32, S per row
    targets: Ragged  # bool, S per row; True = this token is predicted and counts
    # int32, S per row: position within its document, where documents share rows; attention then
    # stays inside each document. None = one document a row.
    positions: Ragged | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def target_count(self) -> int:
        """Counted tokens; the first token of a row has no predecessor and never counts."""
        firsts = self.targets.offsets[:-1][self.targets.lengths > 0]
        return int(self.targets.values.sum()) - int(self.targets.values[firsts].sum())

    def select(self, rows: IntArray | Sequence[int]) -> TokenBatch:
        """The chosen rows."""
        positions = self.positions.select(rows) if self.positions is not None else None
        return TokenBatch(self.tokens.select(rows), self.targets.select(rows), positions)


@dataclass(frozen=True, slots=True)
class SupervisedStep:
    """One rank's micro-batches of one supervised optimizer step; empty batches are dummies."""

    micro_batches: tuple[TokenBatch, ...]
    tokens: int  # counted target tokens, all ranks (> 0)


@dataclass(frozen=True, slots=True)
class Ranking:
    """K completions of one prompt with ranks (1 = best, equal = tie), as token ids."""

    prompt_id: int  # equal for all rankings of one prompt: their pairs are no independent evidence
    sequences: Ragged  # int32, K rows: prompt then completion
    ranks: IntArray  # (K,)
    source: str = ""  # name of the data set
    annotator: str = ""  # who ranked them, where the set says so

    @property
    def pairs(self) -> int:
        """Number of ordered pairs after ties are dropped."""
        return int((self.ranks[:, None] < self.ranks[None, :]).sum())


@dataclass(frozen=True, slots=True)
class RankingStep:
    """One rank's micro-batches of one reward-model optimizer step; empty tuples are dummies.

    The loss of a ranking is its mean over kept pairs; the loss of the step is the mean over
    rankings that kept at least one pair (InstructGPT, equation 1).
    """

    micro_batches: tuple[tuple[Ranking, ...], ...]
    rankings: int  # rankings with at least one kept pair, all ranks (> 0)


@dataclass(frozen=True, slots=True)
class ExperienceBatch:
    """Sequences ready for PPO, fields aligned on response tokens (T per row)."""

    ids: IntArray  # (B,)
    tokens: Ragged  # int32, S per row
    prompt_lengths: IntArray  # (B,)
    rollout_logprobs: Ragged  # as sampled by the engine
    old_logprobs: Ragged  # trainer's logprobs before the first update
    advantages: Ragged  # not whitened: whitening needs the moments of all shards
    returns: Ragged
    values: Ragged  # critic's values before the first update


@dataclass(frozen=True, slots=True)
class ExperienceSummary:
    """Per-sequence scalars and the moments that whiten advantages over all shards."""

    ids: IntArray  # (B,)
    kl: FloatArray  # (B,) summed k1 estimate policy || reference, nats
    shaped_returns: FloatArray  # (B,) sum of KL-shaped rewards
    advantage_count: int
    advantage_sum: float
    advantage_square_sum: float
    mismatch_max: float  # max |trainer - engine| logprob, nats
    mismatch_mean: float  # mean |trainer - engine| logprob, nats
    mismatch_k3: float  # mean k3 estimate of KL(engine || trainer), nats


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one optimizer step of any trainer reports. Losses are per counted token or ranking."""

    loss: float
    grad_norm: float
    learning_rate: float
    applied: bool  # False: the loss or the gradient was not finite, and the step was skipped
    extra: dict[str, float] = field(default_factory=dict)  # named in the worker's docstring
    culprits: tuple[int, ...] = ()  # of a skipped step: rows whose loss was not finite


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """Name, dtype (torch name, e.g. "float32") and shape of one weight, Hugging Face names."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WeightOffer:
    """What a sender is about to transfer, and where a receiver finds it."""

    version: int
    metas: tuple[TensorMeta, ...]
    nbytes: int
    transport: str  # "shm" | "gloo" | "nccl"
    location: str = ""  # shm: path of the shared mapping
    checksum: str = ""  # shm: known before the transfer; others: compared afterwards
    bucket_bytes: int = 64 << 20  # both sides pack whole layers into buckets of this size


@dataclass(frozen=True, slots=True)
class GroupAddress:
    """Rendezvous of a sender and its receivers (transports gloo and nccl)."""

    host: str
    port: int
    world_size: int
    backend: str = "gloo"  # "gloo" | "nccl"


@dataclass(frozen=True, slots=True)
class WeightReceipt:
    """One side's account of a transfer; checksums of all sides must agree."""

    version: int
    checksum: str
    nbytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RankAddress:
    """Where one trainer rank stands in its process group."""

    rank: int
    world_size: int
    host: str
    port: int
    local_rank: int = 0


@dataclass(frozen=True, slots=True)
class RoleInfo:
    """Identity of one actor: written into summary.json."""

    role: str
    rank: int
    pid: int
    node: str
    device: str


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a checkpoint, as it was when it was written."""

    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PolicyStep:
    """One rank's share of one PPO optimizer step, with pretraining text when ptx is on."""

    ppo: StepWork
    ptx: SupervisedStep | None = None


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Held-out ranking accuracy: pairs ordered as the labeler did, of all kept pairs."""

    correct: int
    pairs: int
    loss_sum: float  # summed over rankings
    rankings: int
    # (K,) scores of each ranking in the order of the steps, rank after rank, reward units; from a
    # worker those of its own share
    scores: tuple[FloatArray, ...] = ()


@dataclass(frozen=True, slots=True)
class TextLoss:
    """Summed negative log-likelihood in nats and the tokens it counts."""

    nll: float
    tokens: int


@dataclass(frozen=True, slots=True)
class EngineState:
    """What an engine would serve. Status: empty -> unverified -> admitted."""

    version: int
    status: str
