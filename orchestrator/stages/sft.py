"""Supervised fine-tuning on demonstrations; only response tokens count."""

from __future__ import annotations

from orchestrator.batching import pack_documents
from orchestrator.derive import train_spec
from orchestrator.session import Session
from orchestrator.stages import supervised
from workers.messages import TokenBatch


def sft(session: Session) -> None:
    """Fine-tune the base model on the demonstrator's replies."""
    settings = session.config.sft
    session.live.stage("sft", settings.steps)
    base = session.need("base")
    session.fleet.policy.load(
        train_spec(session.config, base, settings.optimizer, settings.steps)
    ).result()
    count = settings.demonstrations_per_step

    def batch(step: int) -> TokenBatch:
        demonstrations = session.source.demonstrations("train", step * count, count)
        if not settings.pack_tokens:
            return demonstrations
        return pack_documents(demonstrations, settings.pack_tokens)

    supervised.train(
        session,
        supervised.Loop(
            stage="sft",
            family="sft",
            steps=settings.steps,
            batch=batch,
        ),
    )
    heldout = session.source.demonstrations("heldout", 0, settings.validation_demonstrations)
    loss = supervised.mean_loss(session, heldout)
    session.telemetry.record("sft", settings.steps, {"sft/validation_loss": loss})
    session.live.note(f"held-out loss {loss:.3f} nats a response token")
    session.publish("sft", lambda path: session.fleet.policy.save(path, base).result(), "sft")
