"""What was recorded of policies while they learned, as curves over the KL to the SFT model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.planning.runs.products import policies_before
from orchestrator.planning.runs.stage_run import StageRun
from orchestrator.results.overoptimization_analysis import PolicyCurve
from orchestrator.session.session import Session
from orchestrator.telemetry.metrics import MetricRecord, read_metrics, series


def policy_curves(session: Session, runs: Sequence[StageRun]) -> list[PolicyCurve]:
    """The curves of all policies with a gold score at two points or more."""
    found = policies_before(runs)
    records = read_metrics(session.folder.metrics) if found else []
    curves = [_curve(run, records) for run in found]
    for run, each in zip(found, curves, strict=True):
        if each is None:
            session.live.note(
                f"{run.name} has no gold score at two points: set algorithm.evaluate_every"
            )
    return [each for each in curves if each is not None]


def _curve(run: StageRun, records: Sequence[MetricRecord]) -> PolicyCurve | None:
    """Gold score where it was measured; KL and reward are means of the iterations around.

    The sequences of an iteration are few, and the k1 estimate of their KL is noisy, so that of an
    interval of evaluations is averaged, centred at the point.
    """
    gold = dict(series(records, run.name, "ppo/gold_mean"))
    kl, score = (
        dict(series(records, run.name, f"ppo/{name}")) for name in ("kl_sequence", "score_mean")
    )
    if len(gold) < 2 or not kl or not score:
        return None
    wide = run.config.algorithm.evaluate_every // 2
    steps = sorted(gold)
    first = next(iter(sorted(score)))
    deviation = dict(series(records, run.name, "ppo/score_std"))[first] or 1.0
    near = [_mean_near(score, step + 1, wide) for step in steps]
    return PolicyCurve(
        name=str(run.name),
        reward_model=run.inputs["reward_model"],
        kl_coefficient=run.config.algorithm.kl.coefficient,
        steps=steps,
        kl=np.maximum([0.0, *(_mean_near(kl, step + 1, wide) for step in steps[1:])], 0.0),
        gold=np.array([gold[step] for step in steps]),
        reward=(np.array(near) - score[first]) / deviation,
    )


def _mean_near(values: dict[int, float], step: int, wide: int) -> float:
    """The mean of the values at most `wide` steps from `step`; of the last, if it is beyond.

    The policy after n updates samples what step n + 1 records.
    """
    step = min(step, max(values))
    before = min(wide, step - min(values))
    after = min(before, max(values) - step)
    near = [values[s] for s in range(step - before, step + after + 1) if s in values]
    return float(np.mean(near)) if near else values[step]
