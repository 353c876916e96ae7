"""Pretraining from scratch on the pocket world's web text: the base model of a run."""

from __future__ import annotations

from pathlib import Path

from orchestrator.config import PocketModelConfig
from orchestrator.derive import train_spec
from orchestrator.session import Session
from orchestrator.stages import supervised
from workers.pocket.model import create_model


def pretrain(session: Session) -> None:
    """Make the base model."""
    _pretrain(session, "pretrain", "base", session.config.model.pocket)


def pretrain_large(session: Session) -> None:
    """Make the bigger base model that the aligned one is compared with."""
    _pretrain(session, "pretrain_large", "large", session.config.model.large)


def _pretrain(session: Session, stage: str, name: str, model: PocketModelConfig) -> None:
    settings = session.config.pretrain
    session.live.stage(stage, settings.steps)
    initial = _initial_weights(session, stage, name, model)
    session.fleet.policy.load(
        train_spec(session.config, str(initial), settings.optimizer, settings.steps)
    ).result()
    count = settings.documents_per_step
    supervised.train(
        session,
        supervised.Loop(
            stage=stage,
            family="pretrain",
            steps=settings.steps,
            batch=lambda step: session.pretraining_rows(step * count, count),
        ),
    )
    session.publish(
        name, lambda path: session.fleet.policy.save(path, str(initial)).result(), stage
    )


def _initial_weights(session: Session, stage: str, name: str, model: PocketModelConfig) -> Path:
    return session.publish(
        f"{name}_initial",
        lambda path: create_model(
            path,
            hidden_size=model.hidden_size,
            layers=model.layers,
            heads=model.heads,
            kv_heads=model.kv_heads,
            intermediate_size=model.intermediate_size,
            max_position_embeddings=model.max_position_embeddings,
            tie_word_embeddings=model.tie_word_embeddings,
            seed=session.seed("model", name),
        ),
        stage,
    )
