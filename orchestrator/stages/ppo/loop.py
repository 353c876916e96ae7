"""PPO against the reward model with a per-token KL penalty, and PPO-ptx (InstructGPT, section 3.5).

One iteration (`_iterate`), from left to right; the calls in one column run at the same time:

    engines    | reward, reference | policy     | policy update | policy -> engines
    sample     | old logprobs      | experience | critic update | weight sync, parity probe
               | values            |            |               | (compared while engines sample)

The driver waits at each bar but the first: a part of a batch is scored as soon as it arrives, while
the engines sample the rest (`scored.py`, `passes.py`). With `algorithm.staleness` s above 0, the
engines already sample the batches of the next s iterations meanwhile (`queue.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from orchestrator.config.run import StageName
from orchestrator.config.training import OnNonFinite
from orchestrator.roles.interfaces import Experience, Rollouts
from orchestrator.roles.weight_sync import SyncReport
from orchestrator.session.corrections import keep_culprits
from orchestrator.session.session import Session
from orchestrator.stages.ppo.ledger import enter
from orchestrator.stages.ppo.old_logprobs import choose_old_logprobs
from orchestrator.stages.ppo.passes import Passes
from orchestrator.stages.ppo.phases import Phases
from orchestrator.stages.ppo.record import (
    Iteration,
    mean_kl,
    record_iteration,
    record_lost,
    record_start,
)
from orchestrator.stages.ppo.scored import sample
from orchestrator.stages.ppo.setup import set_up
from orchestrator.stages.ppo.state import PPORun
from orchestrator.stages.ppo.updates import start_experience, update_critic, update_policy
from workers.errors import KLLimitError
from workers.records.arrays import IntArray
from workers.records.training import StepStats


def ppo(session: Session) -> None:
    """PPO without pretraining gradients."""
    _train(session, StageName.ppo, ptx_coefficient=0.0)


def ppo_ptx(session: Session) -> None:
    """PPO with pretraining gradients accumulated into the same optimizer steps."""
    _train(session, StageName.ppo_ptx, ptx_coefficient=session.config.algorithm.ptx.coefficient)


def _train(session: Session, kind: StageName, ptx_coefficient: float) -> None:
    settings, stage = session.config.algorithm, session.name_of(kind)
    session.live.stage(stage, settings.iterations)
    session.reached("earlier_stages")
    sft = session.need("sft")
    run = set_up(session, kind, ptx_coefficient, sft)
    for iteration in range(begin(run), settings.iterations):
        session.position.step = iteration
        _iterate(run, iteration)
        savers = (*run.trainers, run.saved_rollouts)
        session.boundary(stage, iteration + 1, settings.iterations, run.state(), *savers)
    made = session.product_of(kind)
    session.publish(made, lambda path: session.fleet.policy.save(path, sft).result(), stage)


def _iterate(run: PPORun, iteration: int) -> None:
    """One PPO iteration: sample, score, shape, update, sync."""
    began = time.monotonic()
    session = run.session
    phases = Phases(session.telemetry, run.stage, iteration + 1)
    scored = sample(run, iteration, phases)
    passes, rollouts, scores, kept = scored.passes, scored.rollouts, scored.scores, scored.kept
    if not len(kept):
        pass_over(run, iteration, rollouts, passes)
        return

    with phases.span("experience"):
        experience = start_experience(run, rollouts, kept, scores, passes).result()
    require_near(session, mean_kl(experience))
    warming = iteration < session.config.algorithm.critic_warmup_iterations
    policy_stats, critic_stats = _update(run, iteration, rollouts, kept, experience, phases)
    run.ledger.trained(kept)
    counts = run.ledger.check(iteration, run.queue.ids)
    enter(session.findings, counts)

    trained_version = run.version
    synced = None  # during critic warmup the engines already hold the policy's weights
    if not warming:
        with phases.span("weight_sync"):
            synced = sync_weights(run, beside(run, iteration + 1))
    record_iteration(
        session,
        Iteration(
            stage=run.stage,
            index=iteration,
            version=int(rollouts.summary.versions.max()),
            lag=trained_version - int(rollouts.summary.versions[:, 0].min()),
            rollouts=rollouts,
            scores=scores,
            experience=experience,
            policy=policy_stats,
            critic=critic_stats,
            kl_coefficient=run.kl_coefficient,
            engine_logprobs=passes.of_engine,
            rewarded=run.estimator.needs_reward,
            sync=synced,
            counts=counts,
            skips=session.config.algorithm.on_non_finite is OnNonFinite.skip,
            seconds=time.monotonic() - began,
        ),
        run.version,
        run.heldout,
    )
    if run.adaptive_kl is not None and not warming:
        run.adaptive_kl.update(mean_kl(experience), len(kept))
    session.parts = ()


def _update(
    run: PPORun,
    iteration: int,
    rollouts: Rollouts,
    kept: IntArray,
    experience: Experience,
    phases: Phases,
) -> tuple[list[StepStats], list[StepStats]]:
    """Update policy (not during critic warmup) and critic, if any, at the same time; statistics."""
    session, updating, fitting = run.session, None, None
    if iteration >= session.config.algorithm.critic_warmup_iterations:
        update = update_policy(run, iteration, rollouts, kept, experience)
        updating = phases.timed("policy_update", update)
    if run.estimator.needs_values:
        update = update_critic(run, iteration, rollouts, kept, experience)
        fitting = phases.timed("critic_update", update)
    policy_stats = updating.result() if updating is not None else []
    if policy_stats:
        session.note_first_step()
    critic_stats = fitting.result() if fitting is not None else []
    session.trainers_rest()
    keep_skipped(session, rollouts, [*policy_stats, *critic_stats])
    session.note_first_step()
    session.reached("first_iteration")
    return policy_stats, critic_stats


def pass_over(run: PPORun, iteration: int, rollouts: Rollouts, passes: Passes) -> None:
    """End an iteration in which no response has a reward, without an update."""
    session = run.session
    passes.finish()
    session.trainers_rest()
    counts = run.ledger.check(iteration, run.queue.ids)
    enter(session.findings, counts)
    record_lost(session, run.stage, iteration + 1, rollouts, passes.scores(), counts)
    session.parts = ()


def require_near(session: Session, kl: float) -> None:
    """Raise KLLimitError if the policy's KL to its reference, nats per sequence, is too large."""
    limit = session.config.algorithm.kl.limit
    if limit and kl > limit:
        raise KLLimitError(
            f"the policy is {kl:.2f} nats per sequence from its reference, allowed are {limit:g}",
            where=str(session.position),
            fix="raise algorithm.kl.coefficient, lower the learning rate, or raise "
            "algorithm.kl.limit",
        )


