"""Online direct preference optimisation (Guo et al., arXiv 2402.04792).

Each iteration the current policy samples K responses per prompt, the rewards rank them, and the
policy takes steps of the loss of the stage dpo on these rankings; then its weights are sent to the
engines, as in PPO. The driver reads the sampled tokens, 4 bytes each, as in the stage dpo.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from orchestrator.config.run import StageName
from orchestrator.config.training import OnNonFinite
from orchestrator.roles.weight_sync import SyncReport
from orchestrator.session.session import Session
from orchestrator.stages.dpo import learn, with_reference
from orchestrator.stages.ppo.advantages import rows_of
from orchestrator.stages.ppo.ledger import LedgerSummary, enter
from orchestrator.stages.ppo.loop import (
    begin,
    beside,
    keep_skipped,
    pass_over,
    require_near,
    sync_weights,
)
from orchestrator.stages.ppo.phases import Phases
from orchestrator.stages.ppo.record import (
    Marks,
    append_samples,
    count_values,
    mean_of,
    named,
    parity_values,
    sampled_values,
)
from orchestrator.stages.ppo.scored import SAME, Scored, sample
from orchestrator.stages.ppo.setup import set_up
from orchestrator.stages.ppo.state import PPORun
from workers.records.arrays import FloatArray, IntArray
from workers.records.gather import gather_scores
from workers.records.generation import RolloutBatch
from workers.records.training import Ranking, StepStats


def online_dpo(session: Session) -> None:
    """Train the policy from the SFT model on rankings of its own samples."""
    total, stage = session.config.algorithm.iterations, session.name_of(StageName.online_dpo)
    session.live.stage(stage, total)
    session.reached("earlier_stages")
    sft = session.need("sft")
    run = set_up(session, StageName.online_dpo, 0.0, sft)
    for iteration in range(begin(run), total):
        session.position.step = iteration
        _iterate(run, iteration)
        savers = (*run.trainers, run.saved_rollouts)
        session.boundary(stage, iteration + 1, total, run.state(), *savers)
    made = session.product_of(StageName.online_dpo)
    session.publish(made, lambda path: session.fleet.policy.save(path, sft).result(), stage)


@dataclass(frozen=True, slots=True)
class _Iteration:
    """Everything that is known about one finished iteration."""

    index: int
    scored: Scored
    batch: RolloutBatch  # the sampled sequences
    kl: dict[int, float]  # of the trained sequences, nats; NaN if it is not known
    steps: list[StepStats]
    counts: LedgerSummary
    sync: SyncReport
    lag: int  # how many updates behind the policy the oldest sequence began
    seconds: float


def _iterate(run: PPORun, iteration: int) -> None:
    """One iteration: sample, rank, learn, sync."""
    began, session = time.monotonic(), run.session
    phases = Phases(session.telemetry, run.stage, iteration + 1)
    scored = sample(run, iteration, phases)
    batch = session.fleet.rollout.fetch(scored.rollouts).result()
    rankings = _rankings(run, scored, batch)
    if not rankings:
        pass_over(run, iteration, scored.rollouts, scored.passes)
        return
    with phases.span("reference"):
        rankings = with_reference(session, rankings)
    kl = _kl(session, batch, rankings)
    require_near(session, mean_of([*kl.values()]))
    with phases.span("policy_update"):
        steps = _learn(run, iteration, rankings)
    session.trainers_rest()
    keep_skipped(session, scored.rollouts, steps)
    session.reached("first_iteration")
    run.ledger.trained(np.array(sorted(kl)))
    counts = run.ledger.check(iteration, run.queue.ids)
    enter(session.findings, counts)
    lag = run.version - int(scored.rollouts.summary.versions[:, 0].min())
    with phases.span("weight_sync"):
        synced = sync_weights(run, beside(run, iteration + 1))
    seconds = time.monotonic() - began
    _record(run, _Iteration(iteration, scored, batch, kl, steps, counts, synced, lag, seconds))
    session.parts = ()


def _rankings(run: PPORun, scored: Scored, batch: RolloutBatch) -> list[Ranking]:
    """The kept samples of each prompt, ranked by score; prompts without a pair are dropped.

    In the order of sampling, whichever engine served a prompt.
    """
    summary, kept = scored.rollouts.summary, np.sort(scored.kept)
    prompts = summary.prompt_ids[rows_of(scored.rollouts, kept)]
    scores = gather_scores([scored.scores], kept).values
    row = {int(i): n for n, i in enumerate(batch.ids)}
    found: list[Ranking] = []
    for first in np.sort(np.unique(prompts, return_index=True)[1]):
        own = prompts == prompts[first]
        rows = np.array([row[int(i)] for i in kept[own]])
        ranking = Ranking(
            int(prompts[first]),
            batch.tokens.select(rows),
            ranks_of(scores[own]),
            prompt_length=int(batch.prompt_lengths[rows[0]]),
            ids=kept[own],
        )
        if ranking.pairs:
            found.append(ranking)
        else:
            run.ledger.dropped(kept[own], "all samples of the prompt have the same score")
    return found


def ranks_of(scores: FloatArray) -> IntArray:
    """Ranks of (K,) scores, 1 = the highest; scores that differ by rounding only are a tie."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    apart = ranked[:-1] - ranked[1:] > SAME * np.maximum(1.0, np.abs(ranked[:-1]))
    ranks = np.empty(len(scores), np.int64)
    ranks[order] = 1 + np.concatenate([[0], np.cumsum(apart)])
    return ranks


