"""PPO against the reward model with a per-token KL penalty, and PPO-ptx (InstructGPT, section 3.5).

`_iterate` is the table of contents: one line a stage of the data flow, and none of them is
implemented here. Calls that do not depend on each other are started together and awaited later.
With `algorithm.staleness` above 0 the engines are already sampling later batches meanwhile.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from orchestrator.batching import training_batches
from orchestrator.batching.batch_sizes import pretraining_examples, started_prompts
from orchestrator.batching.training_batches import StepPlan
from orchestrator.config.cluster import RoleName
from orchestrator.config.training import KLControl, OnNonFinite, RewardKind
from orchestrator.planning.backbones import critic_start
from orchestrator.planning.worker_specs import frozen_spec, reward_spec, train_spec
from orchestrator.results.findings import Findings
from orchestrator.results.summary import LedgerTotals
from orchestrator.roles.interfaces import Answer, Experience, Rollouts, Trainer
from orchestrator.roles.weight_sync import SyncReport, WeightSync
from orchestrator.session.corrections import REASON, keep_culprits, without
from orchestrator.session.session import Session
from orchestrator.stages.ppo.ledger import Ledger, LedgerSummary, from_ranges, ranges
from orchestrator.stages.ppo.passes import Passes, shared
from orchestrator.stages.ppo.queue import Ahead, Batch, require_fresh
from orchestrator.stages.ppo.record import (
    Iteration,
    mean_kl,
    record_iteration,
    record_lost,
    record_start,
)
from orchestrator.stages.ppo.saved_rollouts import KeptRollouts, held
from orchestrator.stages.ppo.scores import Scoring
from workers.data.records import Prompt
from workers.errors import KLLimitError
from workers.ops.kl import AdaptiveKLController
from workers.records.arrays import IntArray
from workers.records.generation import Delivery
from workers.records.specs import PolicyLossSpec, ShapingSpec
from workers.records.training import Scores, StepStats, TokenBatch
from workers.training.experience import whitening_moments

T = TypeVar("T")


def ppo(session: Session) -> None:
    """PPO without pretraining gradients."""
    _train(session, "ppo", ptx_coefficient=0.0)


def ppo_ptx(session: Session) -> None:
    """PPO with pretraining gradients accumulated into the same optimizer steps."""
    _train(session, "ppo_ptx", ptx_coefficient=session.config.algorithm.ptx.coefficient)


@dataclass(slots=True)
class _Run:
    """The state of one PPO run."""

    session: Session
    stage: str
    ptx_coefficient: float
    sync: WeightSync
    version: int  # what the engines serve
    adaptive_kl: AdaptiveKLController | None  # None = fixed
    ledger: Ledger
    scoring: Scoring
    ahead: Ahead
    text: Callable[[int, int], TokenBatch]  # start, count -> pretraining documents or rows
    documents_used: int = 0  # cursor into the pretraining text; counts rows where it comes in rows

    @property
    def staleness(self) -> int:
        """Updates that a trained sequence may be behind."""
        return self.session.config.algorithm.staleness

    @property
    def kl_coefficient(self) -> float:
        """Reward units per nat, this iteration."""
        scale = self.session.amends.kl_scale
        if self.adaptive_kl is not None:
            return self.adaptive_kl.value * scale
        return self.session.config.algorithm.kl.coefficient * scale


def _train(session: Session, stage: str, ptx_coefficient: float) -> None:
    settings = session.config.algorithm
    session.live.stage(stage, settings.iterations)
    session.reached("earlier_stages")
    sft = session.need("sft")
    run = _set_up(session, stage, ptx_coefficient, sft)
    for iteration in range(_begin(run), settings.iterations):
        session.position.step = iteration
        _iterate(run, iteration)
        savers = (session.fleet.policy, session.fleet.critic, _kept(run))
        session.boundary(stage, iteration + 1, settings.iterations, _state(run), *savers)
    session.publish(stage, lambda path: session.fleet.policy.save(path, sft).result(), stage)


def _iterate(run: _Run, iteration: int) -> None:
    """One PPO iteration: sample, score, shape, update, sync."""
    began = time.monotonic()
    session, timed = run.session, _Timed(run, iteration + 1)
    with timed.span("generate"):
        run.ahead.fill(iteration)
        session.saves.settle()  # the trainers have nothing else to do
        asked = session.asked(_prompts(run, iteration)) if session.words_are_read else ()
        passes = Passes(session, timed.begin, asked)
        batch = run.ahead.take(iteration)
        for part in batch.generation.parts():
            require_fresh(part.summary, run.version, run.staleness, str(session.position))
            session.fleet.rollout.sleep().result()
            passes.start(without(part, session.amends.excluded))
    rollouts, session.parts = passes.rollouts(), passes.parts
    _drop_culprits(run, batch)
    _drop_surplus(run, batch, rollouts)
    scores = run.scoring.shape(passes.scores(), rollouts.summary.finish)
    kept = run.scoring.keep(session, scores)
    if not len(kept):
        _pass_over(run, iteration, rollouts, passes)
        return

    experience = timed("experience", _build(run, rollouts, kept, scores, passes)).result()
    _require_near(session, experience)
    warming = iteration < session.config.algorithm.critic_warmup_iterations
    updating = None
    if not warming:
        update = _update_policy(run, iteration, rollouts, kept, experience)
        updating = timed("policy_update", update)
    fitting = timed("critic_update", _update_critic(run, iteration, rollouts, kept, experience))
    policy_stats = updating.result() if updating is not None else []
    if policy_stats:
        session.note_first_step()
    critic_stats = fitting.result()
    session.trainers_rest()
    _keep_skipped(session, rollouts, [*policy_stats, *critic_stats])
    session.note_first_step()
    session.reached("first_iteration")
    run.ledger.trained(kept)
    counts = run.ledger.check(iteration, run.ahead.ids)
    _enter(session.findings, counts)

    trained_version = run.version
    synced = None  # while only the critic learns, the engines hold what the policy is
    if not warming:
        with timed.span("weight_sync"):
            synced = _sync(run)
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
            sync=synced,
            counts=counts,
            skips=session.config.algorithm.on_non_finite is OnNonFinite.skip,
            seconds=time.monotonic() - began,
        ),
        run.version,
    )
    if run.adaptive_kl is not None and not warming:
        run.adaptive_kl.update(mean_kl(experience), len(kept))
    session.parts = ()


def _pass_over(run: _Run, iteration: int, rollouts: Rollouts, passes: Passes) -> None:
    """End an iteration of which no response has a reward: nothing is learnt from it."""
    session = run.session
    passes.finish()
    session.trainers_rest()
    counts = run.ledger.check(iteration, run.ahead.ids)
    _enter(session.findings, counts)
    record_lost(session, run.stage, iteration + 1, rollouts, counts)
    session.parts = ()


def _drop_culprits(run: _Run, batch: Batch) -> None:
    """Record those that made a NaN before the run went back, and are left out since."""
    culprits = run.session.amends.excluded & set(batch.ids.tolist())
    if culprits:
        run.ledger.dropped(np.array(sorted(culprits)), REASON)


def _require_near(session: Session, experience: Experience) -> None:
    """Raise KLLimitError if the policy has moved further from its reference than is allowed."""
    limit, kl = session.config.algorithm.kl.limit, mean_kl(experience)
    if limit and kl > limit:
        raise KLLimitError(
            f"the policy is {kl:.2f} nats a sequence from its reference, allowed are {limit:g}",
            where=str(session.position),
            fix="raise algorithm.kl.coefficient, lower the learning rate, or raise "
            "algorithm.kl.limit",
        )


def _keep_skipped(session: Session, rollouts: Rollouts, steps: list[StepStats]) -> None:
    for stats in steps:
        if not stats.applied:
            what = f"an optimizer step was skipped: loss {stats.loss}, gradient {stats.grad_norm}"
            keep_culprits(session, what, stats.culprits, (rollouts,))
            session.live.note(what)


def _set_up(session: Session, stage: str, ptx_coefficient: float, sft: str) -> _Run:
    """Load every role's model, at the same time, and sync the first weights."""
    config, settings, fleet = session.config, session.config.algorithm, session.fleet
    fleet.bring_up(*RoleName)
    session.reached("actors")
    each = _steps_per_iteration(session)
    steps = settings.iterations * each
    taught = steps - settings.critic_warmup_iterations * each
    reward_model = _reward_checkpoint(session)
    critic = critic_start(config, session.checkpoints)
    if config.rollout.sleep:  # engines measure what is free on their GPUs: before others load
        session.engines_on(sft)
        fleet.rollout.sleep().result()
    loading = [
        fleet.policy.load(
            train_spec(
                config,
                sft,
                settings.policy_optimizer,
                taught,
                ema_decay=settings.ema_decay,
                vocabulary=session.vocabulary,
            )
        ),
        fleet.critic.load(
            train_spec(
                config,
                session.need(critic.checkpoint),
                settings.critic_optimizer,
                steps,
                head=critic.head,
            )
        ),
        fleet.reference.load(
            frozen_spec(config, sft, config.cluster.roles.reference, session.vocabulary)
        ),
        fleet.reward.load(reward_spec(config, reward_model, sft)),
    ]
    if not config.rollout.sleep:
        session.engines_on(sft)
    for pending in loading:
        pending.result()
    session.reached("engines_and_models")
    probe = session.source.prompts("heldout", 0, config.rollout.parity_prompts)
    sync = WeightSync(
        fleet.policy,
        fleet.rollout,
        config.rollout,
        [p.tokens for p in probe],
        config.trainer.micro_batch_tokens,
    )
    ledger = Ledger()
    run = _Run(
        session=session,
        stage=stage,
        ptx_coefficient=ptx_coefficient,
        sync=sync,
        version=0,
        adaptive_kl=_controller(session),
        ledger=ledger,
        scoring=Scoring.of(config, ledger, reward_model),
        ahead=Ahead(settings.staleness, settings.iterations, lambda n: _generate(run, n)),
        text=_text(session, mixed=ptx_coefficient > 0.0),
    )
    return run


