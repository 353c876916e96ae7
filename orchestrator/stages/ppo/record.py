"""Records of a PPO iteration: metrics and sampled texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from orchestrator.roles.interfaces import Experience, Rollouts
from orchestrator.roles.weight_sync import SyncReport
from orchestrator.run_files.samples import RolloutSample, append_rollouts
from orchestrator.session.session import Session
from orchestrator.stages.ppo.ledger import LedgerSummary
from orchestrator.stages.selection.heldout import HEADLINES, Heldout, tell_start
from workers.records.combining import scored_by_term
from workers.records.generation import Finish, RolloutBatch
from workers.records.training import Scores, StepStats


@dataclass(frozen=True, slots=True)
class Iteration:
    """Everything that is known about one finished iteration."""

    stage: str
    index: int
    version: int  # newest weights that sampled
    lag: int  # how many updates behind the policy the oldest sequence began
    rollouts: Rollouts
    scores: Scores
    experience: Experience
    policy: list[StepStats]  # empty during critic warmup
    critic: list[StepStats]  # empty without a critic
    kl_coefficient: float
    engine_logprobs: bool  # PPO's old log-probabilities are the engines'
    rewarded: bool  # False: the scores are 0 and mean nothing
    sync: SyncReport | None  # None: the policy did not change
    counts: LedgerSummary  # of this iteration only
    skips: bool  # whether steps that are not finite are skipped and counted
    seconds: float  # from the start of the iteration to the admission of its weights


def mean_kl(experience: Experience) -> float:
    """Mean over sequences of KL(policy || SFT), k1 estimate, nats per sequence."""
    return float(np.concatenate([s.kl for s in experience.summaries]).mean(dtype=np.float64))


def record_start(
    session: Session, stage: str, sync: SyncReport, heldout: Mapping[str, float]
) -> None:
    """Record the first sync and the scores of held-out prompts before any update, as step 0."""
    session.telemetry.record(stage, 0, parity_values(sync) | named(heldout))
    tell_start(session, heldout)


def record_iteration(session: Session, done: Iteration, version: int, heldout: Heldout) -> None:
    """Record a finished iteration as step index + 1; the engines now serve `version`."""
    settings = session.config.algorithm
    step = done.index + 1
    due = settings.evaluate_every and step % settings.evaluate_every == 0
    values = _sequences(done) | _losses(done) | count_values(done.counts) | _speed(done)
    values |= _turns(session, done.rollouts)
    values["ppo/engines"] = float(len(session.fleet.rollout.ranks))
    if done.sync is not None:
        values |= parity_values(done.sync)
    values["ppo/engine_logprobs"] = float(done.engine_logprobs)
    if done.engine_logprobs:  # on these sequences, engine and trainer were not compared
        values = {k: v for k, v in values.items() if not k.startswith("ppo/mismatch_")}
    with session.telemetry.span(done.stage, step, "record"):
        if due:
            values |= named(heldout.measure(step, version))
        _keep_samples(session, done)
        session.telemetry.record(done.stage, step, values)
    session.telemetry.record_phases(done.stage, step)
    shown = ("score_mean", "kl_sequence", "response_tokens_mean", *HEADLINES)
    shown = {name: values[f"ppo/{name}"] for name in shown if f"ppo/{name}" in values}
    session.live.advance(step, **shown)


def record_lost(
    session: Session,
    stage: str,
    step: int,
    rollouts: Rollouts,
    scores: Scores,
    counts: LedgerSummary,
) -> None:
    """Record an iteration without any reward, which has neither scores nor losses."""
    if not session.config.samples.none:
        batch = session.fleet.rollout.fetch(rollouts).result()
        marks = Marks(reasons=counts.reasons).with_terms(scores)
        append_samples(session, (stage, step), batch, marks)
    values = _lengths(rollouts) | term_values(scores, "ppo") | count_values(counts)
    values |= _turns(session, rollouts)
    session.telemetry.record(stage, step, values)
    session.telemetry.record_phases(stage, step)
    session.live.advance(step)


def sampled_values(rollouts: Rollouts, scores: Scores) -> dict[str, float]:
    """Metrics of the sampled sequences and their scores."""
    ok = np.array([not failure for failure in scores.failures])
    found = scores.values[ok].astype(np.float64)
    return {
        "ppo/score_mean": float(found.mean()),
        "ppo/score_std": float(found.std()),
        **term_values(scores, "ppo"),
        **_lengths(rollouts),
    }


def term_values(scores: Scores, family: str) -> dict[str, float]:
    """Metrics of each term of the reward; {} of a reward without terms."""
    values: dict[str, float] = {}
    for name, (own, failed) in scored_by_term(scores).items():
        found = own.astype(np.float64)
        if len(found):
            values[f"{family}/reward/{name}"] = float(found.mean())
            values[f"{family}/reward_std/{name}"] = float(found.std())
        values[f"{family}/reward_failed/{name}"] = float(failed)
    return values


def _lengths(rollouts: Rollouts) -> dict[str, float]:
    summary = rollouts.summary
    return {
        "ppo/response_tokens_mean": float(summary.response_lengths.mean()),
        "ppo/eos_rate": float((summary.finish == Finish.STOP).mean()),
    }


def _turns(session: Session, rollouts: Rollouts) -> dict[str, float]:
    """Metrics of conversations; {} without an environment."""
    if not session.config.environment.on:
        return {}
    summary = rollouts.summary
    said = summary.response_lengths - summary.sampled_lengths
    return {
        "ppo/turns_mean": float(summary.turns.mean()),
        "ppo/observation_tokens_mean": float(said.mean()),
    }


def _sequences(done: Iteration) -> dict[str, float]:
    shaped = np.concatenate([s.shaped_returns for s in done.experience.summaries])
    tokens = [s.advantage_count for s in done.experience.summaries]
    mean_mismatch = np.average([s.mismatch_mean for s in done.experience.summaries], weights=tokens)
    k3 = np.average([s.mismatch_k3 for s in done.experience.summaries], weights=tokens)
    sampled = _lengths(done.rollouts)
    if done.rewarded:
        sampled = sampled_values(done.rollouts, done.scores)
        sampled["ppo/shaped_return"] = float(shaped.mean(dtype=np.float64))
    return sampled | {
        "ppo/kl_sequence": mean_kl(done.experience),
        "ppo/kl_coefficient": done.kl_coefficient,
        "ppo/policy_version": float(done.version),
        "ppo/lag_max": float(done.lag),
        "ppo/mismatch_max": max(s.mismatch_max for s in done.experience.summaries),
        "ppo/mismatch_mean": float(mean_mismatch),
        "ppo/mismatch_k3": float(k3),
    }


def _losses(done: Iteration) -> dict[str, float]:
    """Means over the applied optimizer steps; `ratio_max` is their maximum."""
    values = _critic_losses(_taken(done.critic)) if done.critic else {}
    if done.skips:
        steps = [*done.policy, *done.critic]
        values["ppo/skipped_steps"] = float(sum(not s.applied for s in steps))
    return values | (_policy_losses(_taken(done.policy)) if done.policy else {})


def _taken(steps: list[StepStats]) -> list[StepStats]:
    """The applied steps; all steps if none was applied."""
    return [s for s in steps if s.applied] or steps


def _critic_losses(steps: list[StepStats]) -> dict[str, float]:
    values = {
        "ppo/value_loss": mean_of([s.loss for s in steps]),
        "ppo/critic_grad_norm": mean_of([s.grad_norm for s in steps]),
        "ppo/critic_learning_rate": steps[-1].learning_rate,
    }
    for name in ("explained_variance", "value_clip_fraction"):
        values[f"ppo/{name}"] = mean_of([s.extra[name] for s in steps])
    return values


def _policy_losses(steps: list[StepStats]) -> dict[str, float]:
    values = {
        "ppo/policy_loss": mean_of([s.loss for s in steps]),
        "ppo/policy_grad_norm": mean_of([s.grad_norm for s in steps]),
        "ppo/policy_learning_rate": steps[-1].learning_rate,
        "ppo/ratio_max": max(s.extra["ratio_max"] for s in steps),
    }
    optional = ("kl_loss", "ptx_loss", "importance_mean", "importance_capped")
    for name in ("clip_fraction", "approx_kl", "entropy", *optional):
        if name in steps[0].extra:
            values[f"ppo/{name}"] = mean_of([s.extra[name] for s in steps])
    return values


def mean_of(numbers: Sequence[float]) -> float:
    """Mean in float64."""
    return float(np.mean(numbers, dtype=np.float64))


def named(values: Mapping[str, float]) -> dict[str, float]:
    """Metrics of held-out prompts under their full names."""
    return {f"ppo/{name}": value for name, value in values.items()}


def parity_values(sync: SyncReport) -> dict[str, float]:
    """Metrics of a weight sync."""
    return {
        "ppo/parity_max": sync.parity.max_difference,
        "ppo/parity_mean": sync.parity.mean_difference,
        "ppo/sync_bytes": float(sync.nbytes),
        "ppo/sync_seconds": sync.seconds,
        "ppo/sync_transfer_seconds": sync.transfer_seconds,
    }


def count_values(counts: LedgerSummary) -> dict[str, float]:
    """Metrics of the ledger."""
    return {
        "ppo/generated": float(counts.generated),
        "ppo/trained": float(counts.trained),
        "ppo/dropped": float(counts.dropped_total),
        "ppo/open": float(counts.open),
        **{f"ppo/dropped/{cause.value}": float(n) for cause, n in counts.causes.items()},
    }


def _speed(done: Iteration) -> dict[str, float]:
    tokens = sum(s.advantage_count for s in done.experience.summaries)
    return {
        "ppo/step_seconds": done.seconds,
        "ppo/tokens_per_second": tokens / done.seconds,
    }


def _keep_samples(session: Session, done: Iteration) -> None:
    """Write the texts of an iteration's sequences."""
    if session.config.samples.none:
        return
    batch = session.fleet.rollout.fetch(done.rollouts).result()
    scores = done.scores
    score = dict(zip(scores.ids.tolist(), scores.values.tolist(), strict=True))
    kl = {
        i: k
        for s in done.experience.summaries
        for i, k in zip(s.ids.tolist(), s.kl.tolist(), strict=True)
    }
    marks = Marks(score if done.rewarded else {}, kl, done.counts.reasons)
    append_samples(session, (done.stage, done.index + 1), batch, marks.with_terms(scores))


