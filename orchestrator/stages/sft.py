"""Supervised fine-tuning on demonstrations; the loss covers response tokens only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.batching.batch_sizes import sft_rows, warmup_note
from orchestrator.batching.text_rows import TextRows
from orchestrator.batching.training_batches import pack_documents
from orchestrator.config.cluster import RoleName
from orchestrator.config.run import StageName
from orchestrator.config.training import SFTBest
from orchestrator.planning.threads import threads_of
from orchestrator.planning.worker_specs import train_spec
from orchestrator.session.session import Session
from orchestrator.stages import supervised
from orchestrator.stages.constitution.demonstrations import Demonstrated, demonstrations_of
from orchestrator.stages.selection.sft_candidates import Candidates
from orchestrator.stages.shown import show_answers
from workers.data.batches import stack_batches
from workers.records.training import TokenBatch


def sft(session: Session) -> None:
    """Fine-tune the base model on the demonstrator's replies."""
    settings, stage = session.config.sft, session.name_of(StageName.sft)
    source = demonstrations_of(session)
    steps = _steps(session, source)
    session.live.stage(stage, steps)
    base = session.need("base")
    threads = threads_of(session.config, StageName.sft, RoleName.policy)
    spec = train_spec(
        session.config, base, settings.optimizer, steps, threads=threads, dropout=settings.dropout
    )
    compared = _candidates(session, source, base, steps)
    if compared is not None:
        compared.start()
    session.fleet.policy.load(spec).result()
    _, documents = sft_rows(session.config)
    full_rows = settings.pretraining_full_rows and documents > 0
    shared = (settings.pack_tokens or full_rows) and session.rows_are_shared()
    mix = _Mix(
        source=source,
        together=settings.pack_tokens if shared else 0,
        text=session.text_rows(shared=bool(shared)) if full_rows else None,
    )
    supervised.train(
        session,
        supervised.Loop(
            stage=stage,
            family="sft",
            steps=steps,
            batch=lambda step: _batch(session, step, mix),
            measuring=compared,
        ),
    )
    made = session.product_of(StageName.sft)
    if compared is not None:
        compared.publish(made)
        return
    session.publish(made, lambda path: session.fleet.policy.save(path, base).result(), stage)
    heldout = source.demonstrations("heldout", 0, settings.validation_demonstrations)
    loss = supervised.mean_loss(session, heldout)
    session.telemetry.record(stage, steps, {"sft/validation_loss": loss})
    session.live.note(f"held-out loss {loss:.3f} nats per response token")
    show_answers(session, source, made)


def _candidates(session: Session, source: Demonstrated, base: str, steps: int) -> Candidates | None:
    """The weights to compare: after each pass, or after equal numbers of steps, and the last."""
    settings = session.config.sft
    if settings.keep_best is SFTBest.none:
        return None
    if every := settings.keep_best_every:
        return Candidates(session, source, base, [*range(every, steps, every), steps])
    rows = source.demonstration_count()
    assert rows is not None, "checked before anything started: a pass has an end"
    demonstrations, _ = sft_rows(session.config)
    ends = (math.ceil(n * rows / demonstrations) for n in range(1, settings.epochs + 1))
    return Candidates(session, source, base, list(ends))


def _steps(session: Session, source: Demonstrated) -> int:
    """Optimizer steps: as configured, or as many as the configured epochs over the file take."""
    settings = session.config.sft
    if settings.epochs == 0:
        return settings.steps
    rows = source.demonstration_count()
    assert rows is not None, "checked before anything started: a pass has an end"
    demonstrations, _ = sft_rows(session.config)
    steps = math.ceil(settings.epochs * rows / demonstrations)
    for note in warmup_note(settings.optimizer, steps, "sft.optimizer"):
        session.live.note(note)
    return steps


@dataclass(frozen=True, slots=True)
class _Mix:
    """How the rows of a step are built."""

    source: Demonstrated
    together: int  # tokens per packed row; 0 = one demonstration or document per row
    text: TextRows | None  # pretraining text in full rows; None = as documents


def _batch(session: Session, step: int, mix: _Mix) -> TokenBatch:
    """The rows of one optimizer step: demonstrations, and pretraining text if it is mixed in.

    Args:
        session: of the run.
        step: counted from 0.
        mix: how rows are built.
    """
    demonstrations, documents = sft_rows(session.config)
    batch = mix.source.demonstrations("train", step * demonstrations, demonstrations)
    if documents and mix.text is None:
        text = session.source.pretraining("train", step * documents, documents)
        batch = stack_batches(batch, text)
    if mix.together:
        batch = pack_documents(batch, mix.together)
    if documents and mix.text is not None:
        batch = stack_batches(batch, mix.text.take(step * documents, documents))
    return batch
