"""Held-out quality of a reward model: figures, metrics, and a note in the live view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.config.run import StageName
from orchestrator.results.calibration import calibrate
from orchestrator.results.pair_metrics import (
    accuracy_by_completions,
    accuracy_by_source,
    ordered_pairs,
    pair_accuracy,
)
from orchestrator.results.reward_model_figures import Agreement, RewardModelFigures
from orchestrator.session.session import Session
from workers.records.training import PairCounts, Ranking

_ACCURACY = "reward_model/heldout_pair_accuracy"


def record_heldout(
    session: Session,
    rankings: Sequence[Ranking],
    counts: PairCounts,
    agreement: Agreement | None,
    step: int,
) -> None:
    """Derive the figures of one evaluation and record them.

    Args:
        session: receives them in its findings, metrics and live view.
        rankings: held out, in the order of `counts.scores`.
        counts: the trainers' result.
        agreement: of the annotators, if several ranked the same completions.
        step: optimizer steps taken.
    """
    pairs = ordered_pairs(rankings, counts.scores)
    found = pair_accuracy(pairs)
    figures = RewardModelFigures(
        heldout=found,
        by_source=accuracy_by_source(pairs),
        by_completions=accuracy_by_completions(pairs),
        calibration=calibrate(pairs),
        agreement=agreement,
    )
    stage = session.name_of(StageName.reward_model)
    if stage == StageName.reward_model:
        session.findings.reward_model = figures
    else:
        session.findings.reward_models[stage] = figures
    metrics = dict(_metrics(figures))
    metrics["reward_model/heldout_loss"] = counts.loss_sum / counts.rankings
    session.telemetry.record(stage, step, metrics)
    session.live.note(
        f"held-out pairs ordered as labeled: {100 * found.accuracy:.1f} % "
        f"[{100 * found.low:.1f}-{100 * found.high:.1f}] of {found.pairs:,} pairs of "
        f"{found.prompts:,} prompts"
    )


def _metrics(found: RewardModelFigures) -> Iterator[tuple[str, float]]:
    if found.heldout is not None:
        yield _ACCURACY, found.heldout.accuracy
        yield f"{_ACCURACY}_low", found.heldout.low
        yield f"{_ACCURACY}_high", found.heldout.high
        yield "reward_model/heldout_pairs", found.heldout.pairs
        yield "reward_model/heldout_prompts", found.heldout.prompts
    for source, accuracy in found.by_source.items():
        yield f"{_ACCURACY}/source/{source or 'unnamed'}", accuracy.accuracy
    for k, accuracy in found.by_completions.items():
        yield f"{_ACCURACY}/completions/{k}", accuracy.accuracy
    if found.calibration is not None:
        yield "reward_model/heldout_calibration_error", found.calibration.error
    if found.agreement is not None:
        yield "reward_model/annotator_agreement", found.agreement.rate
        if found.agreement.alpha is not None:
            yield "reward_model/annotator_alpha", found.agreement.alpha