def _text(session: Session, *, mixed: bool) -> Callable[[int, int], TokenBatch]:
    """How the pretraining text of a step is read: by documents, or by full rows."""
    shared = mixed and session.rows_are_shared()
    if mixed and session.config.algorithm.ptx.rows_per_episode:
        return session.text_rows(shared=shared).take
    return partial(session.pretraining_rows, shared=shared)


def _begin(run: _Run) -> int:
    """Sync the first weights, or those that the run was interrupted with; returns the iteration."""
    session = run.session
    saved = session.saves.within(run.stage)
    if saved is None:
        session.trainers_rest()
        synced = _sync(run)
        session.reached("first_sync")
        record_start(session, run.stage, synced, run.version)
        return 0
    restoring = [
        trainer.restore(saved.folder) for trainer in (session.fleet.policy, session.fleet.critic)
    ]
    for pending in restoring:
        pending.result()
    _set_state(run, saved.own)
    for batch in saved.own["ahead"]:
        ids = np.array(from_ranges(batch["ids"]), np.int64)
        run.ahead.adopt(_kept(run).restore(saved.folder, batch["iteration"], ids))
    session.trainers_rest()
    run.sync.run(run.version)  # not among the findings: the undisturbed run has no such sync
    return saved.step


def _state(run: _Run) -> dict[str, Any]:
    """What the trainers do not know of this run, as plain values."""
    return {
        "version": run.version,
        "counters": run.session.counters(),
        "kl": run.adaptive_kl.state_dict() if run.adaptive_kl is not None else None,
        "ledger": run.ledger.state_dict(),
        "scoring": run.scoring.state(),
        "documents_used": run.documents_used,
        "ahead": [{"iteration": b.iteration, "ids": ranges(b.ids.tolist())} for b in run.ahead],
    }


