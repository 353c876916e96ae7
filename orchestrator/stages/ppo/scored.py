"""Sample and score the sequences of an iteration, in as many batches of prompts as it takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orchestrator.roles.interfaces import Rollouts
from orchestrator.session.corrections import without
from orchestrator.stages.ppo.advantages import complete_groups, rows_of
from orchestrator.stages.ppo.passes import Passes
from orchestrator.stages.ppo.phases import Phases
from orchestrator.stages.ppo.queue import Batch, require_fresh
from orchestrator.stages.ppo.sampling import (
    drop_culprits,
    drop_lost,
    drop_surplus,
    generate_more,
    prompts_of,
)
from orchestrator.stages.ppo.state import PPORun
from workers.data.records import Prompt
from workers.records.arrays import IntArray
from workers.records.combining import combined
from workers.records.gather import gather_scores
from workers.records.training import Scores

# Scores of one prompt that differ by less, relative to their size, are the same.
SAME = 1e-6


@dataclass(frozen=True, slots=True)
class Scored:
    """The sequences of an iteration; the passes over them are running."""

    passes: Passes
    rollouts: Rollouts
    scores: Scores  # of all sequences, penalties deducted
    kept: IntArray  # ids of those that are trained on, sorted


def sample(run: PPORun, iteration: int, phases: Phases) -> Scored:
    """Take the iteration's batch, and score each part of it as soon as it arrives.

    With `algorithm.dynamic_sampling`, prompts whose samples all have the same score are dropped,
    and further prompts are sampled from the same weights until enough are left.
    """
    session, settings = run.session, run.session.config.algorithm
    passes = Passes(
        session,
        phases.begin,
        values=run.estimator.needs_values,
        rewards=run.estimator.needs_reward,
        reference=not run.learns_rankings,
        of_engine=run.learns_rankings or bool(run.engine_logprobs),
    )
    dynamic, wanted = settings.dynamic_sampling, settings.prompts_per_iteration
    most = dynamic.max_batches if dynamic.enabled else 1
    shaped: list[Scores] = []
    kept = np.zeros(0, np.int64)
    for n in range(most):
        with phases.span("generate"):
            batch, prompts = _first(run, iteration) if n == 0 else generate_more(run, iteration, n)
            _arrive(run, batch, prompts, passes)
        own = _scores_of_new(run, passes, shaped)
        shaped.append(own)
        fresh = complete_groups(run, passes.rollouts(), run.scoring.keep(session, own))
        if dynamic.enabled:
            fresh = _drop_uniform(run, passes, fresh)
        kept = np.concatenate([kept, fresh])
        if len(np.unique(_prompts(passes.rollouts(), kept))) >= wanted:
            break
    rollouts = passes.rollouts()
    if dynamic.enabled:
        kept = _drop_beyond(run, rollouts, kept, wanted)
    return Scored(passes, rollouts, gather_scores(shaped, rollouts.summary.ids), kept)


def _first(run: PPORun, iteration: int) -> tuple[Batch, list[Prompt]]:
    """The iteration's batch, which may have been requested earlier, and its prompts."""
    run.queue.fill(iteration)
    run.session.saves.settle()  # here, because the trainers are idle
    return run.queue.take(iteration), prompts_of(run, iteration)


def _arrive(run: PPORun, batch: Batch, prompts: list[Prompt], passes: Passes) -> None:
    """Start the passes over every part of a batch."""
    session = run.session
    passes.expect(session.asked(prompts))
    for part in batch.generation.parts():
        require_fresh(part.summary, run.version, run.staleness, str(session.position))
        session.fleet.rollout.sleep().result()
        passes.start(without(part, session.corrections.excluded))
    session.parts = passes.parts
    drop_culprits(run, batch)
    drop_lost(run, batch)
    drop_surplus(run, batch, passes.rollouts())


def _scores_of_new(run: PPORun, passes: Passes, before: list[Scores]) -> Scores:
    """Scores of the sequences that are not in `before`, penalties deducted."""
    rollouts, found = passes.rollouts(), passes.scores()
    known = np.concatenate([np.zeros(0, np.int64), *(scores.ids for scores in before)])
    new = rollouts.summary.ids[~np.isin(rollouts.summary.ids, known)]
    rows = rows_of(rollouts, new)
    return run.scoring.shape(
        combined(gather_scores([found], new)),
        rollouts.summary.finish[rows],
        rollouts.summary.response_lengths[rows],
    )


def _drop_uniform(run: PPORun, passes: Passes, kept: IntArray) -> IntArray:
    """Drop the sequences of prompts whose samples have one score; returns the others.

    The reward's score counts, without penalties: those for length would tell equal answers apart.
    """
    scores = gather_scores([passes.scores()], kept).values.astype(np.float64)
    _, group = np.unique(_prompts(passes.rollouts(), kept), return_inverse=True)
    size = int(group.max()) + 1 if len(group) else 0
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(low, group, scores)
    np.maximum.at(high, group, scores)
    tells = (high - low > SAME * np.maximum(1.0, np.abs(high)))[group]
    if not tells.all():
        run.ledger.dropped(kept[~tells], "all samples of the prompt have the same score")
    if len(kept) and not tells.any():
        run.session.live.note("no prompt of a batch has samples of different scores")
    return kept[tells]


def _drop_beyond(run: PPORun, rollouts: Rollouts, kept: IntArray, wanted: int) -> IntArray:
    """Drop the sequences of all prompts after the first `wanted`, in the order of sampling."""
    kept = np.sort(kept)
    prompts = _prompts(rollouts, kept)
    _, first, group = np.unique(prompts, return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))[group]  # 0 for the prompt that was sampled first
    if (place >= wanted).any():
        run.ledger.dropped(kept[place >= wanted], "more prompts than an iteration trains on")
    return kept[place < wanted]


def _prompts(rollouts: Rollouts, ids: IntArray) -> IntArray:
    return rollouts.summary.prompt_ids[rows_of(rollouts, ids)]
