"""Training loop of pretraining and supervised fine-tuning."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.batching import training_batches
from orchestrator.roles.interfaces import Answer
from orchestrator.session.session import Session
from workers.records.training import StepStats, TextLoss, TokenBatch

_IN_FLIGHT = 2  # the driver prepares the next batch while the trainers work on this one


class Measuring(Protocol):
    """Something that measures the weights at some steps of a stage."""

    def due(self, step: int) -> bool:
        """Whether to measure after `step` steps."""
        ...

    def measure(self, step: int) -> None:
        """Measure the weights after `step` steps; no call to the trainers is open."""
        ...

    def state(self) -> dict[str, Any]:
        """State as plain values."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a saved `state`."""
        ...


@dataclass(frozen=True, slots=True)
class Loop:
    """One supervised stage."""

    stage: str
    family: str  # prefix of its metrics
    steps: int
    batch: Callable[[int], TokenBatch]  # step -> examples of that optimizer step, all ranks
    measuring: Measuring | None = None


def train(session: Session, loop: Loop) -> None:
    """Run `loop.steps` optimizer steps on the policy's trainers and record each."""
    policy = session.fleet.policy
    budget = session.config.trainer.micro_batch_tokens
    waiting: deque[tuple[int, int, Answer[StepStats]]] = deque()
    clock = time.monotonic()

    def settle() -> None:
        nonlocal clock
        step, tokens, pending = waiting.popleft()
        stats = pending.result()
        session.note_first_step()
        now = time.monotonic()
        _record(session, loop, step, stats, tokens / (now - clock))
        clock = now

    saved = session.saves.within(loop.stage)
    if saved is not None:
        policy.restore(saved.folder).result()
        if loop.measuring is not None:
            loop.measuring.restore(saved.own)
    for step in range(saved.step if saved else 0, loop.steps):
        session.position.step = step
        batch = loop.batch(step)
        shares = training_batches.supervised_step(batch, policy.size, budget, packed=policy.packed)
        waiting.append((step, batch.target_count, policy.train_supervised(shares)))
        session.saves.settle()  # a checkpoint of the previous step, written during this batch
        if len(waiting) == _IN_FLIGHT:
            settle()
        measures = loop.measuring is not None and loop.measuring.due(step + 1)
        if measures or session.saves.due(loop.stage, step + 1):
            while waiting:
                settle()
            _between(session, loop, step + 1, measures=measures)
            clock = time.monotonic()
    while waiting:
        settle()


def _between(session: Session, loop: Loop, step: int, *, measures: bool) -> None:
    """Measure the weights, if that is due, and save the run, if that is."""
    own: dict[str, Any] = {}
    if loop.measuring is not None:
        if measures:
            loop.measuring.measure(step)
        own = loop.measuring.state()
    session.boundary(loop.stage, step, loop.steps, own, session.fleet.policy)


def mean_loss(session: Session, batch: TokenBatch) -> float:
    """Mean next-token loss of the current weights on `batch`, nats per target token."""
    policy = session.fleet.policy
    budget = session.config.trainer.micro_batch_tokens
    shares = training_batches.supervised_step(batch, policy.size, budget, packed=policy.packed)
    loss: TextLoss = policy.evaluate_supervised(shares).result()
    return loss.nll / loss.tokens


def _record(
    session: Session, loop: Loop, step: int, stats: StepStats, tokens_per_second: float
) -> None:
    session.telemetry.record(
        loop.stage,
        step,
        {
            f"{loop.family}/loss": stats.loss,
            f"{loop.family}/grad_norm": stats.grad_norm,
            f"{loop.family}/learning_rate": stats.learning_rate,
            f"{loop.family}/tokens_per_second": tokens_per_second,
        },
    )
    session.live.advance(step + 1, loss=stats.loss, tokens_per_second=tokens_per_second)