@dataclass(frozen=True, slots=True)
class Marks:
    """What is known about sequences, by id."""

    score: Mapping[int, float] = field(default_factory=dict)  # reward units; NaN without one
    kl: Mapping[int, float] = field(default_factory=dict)  # nats, of those that were trained on
    reasons: Mapping[int, str] = field(default_factory=dict)  # why sequences were dropped
    terms: Mapping[int, dict[str, float | None]] = field(default_factory=dict)  # of the reward

    def with_terms(self, scores: Scores) -> Marks:
        """The same with the value of each term of the reward, before its weight."""
        if scores.terms is None:
            return self
        names = scores.terms.names
        rows = zip(scores.ids.tolist(), scores.terms.values.tolist(), strict=True)
        terms = {
            i: {n: v if math.isfinite(v) else None for n, v in zip(names, row, strict=True)}
            for i, row in rows
        }
        return replace(self, terms=terms)


def append_samples(
    session: Session, at: tuple[str, int], batch: RolloutBatch, marks: Marks
) -> None:
    """Write some texts of an iteration, of those that were trained on and of the dropped ones.

    Args:
        session: The run; `samples` of its configuration says how many.
        at: Stage and step.
        batch: The sequences.
        marks: Of the sequences; those with a KL were trained on (NaN if it was not measured).
    """
    score, kl, reasons = marks.score, marks.kl, marks.reasons
    ids = batch.ids.tolist()
    trained = [n for n, i in enumerate(ids) if i in kl]
    dropped = [n for n, i in enumerate(ids) if i in reasons]
    append_rollouts(
        session.folder,
        [
            RolloutSample(
                stage=at[0],
                step=at[1],
                id=ids[n],
                prompt=session.source.detokenize(batch.prompt(n)),
                response=session.source.detokenize(batch.response(n)),
                score=score.get(ids[n], math.nan),
                kl=kl.get(ids[n], math.nan),
                finish=Finish(int(batch.finish[n])).name.lower(),
                policy_version=int(batch.versions[n, 1]),
                tokens=int(batch.response_lengths[n]),
                dropped=reasons.get(ids[n], ""),
                terms=marks.terms.get(ids[n], {}),
            )
            for n in session.config.samples.chosen(trained, dropped)
        ],
    )