def _kept(run: _Run) -> KeptRollouts:
    return KeptRollouts(run.ahead, run.session.fleet.rollout)


def _set_state(run: _Run, state: Mapping[str, Any]) -> None:
    run.version = state["version"]
    run.session.restore_counters(state["counters"])  # starting the engines took a version
    if run.adaptive_kl is not None:
        run.adaptive_kl.load_state_dict(state["kl"])
    run.ledger.load_state_dict(state["ledger"])
    run.scoring.restore(state["scoring"])
    run.documents_used = state["documents_used"]


def _reward_checkpoint(session: Session) -> str:
    if session.config.reward.kind is RewardKind.function:
        return ""
    return session.need("reward_model")


def _steps_per_iteration(session: Session) -> int:
    settings = session.config.algorithm
    sequences = settings.prompts_per_iteration * settings.samples_per_prompt
    return settings.epochs * (sequences // settings.sequences_per_minibatch)


def _controller(session: Session) -> AdaptiveKLController | None:
    kl = session.config.algorithm.kl
    if kl.control is KLControl.fixed:
        return None
    return AdaptiveKLController(kl.coefficient, kl.target, kl.horizon)


def _sync(run: _Run) -> SyncReport:
    """Give the engines the policy's current weights under a new version."""
    run.version = run.session.next_version()
    report = run.sync.run(run.version)
    findings = run.session.findings
    findings.synced(report.seconds)
    findings.parity_max = max(findings.parity_max or 0.0, report.parity.max_difference)
    return report


def _generate(run: _Run, iteration: int) -> Batch:
    """Have the engines start on the prompts of one iteration, with the weights they hold."""
    session, settings = run.session, run.session.config.algorithm
    prompts = _prompts(run, iteration)
    requests = session.requests(prompts, settings.samples_per_prompt, run.stage, iteration)
    ids = np.array([i for request in requests for i in request.ids], np.int64)
    run.ledger.generated(ids)
    outlived, session.outlived = session.outlived, None
    parts = outlived.parts if outlived and outlived.losses == session.losses.count else ()
    if (finished := held(parts, ids, run.version)) is not None:
        session.live.note(f"{len(ids)} sequences are there already")
        return Batch(iteration, ids, finished)
    delivery = Delivery(session.config.rollout.stream_sequences, settings.prompts_per_iteration)
    generation = session.fleet.rollout.generate(requests, session.sampling(), run.version, delivery)
    return Batch(iteration, ids, generation)


def _prompts(run: _Run, iteration: int) -> list[Prompt]:
    count = started_prompts(run.session.config)
    return run.session.source.prompts("ppo", iteration * count, count)


def _drop_surplus(run: _Run, batch: Batch, rollouts: Rollouts) -> None:
    """Record what over-provisioning has started and aborted; anything else must have come."""
    if run.session.config.rollout.overprovision:
        late = np.setdiff1d(batch.ids, rollouts.summary.ids)
        late = np.setdiff1d(late, sorted(run.session.amends.excluded))
        run.ledger.dropped(late, "over-provisioned: enough others had finished")


def _build(
    run: _Run,
    rollouts: Rollouts,
    kept: IntArray,
    scores: Scores,
    passes: Passes,
) -> Answer[Experience]:
    settings, critic = run.session.config.algorithm, run.session.fleet.critic
    works = shared(run.session, rollouts, kept, critic)
    shaping = ShapingSpec(run.kl_coefficient, settings.gamma, settings.lam)
    old, reference, values = passes.old_logprobs(), passes.reference_logprobs(), passes.values()
    return critic.build_experience(works, rollouts, old, reference, values, scores, shaping)


def _step_plan(run: _Run, iteration: int, group: Trainer) -> StepPlan:
    settings = run.session.config.algorithm
    return StepPlan(
        ranks=group.size,
        token_budget=run.session.config.trainer.micro_batch_tokens,
        per_step=settings.sequences_per_minibatch,
        epochs=settings.epochs,
        seed=(run.session.seed(run.stage, "minibatches", iteration),),
        uneven=True,  # after a dropped sequence
        packed=group.packed,
    )


def _lengths(rollouts: Rollouts, kept: IntArray) -> tuple[IntArray, IntArray]:
    """Response and total tokens of the kept sequences."""
    summary = rollouts.summary
    row = {int(i): n for n, i in enumerate(summary.ids)}
    rows = np.array([row[int(i)] for i in kept])
    responses = summary.response_lengths[rows]
    return responses, summary.prompt_lengths[rows] + responses


def _pretraining_mix(run: _Run, plan: StepPlan, kept: IntArray) -> list[TokenBatch] | None:
    """One batch of pretraining text an optimizer step, or None without ptx."""
    if run.ptx_coefficient == 0.0:
        return None
    batches: list[TokenBatch] = []
    for _ in range(plan.epochs):
        for step in training_batches.minibatches(
            kept, plan.per_step, plan.seed, uneven=plan.uneven
        ):
            count = pretraining_examples(run.session.config, len(step))
            batches.append(run.text(run.documents_used, count))
            run.documents_used += count
    return batches


def _update_policy(
    run: _Run, iteration: int, rollouts: Rollouts, kept: IntArray, experience: Experience
) -> Answer[list[StepStats]]:
    settings, policy = run.session.config.algorithm, run.session.fleet.policy
    plan = _step_plan(run, iteration, policy)
    steps = training_batches.policy_steps(
        kept, *_lengths(rollouts, kept), plan, _pretraining_mix(run, plan, kept)
    )
    mean, deviation = (
        whitening_moments(experience.summaries) if settings.whiten_advantages else (0.0, 1.0)
    )
    loss = PolicyLossSpec(
        clip=settings.clip,
        temperature=run.session.config.rollout.temperature,
        advantage_mean=mean,
        advantage_std=deviation,
        ptx_coefficient=run.ptx_coefficient,
        importance_cap=settings.importance_cap,
    )
    run.sync.policy_moves()
    return policy.update(steps, experience, loss)


def _update_critic(
    run: _Run, iteration: int, rollouts: Rollouts, kept: IntArray, experience: Experience
) -> Answer[list[StepStats]]:
    critic = run.session.fleet.critic
    plan = _step_plan(run, iteration, critic)
    steps = training_batches.critic_steps(kept, *_lengths(rollouts, kept), plan)
    return critic.update(steps, experience, run.session.config.algorithm.value_clip)


def _enter(findings: Findings, counts: LedgerSummary) -> None:
    totals = findings.ledger
    findings.ledger = LedgerTotals(
        totals.generated + counts.generated,
        totals.trained + counts.trained,
        totals.dropped + counts.dropped_total,
    )
    findings.drops = dict(Counter(findings.drops) + Counter(counts.dropped))


class _Timed:
    """Spans from the start of a call until its result is there; concurrent ones overlap."""

    def __init__(self, run: _Run, step: int) -> None:
        self._run = run
        self._step = step

    def __call__(self, phase: str, answer: Answer[T]) -> _TimedAnswer[T]:
        return _TimedAnswer(answer, self.begin(phase))

    def begin(self, phase: str) -> Callable[[], None]:
        """Start the clock of a phase; calling what this returns stops it."""
        return self._run.session.telemetry.begin(self._run.stage, self._step, phase)

    def span(self, phase: str) -> AbstractContextManager[None]:
        """A phase that the driver itself spends waiting."""
        return self._run.session.telemetry.span(self._run.stage, self._step, phase)


class _TimedAnswer(Generic[T]):
    def __init__(self, answer: Answer[T], end: Callable[[], None]) -> None:
        self._answer = answer
        self._end = end

    def result(self) -> T:
        """Wait for the call and end its span."""
        value = self._answer.result()
        self._end()
        return value
