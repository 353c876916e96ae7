"""Direct preference optimisation: the policy learns rankings, without reward model and rollouts.

The rankings are those that a reward model would train on. Each completion takes one forward pass
per step, whatever the number of its pairs; the reference's log-probabilities are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from orchestrator.batching import training_batches
from orchestrator.batching.batch_sizes import preference_steps, warmup_note
from orchestrator.config.by_name import from_sections
from orchestrator.config.cluster import RoleName
from orchestrator.config.preference import PreferenceLoss
from orchestrator.config.run import StageName
from orchestrator.planning.threads import threads_of
from orchestrator.planning.worker_specs import frozen_spec, train_spec
from orchestrator.results.pair_metrics import ordered_pairs, pair_accuracy
from orchestrator.session.session import Session
from orchestrator.stages.labels.rankings import chosen, rankings_of, with_pairs
from workers.errors import DataError
from workers.records.arrays import Ragged
from workers.records.specs import PreferenceSpec
from workers.records.training import Ranking, StepStats, TokenBatch

_ROWS = 1024  # completions per replica whose log-probabilities are asked for at once


def dpo(session: Session) -> None:
    """Train the policy from the SFT model on rankings; it is the reference, unless another is."""
    settings, stage = session.config.preference, session.name_of(StageName.dpo)
    sft = session.need("sft")
    planned = preference_steps(session.config)
    session.live.stage(stage, planned or 0)  # None: unknown until the file is read
    saved = session.saves.within(stage)
    given = with_pairs(rankings_of(session, stage, labeled=saved is not None), stage)
    if session.config.preference.loss is not PreferenceLoss.simpo:
        frozen = session.reference(StageName.dpo)
        spec = frozen_spec(session.config, frozen, StageName.dpo, RoleName.reference)
        session.fleet.reference.load(spec).result()
    train, heldout = (with_reference(session, _known(part)) for part in given)
    steps_per_epoch = -(-len(train) // settings.rankings_per_step)
    total = steps_per_epoch * settings.epochs
    session.live.expect(total)
    if total != planned:
        for note in warmup_note(settings.optimizer, total, "preference.optimizer"):
            session.live.note(note)
    policy = session.fleet.policy
    threads = threads_of(session.config, StageName.dpo, RoleName.policy)
    policy.load(
        train_spec(session.config, sft, settings.optimizer, total, threads=threads)
    ).result()
    if saved is not None and saved.step:
        policy.restore(saved.folder).result()
    for step in range(saved.step if saved else 0, total):
        session.position.step = step
        size = settings.rankings_per_step
        _train_step(session, stage, step, chosen(session, stage, train, step, size))
        session.boundary(stage, step + 1, total, {}, policy)
    made = session.product_of(StageName.dpo)
    session.publish(made, lambda path: policy.save(path, sft).result(), stage)
    _evaluate(session, stage, heldout, total)


def _known(rankings: list[Ranking]) -> list[Ranking]:
    """The rankings, which must say where their prompts end."""
    if all(ranking.prompt_length for ranking in rankings):
        return rankings
    raise DataError(
        "the rankings do not say where their prompts end: an earlier version labeled them",
        where="dpo",
        fix="start another run, which labels them again",
    )


def with_reference(session: Session, rankings: list[Ranking]) -> list[Ranking]:
    """The rankings with the loaded reference's log-probabilities, one pass over all completions.

    Unchanged if the loss has no reference.
    """
    if session.config.preference.loss is PreferenceLoss.simpo:
        return rankings
    parts = [ranking.completions for ranking in rankings]
    batch = TokenBatch(
        Ragged.concat([part.tokens for part in parts]),
        Ragged.concat([part.targets for part in parts]),
    )
    logprobs = -_row_losses(session, batch)
    ends = np.cumsum([len(ranking.ranks) for ranking in rankings])[:-1]
    return [
        replace(ranking, reference=own)
        for ranking, own in zip(rankings, np.split(logprobs, ends), strict=True)
    ]


def _row_losses(session: Session, batch: TokenBatch) -> np.ndarray:
    """(B,) nats, the loss of each row's targets under the reference."""
    reference, found = session.fleet.reference, []
    at_once = _ROWS * reference.size
    for start in range(0, len(batch), at_once):
        rows = np.arange(start, min(start + at_once, len(batch)))
        shares = [share for share in np.array_split(rows, reference.size) if len(share)]
        shares += [rows[:0]] * (reference.size - len(shares))
        found += reference.row_losses([batch.select(share) for share in shares]).result()
    return np.concatenate(found)


def learn(session: Session, rankings: Sequence[Ranking], beta_scale: float = 1.0) -> StepStats:
    """One optimizer step of the policy on rankings; `beta_scale` multiplies the loss's beta."""
    policy = session.fleet.policy
    budget = session.config.trainer.micro_batch_tokens
    shares = training_batches.ranking_step(rankings, policy.size, budget, packed=policy.packed)
    spec = preference_spec(session)
    return policy.train_preferences(shares, replace(spec, beta=spec.beta * beta_scale)).result()


def _train_step(session: Session, stage: str, step: int, rankings: list[Ranking]) -> None:
    stats = learn(session, rankings)
    session.note_first_step()
    session.telemetry.record(
        stage,
        step,
        {
            "dpo/loss": stats.loss,
            "dpo/grad_norm": stats.grad_norm,
            "dpo/learning_rate": stats.learning_rate,
            **{f"dpo/{name}": value for name, value in stats.extra.items()},
        },
    )
    session.live.advance(step + 1, loss=stats.loss, pair_accuracy=stats.extra["pair_accuracy"])


def _evaluate(session: Session, stage: str, heldout: Sequence[Ranking], step: int) -> None:
    """Record how many held-out pairs the implicit reward orders as labeled."""
    policy = session.fleet.policy
    budget = session.config.trainer.micro_batch_tokens
    shares = training_batches.ranking_step(heldout, policy.size, budget, packed=policy.packed)
    counts = policy.evaluate_preferences(shares, preference_spec(session)).result()
    scored = [r for share in shares for batch in share.micro_batches for r in batch]
    found = pair_accuracy(ordered_pairs(scored, counts.scores))
    session.telemetry.record(
        stage,
        step,
        {
            "dpo/heldout_loss": counts.loss_sum / counts.rankings,
            "dpo/heldout_pair_accuracy": found.accuracy,
            "dpo/heldout_pair_accuracy_low": found.low,
            "dpo/heldout_pair_accuracy_high": found.high,
        },
    )
    session.live.note(
        f"held-out pairs ordered as labeled: {100 * found.accuracy:.1f} % "
        f"[{100 * found.low:.1f}-{100 * found.high:.1f}] of {found.pairs:,} pairs of "
        f"{found.prompts:,} prompts"
    )


def preference_spec(session: Session) -> PreferenceSpec:
    """The loss of the run's preference stages."""
    return from_sections(PreferenceSpec, session.config.preference)
