"""Which sequences an iteration samples, and which of them are dropped before training."""

from __future__ import annotations

import numpy as np

from orchestrator.batching.batch_sizes import started_prompts
from orchestrator.roles.interfaces import Rollouts
from orchestrator.session.conversations import conversations, lost_of
from orchestrator.session.corrections import REASON
from orchestrator.stages.ppo.ledger import Cause
from orchestrator.stages.ppo.queue import Batch
from orchestrator.stages.ppo.saved_rollouts import held
from orchestrator.stages.ppo.state import PPORun
from workers.data.records import Prompt
from workers.records.generation import Delivery


def generate(run: PPORun, iteration: int) -> Batch:
    """Start sampling the prompts of one iteration with the engines' current weights."""
    return _generate(run, iteration, prompts_of(run, iteration))


def generate_more(run: PPORun, iteration: int, n: int) -> tuple[Batch, list[Prompt]]:
    """Start sampling the next prompts from the same weights, batch `n` of the iteration."""
    run.prompts_added += started_prompts(run.session.config)
    prompts = prompts_of(run, iteration)
    return _generate(run, iteration, prompts, "more", n), prompts


def _generate(run: PPORun, iteration: int, prompts: list[Prompt], *path: str | int) -> Batch:
    session, settings = run.session, run.session.config.algorithm
    requests = session.requests(prompts, settings.samples_per_prompt, run.stage, iteration, *path)
    ids = np.array([i for request in requests for i in request.ids], np.int64)
    run.ledger.generated(ids)
    outlived, session.outlived = session.outlived, None
    parts = outlived.parts if outlived and outlived.losses == session.losses.count else ()
    if (finished := held(parts, ids, run.version)) is not None:
        session.live.note(f"{len(ids)} sequences are there already")
        return Batch(iteration, ids, finished)
    if session.config.environment.on:
        talk = conversations(session, session.config.environment, prompts, requests, run.version)
        return Batch(iteration, ids, talk)
    delivery = Delivery(session.config.rollout.stream_sequences, settings.prompts_per_iteration)
    generation = session.fleet.rollout.generate(requests, session.sampling(), run.version, delivery)
    return Batch(iteration, ids, generation)


def prompts_of(run: PPORun, iteration: int) -> list[Prompt]:
    """The prompts of an iteration's newest batch, including those for over-provisioning."""
    count = started_prompts(run.session.config)
    return run.session.source.prompts("ppo", iteration * count + run.prompts_added, count)


def drop_culprits(run: PPORun, batch: Batch) -> None:
    """Record as dropped the sequences that are excluded since they caused a NaN."""
    culprits = run.session.corrections.excluded & set(batch.ids.tolist())
    if culprits:
        run.ledger.dropped(np.array(sorted(culprits)), REASON, Cause.not_finite)


def drop_lost(run: PPORun, batch: Batch) -> None:
    """Record as dropped the sequences whose environment failed, and show each reason once."""
    lost = lost_of(batch.generation)
    for i, failure in sorted(lost.items()):
        run.ledger.dropped([i], failure.reason, Cause.environment)
        if failure.reason not in run.scoring.shown:
            run.scoring.shown.add(failure.reason)
            run.session.live.note(f"sequence {i} dropped: {failure}")


def drop_surplus(run: PPORun, batch: Batch, rollouts: Rollouts) -> None:
    """Record as dropped the sequences that over-provisioning aborted; all others must arrive."""
    if run.session.config.rollout.overprovision:
        late = np.setdiff1d(batch.ids, rollouts.summary.ids)
        late = np.setdiff1d(late, sorted(run.session.corrections.excluded))
        why = "over-provisioned: enough others had finished"
        run.ledger.dropped(late, why, Cause.surplus)
