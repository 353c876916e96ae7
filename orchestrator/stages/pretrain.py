"""Pretraining of the base model on web text.

It starts from scratch in the pocket world, and from `model.checkpoints.initial` on files.
"""

from __future__ import annotations

from orchestrator.config.cluster import RoleName
from orchestrator.config.data import DataSourceKind
from orchestrator.config.model import PocketModelConfig
from orchestrator.config.run import StageName
from orchestrator.planning.threads import threads_of
from orchestrator.planning.worker_specs import train_spec
from orchestrator.session.session import Session
from orchestrator.stages import supervised


def pretrain(session: Session) -> None:
    """Train the base model."""
    stage = StageName.pretrain
    if session.config.data.source is DataSourceKind.pocket:
        initial = _from_scratch(session, stage, session.config.model.pocket)
    else:
        initial = session.need("initial")
    _pretrain(session, stage, initial)
    heldout = session.source.pretraining("heldout", 0, session.config.evaluate.web_documents)
    loss = supervised.mean_loss(session, heldout)
    step, values = session.config.pretrain.steps, {"pretrain/validation_loss": loss}
    session.telemetry.record(session.name_of(stage), step, values)
    session.live.note(f"held-out loss {loss:.3f} nats per token")


def pretrain_large(session: Session) -> None:
    """Train the larger base model to which the aligned models are compared."""
    stage = StageName.pretrain_large
    initial = _from_scratch(session, stage, session.config.model.large)
    _pretrain(session, stage, initial)


def _pretrain(session: Session, stage: StageName, initial: str) -> None:
    settings, name = session.config.pretrain, session.name_of(stage)
    session.live.stage(name, settings.steps)
    session.fleet.policy.load(
        train_spec(
            session.config,
            initial,
            settings.optimizer,
            settings.steps,
            threads=threads_of(session.config, stage, RoleName.policy),
            whole=True,
        )
    ).result()
    count, shared = settings.documents_per_step, session.rows_are_shared()
    supervised.train(
        session,
        supervised.Loop(
            stage=name,
            family="pretrain",
            steps=settings.steps,
            batch=lambda step: session.pretraining_rows(step * count, count, shared=shared),
        ),
    )
    made = session.product_of(stage)
    session.publish(made, lambda path: session.fleet.policy.save(path, initial).result(), name)


def _from_scratch(session: Session, stage: StageName, model: PocketModelConfig) -> str:
    """The initial model of a stage; one from before an interruption is reused."""
    name = session.product_of(stage)
    product = f"{name}_initial"
    if product in session.checkpoints:
        return session.need(product)
    folder = session.publish(
        product,
        lambda path: session.away(
            "workers.pocket.model:create_model",
            path,
            hidden_size=model.hidden_size,
            layers=model.layers,
            heads=model.heads,
            kv_heads=model.kv_heads,
            intermediate_size=model.intermediate_size,
            max_position_embeddings=model.max_position_embeddings,
            tie_word_embeddings=model.tie_word_embeddings,
            seed=session.seed("model", name),
            arithmetic=session.config.data.pocket.arithmetic,
        ),
        session.name_of(stage),
    )
    return str(folder)