def _kl(session: Session, batch: RolloutBatch, rankings: list[Ranking]) -> dict[int, float]:
    """KL(policy || reference) of each sequence by its own tokens, nats (k1).

    NaN without a reference, and where the engines sample at another temperature than the 1 of the
    loss: then their log-probabilities are those of another distribution.
    """
    known = session.config.rollout.temperature == 1.0
    rows = zip(batch.ids.tolist(), batch.logprobs.rows(), strict=True) if known else ()
    logprobs = {int(i): float(row.sum(dtype=np.float64)) for i, row in rows}
    found: dict[int, float] = {}
    for ranking in rankings:
        assert ranking.ids is not None
        for n, i in enumerate(ranking.ids.tolist()):
            of_reference = math.nan if ranking.reference is None else ranking.reference[n]
            found[i] = float(logprobs.get(i, math.nan) - of_reference)
    return found


def _learn(run: PPORun, iteration: int, rankings: list[Ranking]) -> list[StepStats]:
    """The optimizer steps of an iteration; each pass has a new order of the rankings.

    A run that went back after an excess of KL has a larger beta from there on.
    """
    session, settings = run.session, run.session.config.preference
    size, steps = settings.rankings_per_step, list[StepStats]()
    run.sync.policy_moves()
    for epoch in range(settings.epochs):
        rng = np.random.default_rng(session.seed(run.stage, "order", iteration, epoch))
        order = rng.permutation(len(rankings))
        for start in range(0, len(order), size):
            own = [rankings[n] for n in order[start : start + size]]
            steps.append(learn(session, own, session.corrections.kl_scale))
            session.note_first_step()
    return steps


def _record(run: PPORun, done: _Iteration) -> None:
    """Record a finished iteration as step index + 1."""
    session, settings, step = run.session, run.session.config.algorithm, done.index + 1
    rollouts, scores = done.scored.rollouts, done.scored.scores
    taken = [stats for stats in done.steps if stats.applied] or done.steps
    tokens = int(rollouts.summary.response_lengths[rows_of(rollouts, np.array([*done.kl]))].sum())
    values = sampled_values(rollouts, scores) | count_values(done.counts) | parity_values(done.sync)
    values |= {f"dpo/{name}": mean_of([s.extra[name] for s in taken]) for name in taken[0].extra}
    values |= {
        "dpo/loss": mean_of([stats.loss for stats in taken]),
        "dpo/grad_norm": mean_of([stats.grad_norm for stats in taken]),
        "dpo/learning_rate": taken[-1].learning_rate,
        "ppo/policy_version": float(rollouts.summary.versions.max()),
        "ppo/lag_max": float(done.lag),
        "ppo/step_seconds": done.seconds,
        "ppo/tokens_per_second": tokens / done.seconds,
        "ppo/engines": float(len(session.fleet.rollout.ranks)),
    }
    if math.isfinite(kl := mean_of([*done.kl.values()])):
        values["ppo/kl_sequence"] = kl
    if settings.on_non_finite is OnNonFinite.skip:
        values["ppo/skipped_steps"] = float(sum(not stats.applied for stats in done.steps))
    due = settings.evaluate_every and step % settings.evaluate_every == 0
    with session.telemetry.span(run.stage, step, "record"):
        if due:
            values |= named(run.heldout.measure(step, run.version))
        if not session.config.samples.none:
            of_score = dict(zip(scores.ids.tolist(), scores.values.tolist(), strict=True))
            marks = Marks(of_score, done.kl, done.counts.reasons).with_terms(scores)
            append_samples(session, (run.stage, step), done.batch, marks)
        session.telemetry.record(run.stage, step, values)
    session.telemetry.record_phases(run.stage, step)
    shown = {
        name.partition("/")[2]: values[name]
        for name in ("ppo/score_mean", "ppo/kl_sequence", "dpo/loss", "ppo/gold_mean")
        if name in values
    }
    session.live.advance(step, **shown)
