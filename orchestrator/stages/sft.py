"""Supervised fine-tuning on demonstrations; only response tokens count."""

from __future__ import annotations

import math

from orchestrator.arithmetic import sft_rows
from orchestrator.batching import pack_documents
from orchestrator.derive import train_spec
from orchestrator.session import Session
from orchestrator.stages import supervised
from workers.data.batches import stack_batches
from workers.errors import ConfigError
from workers.messages import TokenBatch


def sft(session: Session) -> None:
    """Fine-tune the base model on the demonstrator's replies."""
    settings = session.config.sft
    steps = _steps(session)
    session.live.stage("sft", steps)
    base = session.need("base")
    spec = train_spec(session.config, base, settings.optimizer, steps, dropout=settings.dropout)
    session.fleet.policy.load(spec).result()
    together = settings.pack_tokens if settings.pack_tokens and session.rows_are_shared() else 0
    supervised.train(
        session,
        supervised.Loop(
            stage="sft",
            family="sft",
            steps=steps,
            batch=lambda step: _batch(session, step, together),
        ),
    )
    session.publish("sft", lambda path: session.fleet.policy.save(path, base).result(), "sft")
    heldout = session.source.demonstrations("heldout", 0, settings.validation_demonstrations)
    loss = supervised.mean_loss(session, heldout)
    session.telemetry.record("sft", steps, {"sft/validation_loss": loss})
    session.live.note(f"held-out loss {loss:.3f} nats a response token")


def _steps(session: Session) -> int:
    """Optimizer steps: as configured, or as many as the passes over the file take.

    Raises:
        ConfigError: the passes are over before the warm-up is.
    """
    settings = session.config.sft
    if settings.epochs == 0:
        return settings.steps
    rows = session.source.demonstration_count()
    assert rows is not None, "checked before anything started: a pass has an end"
    demonstrations, _ = sft_rows(session.config)
    steps = math.ceil(settings.epochs * rows / demonstrations)
    if settings.optimizer.warmup_steps >= steps:
        raise ConfigError(
            f"{settings.epochs} passes over {rows} demonstrations are {steps} optimizer steps, "
            f"over before a warm-up of {settings.optimizer.warmup_steps}",
            where="sft.optimizer.warmup_steps",
            mend=f"set it below {steps}",
        )
    return steps


def _batch(session: Session, step: int, together: int) -> TokenBatch:
    """The rows of one optimizer step: demonstrations, and pretraining text where it is mixed in.

    Args:
        session: of the run.
        step: counted from 0.
        together: tokens of rows that several share; 0 = a row each.
    """
    demonstrations, documents = sft_rows(session.config)
    batch = session.source.demonstrations("train", step * demonstrations, demonstrations)
    if documents:
        text = session.source.pretraining("train", step * documents, documents)
        batch = stack_batches(batch, text)
    return pack_documents(batch, together) if together else batch
