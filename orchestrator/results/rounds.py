"""The rounds of a run, from what its stages found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orchestrator.results.findings import Findings
from orchestrator.results.reward_model_figures import RewardModelFigures
from orchestrator.results.round_figures import RoundFigures


def rounds_of(names: Iterable[tuple[str, str, str]], found: Findings) -> tuple[RoundFigures, ...]:
    """The rounds of a run.

    Args:
        names: Names of label run, reward model and policy, one triple per round.
        found: What was measured so far.
    """
    models = {"reward_model": found.reward_model} | found.reward_models
    return tuple(_round(label, model, policy, found, models) for label, model, policy in names)


def _round(
    label: str, model: str, policy: str, found: Findings, models: Mapping[str, RewardModelFigures]
) -> RoundFigures:
    labels, row = found.labels.get(label), found.models.get(policy)
    last = found.last_steps.get(policy, {})
    after = models[model].by_source.get(label) if model in models else None
    return RoundFigures(
        label=label,
        reward_model=model,
        policy=policy,
        rankings=labels.rankings if labels else None,
        pairs=labels.pairs if labels else None,
        before=labels.before if labels else None,
        after=after,
        gold=row.gold_mean if row else None,
        reward=last.get("score_mean"),
        kl=last.get("kl_sequence"),
    )
