"""Rejection sampling fine-tuning: the policy learns its own best samples by supervised steps.

Llama 2 (arXiv 2307.09288, section 3.2.3) and RAFT (arXiv 2304.06767). One iteration: the engines
sample K answers per prompt, the reward scores them, the best of each prompt are trained on as
demonstrations, and the new weights are synced to the engines. There is neither a critic nor a
reference.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.batching import training_batches
from orchestrator.batching.batch_sizes import rejection_steps
from orchestrator.config.cluster import RoleName
from orchestrator.config.rejection import Keep, RejectionConfig, Start
from orchestrator.config.run import StageName
from orchestrator.planning.threads import threads_of
from orchestrator.planning.worker_specs import reward_spec, train_spec
from orchestrator.roles.interfaces import Rollouts, joined
from orchestrator.roles.weight_sync import SyncReport, WeightSync
from orchestrator.session.session import Session
from orchestrator.stages.ppo.ledger import Cause, Ledger, enter
from orchestrator.stages.ppo.scores import Scoring
from orchestrator.stages.selection.heldout import Heldout
from orchestrator.stages.selection.pool import Pool, Samples
from orchestrator.stages.selection.rejection_record import Done, record, record_start
from workers.data.records import Prompt
from workers.errors import EmptyDatasetError
from workers.records.generation import RolloutBatch, Sampling
from workers.records.training import Scores, StepStats

_KIND = StageName.rejection_sampling
_NOT_BEST = "not the best of its prompt"
_NOT_ABOVE = "its score is not above the threshold"


@dataclass(slots=True)
class _Run:
    """The state of the stage."""

    session: Session
    stage: str  # name of the stage run
    sft: str
    sync: WeightSync
    ledger: Ledger
    scoring: Scoring
    heldout: Heldout
    pool: Pool
    version: int = 0  # of the weights that the engines serve

    @property
    def settings(self) -> RejectionConfig:
        return self.session.config.rejection

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores beside the trainers' state and the pool, as plain values."""
        return {
            "version": self.version,
            "counters": self.session.counters(),
            "ledger": self.ledger.state_dict(),
            "scoring": self.scoring.state(),
            "heldout": self.heldout.state(),
        }

    def restore(self, folder: str, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.version = state["version"]
        self.session.restore_counters(state["counters"])  # starting the engines used up a version
        self.ledger.load_state_dict(state["ledger"])
        self.scoring.restore(state["scoring"])
        self.heldout.restore(state["heldout"])
        self.pool.restore(folder)


def rejection_sampling(session: Session) -> None:
    """Sample, choose and train, `rejection.iterations` times."""
    iterations, stage = session.config.rejection.iterations, session.name_of(_KIND)
    session.live.stage(stage, iterations)
    run = _set_up(session)
    policy = session.fleet.policy
    for iteration in range(_begin(run), iterations):
        session.position.step = iteration
        _iterate(run, iteration)
        session.boundary(stage, iteration + 1, iterations, run.state(), policy, run.pool)
    made = session.product_of(_KIND)
    session.publish(made, lambda path: policy.save(path, run.sft).result(), stage)


def _set_up(session: Session) -> _Run:
    """Load the models of all roles and start the engines, first if they must."""
    config, fleet = session.config, session.fleet
    sft = session.need("sft")
    reward_model = session.need("reward_model") if config.reward.needs.model else ""
    if session.engines_first:
        session.engines_on(sft)
        fleet.rollout.sleep().result()
    _load(session, sft, 0)
    fleet.reward.load(reward_spec(config, reward_model, sft)).result()
    if not session.engines_first:
        session.engines_on(sft)
    probe = session.source.prompts("heldout", 0, config.rollout.parity_prompts)
    prompts, budget = [p.tokens for p in probe], config.trainer.micro_batch_tokens
    ledger = Ledger()
    return _Run(
        session=session,
        stage=session.name_of(_KIND),
        sft=sft,
        sync=WeightSync(fleet.policy, fleet.rollout, config.rollout, prompts, budget),
        ledger=ledger,
        scoring=Scoring.of(config, ledger, reward_model),
        heldout=Heldout(session, _KIND),
        pool=Pool(config.rejection),
    )


def _load(session: Session, sft: str, iteration: int) -> None:
    """Load the SFT model into the trainers, with an optimizer for all steps it will take."""
    config = session.config
    steps = rejection_steps(config)
    total = steps[iteration] if config.rejection.start is Start.sft else sum(steps)
    threads = threads_of(config, _KIND, RoleName.policy)
    spec = train_spec(
        config,
        sft,
        config.rejection.optimizer,
        total,
        threads=threads,
        vocabulary=session.vocabulary,
    )
    session.fleet.policy.load(spec).result()


def _begin(run: _Run) -> int:
    """Sync the initial weights or those of the checkpoint; returns the first iteration."""
    session = run.session
    saved = session.saves.within(run.stage)
    if saved is None:
        session.trainers_rest()
        record_start(session, run.stage, _sync(run), run.heldout.measure(0, run.version))
        return 0
    session.fleet.policy.restore(saved.folder).result()
    run.restore(saved.folder, saved.own)
    session.trainers_rest()
    run.sync.run(run.version)  # kept out of the findings: an uninterrupted run has no such sync
    return saved.step


def _iterate(run: _Run, iteration: int) -> None:
    """One iteration: sample, score, choose, train, sync."""
    began = time.monotonic()
    session = run.session
    batch, scores = _sample(run, iteration)
    kept = run.scoring.keep(session, scores)
    samples = _scored(batch, scores, kept)
    chosen = run.pool.take(samples)
    best = run.settings.keep is Keep.best
    run.ledger.dropped(chosen.dropped, _NOT_BEST if best else _NOT_ABOVE, Cause.not_chosen)
    _require_some(run, samples)
    steps = _train(run, iteration) if len(samples) else []  # without any score nothing changes
    run.ledger.trained(chosen.kept)
    counts = run.ledger.check(iteration)
    enter(session.findings, counts)
    synced = _sync(run) if steps else None
    trained, stage = run.pool.samples, run.stage
    record(
        session,
        Done(
            stage,
            iteration + 1,
            batch,
            scores,
            samples,
            trained,
            chosen,
            steps,
            counts,
            synced,
            began,
        ),
        lambda: run.heldout.measure(iteration + 1, run.version),
    )


def _sample(run: _Run, iteration: int) -> tuple[RolloutBatch, Scores]:
    """The samples of an iteration, and their scores in the same order, penalties deducted."""
    session, settings = run.session, run.settings
    count = settings.prompts_per_iteration
    prompts = session.source.prompts("ppo", iteration * count, count)
    rollouts = _generate(run, iteration, prompts)
    session.fleet.rollout.sleep().result()  # frees memory for models that share its GPU
    raw = session.fleet.reward.score(rollouts, session.asked(prompts)).result()
    batch = session.fleet.rollout.fetch(rollouts).result()
    row = {int(i): n for n, i in enumerate(batch.ids)}
    batch = batch.select(np.array([row[int(i)] for i in raw.ids], np.int64))
    return batch, run.scoring.shape(raw, batch.finish, batch.response_lengths)


def _generate(run: _Run, iteration: int, prompts: Sequence[Prompt]) -> Rollouts:
    """`samples` answers per prompt, the same number with each temperature."""
    session, settings = run.session, run.settings
    each = settings.samples // len(settings.temperatures)
    most = session.config.rollout.max_response_tokens
    parts: list[Rollouts] = []
    for number, temperature in enumerate(settings.temperatures):
        requests = session.requests(prompts, each, run.stage, iteration, number)
        run.ledger.generated([i for request in requests for i in request.ids])
        sampling = Sampling(temperature, most)
        parts.append(session.fleet.rollout.generate(requests, sampling, run.version).result())
    return joined(parts)


def _scored(batch: RolloutBatch, scores: Scores, kept: np.ndarray) -> Samples:
    """The samples that have a score, by id."""
    rows = np.argsort(scores.ids, kind="stable")
    rows = rows[np.isin(scores.ids[rows], kept)]
    return Samples.of(batch.select(rows), scores.values[rows])


def _require_some(run: _Run, samples: Samples) -> None:
    """Raise if no sample of this or an earlier iteration is above the threshold.

    Raises:
        EmptyDatasetError: there is none to train on, although samples have scores.
    """
    if len(run.pool.samples) or not len(samples):
        return
    raise EmptyDatasetError(
        f"none of {len(samples):,} samples scores above {run.settings.threshold:g}; the highest "
        f"score is {float(samples.scores.max()):.4g}",
        where="rejection.threshold",
        fix="lower it, or set rejection.keep=best",
    )


def _train(run: _Run, iteration: int) -> list[StepStats]:
    """Supervised steps on the pool, each pass in a new order."""
    session, settings, pool = run.session, run.settings, run.pool.samples
    if settings.start is Start.sft and iteration:
        _load(session, run.sft, iteration)
    policy, budget = session.fleet.policy, session.config.trainer.micro_batch_tokens
    steps: list[StepStats] = []
    for epoch in range(settings.epochs):
        rng = np.random.default_rng(session.seed(run.stage, "order", iteration, epoch))
        order = rng.permutation(len(pool))
        for at in range(0, len(order), settings.sequences_per_step):
            batch = pool.examples(order[at : at + settings.sequences_per_step])
            shares = training_batches.supervised_step(
                batch, policy.size, budget, packed=policy.packed
            )
            steps.append(policy.train_supervised(shares).result())
            session.note_first_step()
    session.trainers_rest()
    return steps


def _sync(run: _Run) -> SyncReport:
    """Sync the policy's current weights to the engines under a new version."""
    run.version = run.session.next_version()
    report = run.sync.run(run.version)
    findings = run.session.findings
    findings.synced(report.seconds)
    findings.parity_max = max(findings.parity_max or 0.0, report.parity.max_difference)
    return report
