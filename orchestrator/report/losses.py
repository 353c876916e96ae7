"""What each stage learned, by its losses: the result of a run that evaluates nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from orchestrator.telemetry.metrics import METRICS, MetricRecord, series

LOSS_HEADS = ("stage", "steps", "training loss, end", "held out, first", "held out, last", "unit")
_FAMILIES = ("pretrain", "sft", "reward_model", "dpo", "rejection_sampling", "online_dpo")
_HELD_OUT = ("validation_loss", "heldout_loss")
_END = 20  # the last steps, over which the training loss is averaged


def loss_rows(records: Sequence[MetricRecord]) -> list[list[str]]:
    """A row per stage that records a loss, by LOSS_HEADS."""
    rows = []
    for stage in dict.fromkeys(record.stage for record in records):
        found = _losses(records, stage)
        if found is None:
            continue
        name, training, held_out = found
        last = [value for _, value in training[-_END:]]
        rows.append([
            stage.replace("_", " "), f"{training[-1][0]:,}", _number(statistics.fmean(last)),
            _number(held_out[0][1]) if len(held_out) > 1 else "-",
            _number(held_out[-1][1]) if held_out else "-",
            "" if METRICS[name].unit == "1" else METRICS[name].unit,
        ])  # fmt: skip
    return rows


_Points = list[tuple[int, float]]


def _losses(records: Sequence[MetricRecord], stage: str) -> tuple[str, _Points, _Points] | None:
    """Name and values of a stage's training loss, and of its held-out loss."""
    for family in _FAMILIES:
        if training := series(records, stage, f"{family}/loss"):
            held_out = [p for n in _HELD_OUT for p in series(records, stage, f"{family}/{n}")]
            return f"{family}/loss", training, held_out
    return None


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else str(value)