def keep_skipped(session: Session, rollouts: Rollouts, steps: list[StepStats]) -> None:
    """Save what caused the steps that were skipped, and say so."""
    for stats in steps:
        if not stats.applied:
            what = f"an optimizer step was skipped: loss {stats.loss}, gradient {stats.grad_norm}"
            keep_culprits(session, what, stats.culprits, (rollouts,))
            session.live.note(what)


def begin(run: PPORun) -> int:
    """Sync the initial weights or those of the checkpoint; returns the first iteration."""
    session = run.session
    saved = session.saves.within(run.stage)
    if saved is None:
        session.trainers_rest()
        synced = sync_weights(run)
        session.reached("first_sync")
        record_start(session, run.stage, synced, run.heldout.measure(0, run.version))
        return 0
    restoring = [trainer.restore(saved.folder) for trainer in run.trainers]
    for pending in restoring:
        pending.result()
    run.restore(saved.folder, saved.own)
    session.trainers_rest()
    run.sync.run(run.version)  # kept out of the findings: an uninterrupted run has no such sync
    return saved.step


def beside(run: PPORun, iteration: int) -> Callable[[], None] | None:
    """What the engines do while a sync is verified: sample the batch of the next iteration.

    None if something else comes first: scores of held-out prompts, a checkpoint, or the end. With
    staleness the engines have batches to sample already; where they sleep, they and the trainers
    use the same memory.
    """
    session, settings = run.session, run.session.config.algorithm
    scored = settings.evaluate_every and iteration % settings.evaluate_every == 0
    last = iteration >= settings.iterations
    if last or scored or settings.staleness or session.config.rollout.sleep:
        return None
    if session.saves.due(run.stage, iteration):
        return None
    return lambda: run.queue.fill(iteration)


def sync_weights(run: PPORun, meanwhile: Callable[[], None] | None = None) -> SyncReport:
    """Sync the policy's current weights to the engines under a new version."""
    run.version = run.session.next_version()
    report = run.sync.run(run.version, meanwhile)
    choose_old_logprobs(run, report.parity)
    findings = run.session.findings
    findings.synced(report.seconds)
    findings.parity_max = max(findings.parity_max or 0.0, report.parity.max_difference)
    return report
