"""Checks of the graph of products: every model has one maker, which comes before its readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.batching.batch_sizes import PPO_STAGES
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.variants import Variant, nearest
from orchestrator.planning.runs.stage_run import StageRun
from workers.errors import ConfigError


def check_products(runs: Sequence[StageRun]) -> None:
    """Refuse two stage runs that make the same model."""
    made: dict[str, str] = {}
    for run in runs:
        if run.product and run.product in made:
            raise ConfigError(
                f"{made[run.product]} and {run.name} both make the model {run.product!r}",
                where="stages",
                fix="give the variant another name",
            )
        made[run.product] = run.name


def check_sources(
    config: Config, runs: Sequence[StageRun], variants: Mapping[str, Variant]
) -> None:
    """Check that what a variant reads is given, or made before it."""
    makers = {run.product: run for run in runs if run.product}
    given = config.model.checkpoints.given()
    made: list[str] = []
    for run in runs:
        own = variants.get(run.name)
        for key, name in _named(own):
            where = f"variants.{run.name}.{key}"
            if name in made or name in given:
                continue
            if run.name in _sources(name, makers):
                raise ConfigError(
                    f"{run.name} reads {name!r}, which itself comes from {run.name}",
                    where=where,
                    fix="name a model that does not depend on it",
                )
            if name in makers:
                raise ConfigError(
                    f"{run.name} reads {name!r}, which a later stage makes",
                    where=where,
                    fix=f"put {makers[name].name} before {run.name} in stages",
                )
            raise ConfigError(
                f"{run.name} reads {name!r}, which no stage of this run makes",
                where=where,
                fix=f"{nearest(name, [*made, *given])}there are: "
                f"{', '.join([*made, *given]) or 'none'}",
            )
        made += [run.product] if run.product else []


def _named(own: Variant | None) -> list[tuple[str, str]]:
    if own is None:
        return []
    found = {"from": own.start, "reference": own.reference, "reward_model": own.reward_model}
    return [(key, name) for key, name in found.items() if name]


def _sources(name: str, makers: Mapping[str, StageRun]) -> set[str]:
    """The names of the stage runs that a product comes from."""
    found, left = set[str](), [name]
    while left:
        run = makers.get(left.pop())
        if run is not None and run.name not in found:
            found.add(run.name)
            left += run.reads
    return found


def proxies_before(runs: Sequence[StageRun]) -> list[StageRun]:
    """The stage runs that make the reward models which the stage overoptimization measures."""
    return [run for run in _before(runs) if run.stage is StageName.reward_model]


def policies_before(runs: Sequence[StageRun]) -> list[StageRun]:
    """The stage runs whose policies it measures: PPO against a reward model of the run."""
    ppo = [run for run in _before(runs) if run.stage in PPO_STAGES]
    return [run for run in ppo if "reward_model" in run.inputs]


def _before(runs: Sequence[StageRun]) -> list[StageRun]:
    at = next((n for n, run in enumerate(runs) if run.stage is StageName.overoptimization), 0)
    return list(runs[:at])
