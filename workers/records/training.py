"""Records of training: batches, steps, experience and statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workers.records.arrays import FloatArray, IntArray, Ragged


@dataclass(frozen=True, slots=True)
class TokenField:
    """One number per sampled token (logprobs or values), keyed by sequence id."""

    ids: IntArray  # (B,)
    values: Ragged  # float32, one per token that the policy sampled


@dataclass(frozen=True, slots=True)
class SequenceField:
    """One number per sequence, keyed by sequence id."""

    ids: IntArray  # (B,)
    values: NDArray[np.float64]  # (B,)


@dataclass(frozen=True, slots=True)
class TermScores:
    """What each term of a reward gave to each sequence."""

    names: tuple[str, ...]  # (n,)
    weights: tuple[float, ...]  # (n,)
    normalised: bool  # each term is whitened before the sum
    values: FloatArray  # (B, n) units of the term; NaN where it failed

    def of(self, name: str) -> FloatArray:
        """(B,) values of one term."""
        return self.values[:, self.names.index(name)]


@dataclass(frozen=True, slots=True)
class Scores:
    """One reward per sequence. A failed sequence is dropped and recorded, never scored as 0."""

    ids: IntArray  # (B,)
    values: FloatArray  # (B,) reward units; NaN where failed
    failures: tuple[str, ...]  # (B,) "" = ok, else the reason; drops are counted per reason
    words: tuple[str, ...] = ()  # (B,) error messages of the user's function; () = none
    terms: TermScores | None = None  # None = a reward without terms
    # float32, T per row, reward units: parts of the score at the ends of steps (process rewards)
    steps: Ragged | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """One rank's share of a pass: its sequences, split into micro-batches.

    Every rank of a group gets the same number of micro-batches; an empty one is a dummy that runs
    with zero weight, so that every rank takes part in every collective.
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
    """Supervised examples: their tokens, and which of them are targets."""

    tokens: Ragged  # int32, S per row
    targets: Ragged  # bool, S per row; True = this token is predicted and counts
    # int32, S per row: position within its document, if documents share rows; attention then stays
    # inside each document. None = one document per row.
    positions: Ragged | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def target_count(self) -> int:
        """Counted tokens; the first token of a row has no predecessor and never counts."""
        firsts = self.targets.offsets[:-1][self.targets.lengths > 0]
        return int(self.targets.values.sum()) - int(self.targets.values[firsts].sum())

    def split(self) -> list[tuple[list[int], list[int]]]:
        """Of each row the ids before its first target, and those from it on: prompt and reply."""
        starts = [int(np.argmax(targets)) for targets in self.targets.rows()]
        rows = [tokens.tolist() for tokens in self.tokens.rows()]
        return [(row[:at], row[at:]) for row, at in zip(rows, starts, strict=True)]

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

    prompt_id: int  # equal for all rankings of one prompt, whose pairs are not independent evidence
    sequences: Ragged  # int32, K rows: prompt then completion
    ranks: IntArray  # (K,)
    source: str = ""  # name of the data set
    annotator: str = ""  # who ranked them, if the data set says so
    prompt_length: int = 0  # tokens of the prompt, with which each sequence begins; 0 = unknown
    # (K,) nats, log-probability of each completion under the reference; None = not computed
    reference: FloatArray | None = None
    # (K,) of the sampled sequences, to name them in errors; None = the prompt is named
    ids: IntArray | None = None
    likert: IntArray | None = None  # (K,) quality from 1 to 7, by the annotator; None = not rated
    # (K,) the margin of a pair in the reward model's loss is the difference of its levels, within
    # 0 .. 1; None = no margin
    levels: FloatArray | None = None
    # (K, K) soft labels: entry (i, j) is the probability that i is better than j, NaN = not asked;
    # they train in place of the ranks. None = the ranks train
    probabilities: FloatArray | None = None

    @property
    def ordered(self) -> int:
        """Number of ordered pairs after ties are dropped."""
        return int((self.ranks[:, None] < self.ranks[None, :]).sum())

    @property
    def pairs(self) -> int:
        """Number of pairs that train: those with a probability, or the ordered ones."""
        if self.probabilities is None:
            return self.ordered
        above = np.triu_indices(len(self.ranks), 1)
        return int(np.isfinite(self.probabilities[above]).sum())

    @property
    def completions(self) -> TokenBatch:
        """The sequences with the tokens of the completions as targets."""
        assert self.prompt_length > 0, "a completion needs a token before it"
        starts = np.repeat(self.sequences.offsets[:-1], self.sequences.lengths)
        within = np.arange(len(self.sequences.values)) - starts
        targets = Ragged(within >= self.prompt_length, self.sequences.offsets)
        return TokenBatch(self.sequences, targets)


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
    """Sequences ready for PPO, fields aligned on the response tokens that the policy sampled."""

    ids: IntArray  # (B,)
    tokens: Ragged  # int32, S per row
    prompt_lengths: IntArray  # (B,)
    rollout_logprobs: Ragged  # as sampled by the engine
    old_logprobs: Ragged  # trainer's logprobs before the first update
    advantages: Ragged  # not whitened: whitening needs the moments of all shards
    returns: Ragged | None  # for the critic to fit; None without a critic
    values: Ragged | None  # critic's values before the first update; None without a critic
    ref_logprobs: Ragged | None = None  # of the reference, for a KL term in the loss; None without
    sampled: Ragged | None = None  # as in RolloutBatch: which response tokens these fields are of


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
    """Report of one optimizer step of any trainer. Losses are per counted token or ranking."""

    loss: float
    grad_norm: float
    learning_rate: float
    applied: bool  # False: the loss or the gradient was not finite, and the step was skipped
    extra: dict[str, float] = field(default_factory=dict)  # named in the worker's docstring
    culprits: tuple[int, ...] = ()  # of a skipped step: rows whose loss was not finite


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
    # (K,) scores of each ranking, in the order of the steps, then by rank; reward units. A worker
    # returns those of its share.
    scores: tuple[FloatArray, ...] = ()


@dataclass(frozen=True, slots=True)
class TextLoss:
    """Summed negative log-likelihood in nats and the tokens it counts."""

    nll: float
    tokens: int
