"""Records of an iteration of rejection sampling: metrics, texts, and the live view."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from orchestrator.batching.selection import best_scores
from orchestrator.roles.weight_sync import SyncReport
from orchestrator.session.session import Session
from orchestrator.stages.ppo.ledger import LedgerSummary
from orchestrator.stages.ppo.record import Marks, append_samples, term_values
from orchestrator.stages.selection.heldout import HEADLINES, tell_start
from orchestrator.stages.selection.pool import Chosen, Samples
from workers.records.generation import Finish, RolloutBatch
from workers.records.training import Scores, StepStats

_FAMILY = "rejection"
_SHOWN = ("score_mean", "best_score_mean", "loss", *HEADLINES)


@dataclass(frozen=True, slots=True)
class Done:
    """Everything that is known about one finished iteration."""

    stage: str  # name of the stage run
    step: int  # iterations done, this one included
    batch: RolloutBatch  # all sequences
    scores: Scores  # of all sequences
    samples: Samples  # those with a score
    pool: Samples  # those that were trained on
    chosen: Chosen
    steps: list[StepStats]  # empty: nothing was trained
    counts: LedgerSummary  # of this iteration only
    sync: SyncReport | None  # None: the policy did not change
    began: float  # time.monotonic()


def record_start(
    session: Session, stage: str, sync: SyncReport, heldout: Mapping[str, float]
) -> None:
    """Record the first sync and the scores of held-out prompts before any update, as step 0."""
    session.telemetry.record(stage, 0, _named(_parity(sync) | dict(heldout)))
    tell_start(session, heldout)


def record(session: Session, done: Done, heldout: Callable[[], Mapping[str, float]]) -> None:
    """Record a finished iteration; `heldout` measures the weights that the engines now serve."""
    values = _scores(done) | _training(done) | _counts(done) | _speed(done)
    if done.sync is not None:
        values |= _parity(done.sync)
    values |= heldout()
    _keep_texts(session, done)
    named = _named(values) | term_values(done.scores, _FAMILY)
    session.telemetry.record(done.stage, done.step, named)
    session.live.advance(done.step, **{n: values[n] for n in _SHOWN if n in values})


def _named(values: Mapping[str, float]) -> dict[str, float]:
    return {f"{_FAMILY}/{name}": value for name, value in values.items()}


def _scores(done: Done) -> dict[str, float]:
    values = {
        "response_tokens_mean": float(done.batch.response_lengths.mean()),
        "eos_rate": float((done.batch.finish == Finish.STOP).mean()),
    }
    if len(done.samples):
        scores = done.samples.scores.astype(np.float64)
        best = best_scores(done.samples.prompts, done.samples.scores)
        values |= {
            "score_mean": float(scores.mean()),
            "score_std": float(scores.std()),
            "best_score_mean": float(best.mean()),
        }
    if len(done.pool):
        lengths = done.pool.tokens.lengths - done.pool.prompt_lengths
        values |= {
            "kept_score_mean": float(done.pool.scores.mean(dtype=np.float64)),
            "kept_score_max": float(done.pool.scores.max()),
            "kept_tokens_mean": float(lengths.mean()),
        }
    return values


def _training(done: Done) -> dict[str, float]:
    if not done.steps:
        return {}
    return {
        "loss": float(np.mean([s.loss for s in done.steps])),
        "grad_norm": float(np.mean([s.grad_norm for s in done.steps])),
        "learning_rate": done.steps[-1].learning_rate,
        "optimizer_steps": float(len(done.steps)),
    }


def _counts(done: Done) -> dict[str, float]:
    counts = done.counts
    return {
        "generated": float(counts.generated),
        "trained": float(counts.trained),
        "dropped": float(counts.dropped_total),
        "reused": float(done.chosen.reused),
        **{f"dropped/{cause.value}": float(n) for cause, n in counts.causes.items()},
    }


def _parity(sync: SyncReport) -> dict[str, float]:
    return {
        "parity_max": sync.parity.max_difference,
        "parity_mean": sync.parity.mean_difference,
        "sync_bytes": float(sync.nbytes),
        "sync_seconds": sync.seconds,
    }


def _speed(done: Done) -> dict[str, float]:
    seconds = time.monotonic() - done.began
    return {
        "step_seconds": seconds,
        "tokens_per_second": float(done.batch.response_lengths.sum()) / seconds,
    }


def _keep_texts(session: Session, done: Done) -> None:
    """Write texts of new samples that were trained on, and of those that were dropped."""
    scores = dict(zip(done.samples.ids.tolist(), done.samples.scores.tolist(), strict=True))
    unknown = dict.fromkeys(done.chosen.kept.tolist(), math.nan)  # there is no reference
    marks = Marks(scores, unknown, done.counts.reasons).with_terms(done.scores)
    append_samples(session, (done.stage, done.step), done.batch, marks)
