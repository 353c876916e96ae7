"""Division of batches: balanced ranks, micro-batches by token budget, seeded minibatches.

Pure arithmetic on ids and lengths, without tensors or actors. Three guarantees hold everywhere:
each id appears exactly once; the same input gives the same output; and every rank of a group gets
the same number of micro-batches (padded with empty ones), so no collective waits for a rank.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workers.errors import BatchArithmeticError, DataError
from workers.models.row_packing import first_fit
from workers.records.arrays import IntArray, Ragged
from workers.records.training import (
    PolicyStep,
    Ranking,
    RankingStep,
    StepWork,
    SupervisedStep,
    TokenBatch,
    Work,
)

NO_IDS: IntArray = np.zeros(0, np.int64)


def balance(costs: IntArray, ranks: int) -> list[IntArray]:
    """Row indices per rank, longest first onto the least loaded rank (Graham's LPT rule).

    The largest load is at most 4/3 of the optimum. Ties go to the rank with fewer rows, then to the
    lower rank; rows keep their order within a rank.

    Raises:
        ValueError: `ranks` is not positive.
    """
    if ranks < 1:
        raise ValueError(f"ranks={ranks} must be positive")
    heap = [(0, 0, rank) for rank in range(ranks)]
    owner = np.empty(len(costs), np.int64)
    for row in np.argsort(-costs, kind="stable").tolist():
        load, rows, rank = heapq.heappop(heap)
        owner[row] = rank
        heapq.heappush(heap, (load + int(costs[row]), rows + 1, rank))
    return [np.flatnonzero(owner == rank) for rank in range(ranks)]


def partition(ids: IntArray, lengths: IntArray, ranks: int) -> list[IntArray]:
    """Divide sequences among ranks so that tokens, not sequences, are balanced.

    Args:
        ids: (B,) sequence ids.
        lengths: (B,) tokens per sequence.
        ranks: number of shares.

    Returns:
        One array of ids per rank, in the given order; some are empty when B < ranks.

    Raises:
        ValueError: `ranks` is not positive.
    """
    assert len(ids) == len(lengths), "one length per id"
    return [ids[rows] for rows in balance(np.asarray(lengths, np.int64), ranks)]


def _group(lengths: IntArray, rows: IntArray, token_budget: int, *, packed: bool) -> list[IntArray]:
    """Group items, longest first, within the token budget; returns indices into `lengths`.

    Item i costs `rows[i]` rows padded to the longest of its group; when packed, only its length.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget={token_budget} must be positive")
    if packed:
        return first_fit(lengths, token_budget)
    groups: list[list[int]] = []
    longest = used = 0
    for item in np.argsort(-lengths, kind="stable").tolist():
        if not groups or (used + int(rows[item])) * longest > token_budget:
            groups.append([])
            longest, used = int(lengths[item]), 0
        groups[-1].append(item)
        used += int(rows[item])
    return [np.asarray(g, np.int64) for g in groups]


def micro_batches(
    ids: IntArray, lengths: IntArray, token_budget: int, *, packed: bool = False
) -> list[IntArray]:
    """Group sequences into few batches of at most `token_budget` tokens; if padded, the fewest.

    A padded batch costs rows * longest row, a packed one the sum of its rows. The longest come
    first, so that running out of memory shows at once; a row longer than the budget gets a separate
    batch.

    Args:
        ids: (B,) sequence ids.
        lengths: (B,) tokens per sequence.
        token_budget: tokens per batch, padding included.
        packed: sequences will be packed.

    Returns:
        Arrays of ids; none is empty.

    Raises:
        ValueError: the budget is not positive.
    """
    assert len(ids) == len(lengths), "one length per id"
    lengths = np.asarray(lengths, np.int64)
    return [ids[g] for g in _group(lengths, np.ones_like(lengths), token_budget, packed=packed)]


def equal_work(
    ids: IntArray, lengths: IntArray, ranks: int, token_budget: int, *, packed: bool = False
) -> list[Work]:
    """Divide sequences among ranks and into micro-batches, the same number on every rank.

    Args:
        ids: (B,) sequence ids.
        lengths: (B,) tokens per sequence, prompt included.
        ranks: size of the group.
        token_budget: tokens per micro-batch, padding included.
        packed: sequences will be packed.

    Returns:
        One Work per rank, padded with empty micro-batches. Without ids there are no micro-batches.
    """
    lengths = np.asarray(lengths, np.int64)
    shares = [
        micro_batches(ids[rows], lengths[rows], token_budget, packed=packed)
        for rows in balance(lengths, ranks)
    ]
    most = max(len(s) for s in shares)
    return [Work((*s, *(NO_IDS,) * (most - len(s)))) for s in shares]


def minibatches(
    ids: IntArray, per_step: int, seed: Sequence[int], *, uneven: bool = False
) -> list[IntArray]:
    """Split a seeded permutation of the ids into optimizer steps.

    Args:
        ids: (B,) sequence ids.
        per_step: sequences per step.
        seed: coordinates in the run's seed tree, such as (run seed, iteration, epoch).
        uneven: allow B not divisible by `per_step`, as after a dropped sequence: the number of
            steps is B / per_step rounded up, and their sizes differ by at most one. Losses are
            normalised by each step's own counts, so all sequences of a step have equal weight.

    Returns:
        One array of ids per step.

    Raises:
        BatchArithmeticError: `per_step` does not divide the batch, and `uneven` is off.
    """
    if per_step < 1 or (not uneven and len(ids) % per_step):
        raise BatchArithmeticError(
            f"{len(ids)} sequences do not divide into steps of {per_step}",
            where="minibatches",
            fix="choose prompts_per_iteration * samples_per_prompt as a multiple of "
            "sequences_per_minibatch",
        )
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(seed))))
    shuffled = ids[generator.permutation(len(ids))]
    steps = -(-len(ids) // per_step)
    return np.array_split(shuffled, steps) if steps else []


@dataclass(frozen=True, slots=True)
class StepPlan:
    """How a trainer group divides a batch of sequences into steps."""

    ranks: int
    token_budget: int  # per micro-batch, padding included
    per_step: int  # sequences per optimizer step
    epochs: int  # passes over the batch
    seed: tuple[int, ...]  # epoch e shuffles with (*seed, e)
    uneven: bool = False  # see minibatches
    packed: bool = False  # sequences will be packed


def critic_steps(
    ids: IntArray, response_lengths: IntArray, total_lengths: IntArray, plan: StepPlan
) -> list[list[StepWork]]:
    """All optimizer steps of one PPO iteration, with the global counts that normalise the losses.

    Args:
        ids: (B,) sequence ids, each once.
        response_lengths: (B,) tokens that count.
        total_lengths: (B,) tokens that cost memory, prompt included.
        plan: ranks, budget, step size, epochs and seed.

    Returns:
        `steps[rank][step]`; two groups with the same seed have the same sequences in each step.

    Raises:
        BatchArithmeticError: the batch does not divide into steps.
    """
    row_of = {int(i): row for row, i in enumerate(ids)}
    assert len(row_of) == len(ids), "ids repeat"
    by_rank: list[list[StepWork]] = [[] for _ in range(plan.ranks)]
    for epoch in range(plan.epochs):
        for step in minibatches(ids, plan.per_step, (*plan.seed, epoch), uneven=plan.uneven):
            rows = np.asarray([row_of[int(i)] for i in step], np.int64)
            tokens = int(response_lengths[rows].sum())
            works = equal_work(
                step, total_lengths[rows], plan.ranks, plan.token_budget, packed=plan.packed
            )
            for rank, work in enumerate(works):
                by_rank[rank].append(StepWork(work, tokens, len(step)))
    return by_rank


def policy_steps(
    ids: IntArray,
    response_lengths: IntArray,
    total_lengths: IntArray,
    plan: StepPlan,
    ptx: Sequence[TokenBatch] | None = None,
) -> list[list[PolicyStep]]:
    """The policy's optimizer steps: those of `critic_steps`, with pretraining text if ptx is on.

    Args:
        ids: (B,) sequence ids, each once.
        response_lengths: (B,) tokens that count.
        total_lengths: (B,) tokens that cost memory, prompt included.
        plan: ranks, budget, step size, epochs and seed.
        ptx: one batch of documents per optimizer step (all epochs); None = plain PPO.

    Returns:
        `steps[rank][step]`.

    Raises:
        BatchArithmeticError: the batch does not divide into steps, or the number of pretraining
            batches differs from the number of steps.
    """
    by_rank = critic_steps(ids, response_lengths, total_lengths, plan)
    count = len(by_rank[0])
    if ptx is None:
        return [[PolicyStep(step) for step in steps] for steps in by_rank]
    if len(ptx) != count:
        raise BatchArithmeticError(
            f"{len(ptx)} pretraining batches for {count} optimizer steps",
            where="policy_steps",
            fix="hand in one batch of documents per optimizer step",
        )
    texts = [
        supervised_step(batch, plan.ranks, plan.token_budget, packed=plan.packed) for batch in ptx
    ]
    return [
        [PolicyStep(step, texts[i][rank]) for i, step in enumerate(steps)]
        for rank, steps in enumerate(by_rank)
    ]


def pack_documents(batch: TokenBatch, row_tokens: int) -> TokenBatch:
    """Pack documents into rows of at most `row_tokens`; each document attends only to itself.

    Each document goes into the first row with enough room, longest first, so there is little
    padding. The losses equal those of one document per row. The first token of a document is no
    target, because no token precedes it.

    Args:
        batch: one document per row.
        row_tokens: the model's context; a longer document stays alone in its row.

    Returns:
        The same tokens in fewer rows, with the same targets.
    """
    lengths = batch.tokens.lengths
    rows = first_fit(lengths, row_tokens)
    targets = batch.targets.values.copy()
    targets[batch.targets.offsets[:-1][lengths > 0]] = False
    counted = Ragged(targets, batch.targets.offsets)
    return TokenBatch(
        Ragged.from_rows(
            [np.concatenate([batch.tokens.row(i) for i in row]) for row in rows], np.int32
        ),
        Ragged.from_rows([np.concatenate([counted.row(i) for i in row]) for row in rows], np.bool_),
        Ragged.from_rows(
            [
                np.concatenate([np.arange(int(lengths[i]), dtype=np.int32) for i in row])
                for row in rows
            ],
            np.int32,
        ),
    )


def supervised_step(
    batch: TokenBatch, ranks: int, token_budget: int, *, packed: bool = False
) -> list[SupervisedStep]:
    """Divide one batch of supervised examples among ranks.

    Args:
        batch: the examples of one optimizer step, all ranks.
        ranks: size of the group.
        token_budget: tokens per micro-batch, padding included.
        packed: documents will be packed.

    Returns:
        One SupervisedStep per rank, each with the global count of target tokens.

    Raises:
        DataError: no token of the batch is a target.
    """
    if batch.target_count == 0:
        raise DataError(
            f"none of the tokens of {len(batch)} examples is a target",
            where="supervised_step",
            fix="check that examples have a response or text after the first token",
        )
    rows = np.arange(len(batch), dtype=np.int64)
    return [
        SupervisedStep(tuple(batch.select(m) for m in work.micro_batches), batch.target_count)
        for work in equal_work(rows, batch.tokens.lengths, ranks, token_budget, packed=packed)
    ]


def ranking_step(
    rankings: Sequence[Ranking], ranks: int, token_budget: int, *, packed: bool = False
) -> list[RankingStep]:
    """Divide one batch of rankings among ranks; the completions of a prompt stay together.

    A ranking with only ties has no pair to learn from: it is left out, and not counted.

    Args:
        rankings: the rankings of one optimizer step, all ranks.
        ranks: size of the group.
        token_budget: tokens per micro-batch, padding included; a larger ranking is one micro-batch.
        packed: completions will be packed.

    Returns:
        One RankingStep per rank, each with the global count of rankings that have a pair.

    Raises:
        DataError: every ranking has only ties.
    """
    kept = [r for r in rankings if r.pairs > 0]
    if not kept:
        raise DataError(
            f"none of {len(rankings)} rankings prefers one completion to another",
            where="ranking_step",
            fix="leave out rankings without a pair before batching, or lower the tie width",
        )
    rows = np.asarray([len(r.sequences) for r in kept], np.int64)
    longest = np.asarray([r.sequences.lengths.max() for r in kept], np.int64)
    if packed:
        rows = np.ones_like(rows)
        longest = np.asarray([r.sequences.lengths.sum() for r in kept], np.int64)
    shares: list[list[tuple[Ranking, ...]]] = []
    for own in balance(rows * longest, ranks):
        groups = _group(longest[own], rows[own], token_budget, packed=packed)
        shares.append([tuple(kept[own[i]] for i in group) for group in groups])
    most = max(len(s) for s in shares)
    return [RankingStep((*s, *((),) * (most - len(s))), len(kept)) for s in shares]
