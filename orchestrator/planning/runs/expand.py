"""The stage runs of a configuration: every stage and variant, with what it runs with.

A run of the recipe is a graph of stage runs over products (the checkpoints). A plain stage has its
own name, the run's configuration and the products that its stage always reads. A variant has its
own name, the run's configuration with its changes, and may read other products.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

from orchestrator.batching.batch_sizes import ONLINE_STAGES, PPO_STAGES
from orchestrator.config.cluster import RoleName
from orchestrator.config.environment import EnvironmentConfig
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.variants import Variant, variant
from orchestrator.config.variants import stage_of as variant_stage
from orchestrator.planning.runs.labels import demonstrations_of, numbered, rankings_of
from orchestrator.planning.runs.products import check_products, check_sources
from orchestrator.planning.runs.settings import changed, kept_of, named_keys
from orchestrator.planning.runs.stage_run import START, StageConfig, StageRun, whole
from orchestrator.planning.stage_graph import (
    RANKING_STAGES,
    REFERENCE,
    TEACHER,
    inputs,
    is_rewarded,
    product,
    reference_of,
    stage_roles,
)
from orchestrator.results.summary import MODEL_ORDER
from workers.errors import ConfigError

_FIRST = {"base": 0, "large": 1, "teacher": 2}
_REVISING = StageName.constitution
_BASE_STAGES = (StageName.pretrain, StageName.pretrain_large)


def expand(config: Config) -> tuple[StageRun, ...]:
    """The stage runs of a configuration, in order.

    Raises:
        ConfigError: a variant has a key or value that it cannot have, two stage runs make the same
            product, or a variant reads a product that nobody makes before it.
    """
    of_variants = variants_of(config)
    if not of_variants:
        return tuple(numbered([_plain(config, config, stage) for stage in config.stage_names]))
    own = _of_plain(config, of_variants)
    runs: list[StageRun] = []
    for name in config.stages:
        if name in of_variants:
            runs.append(_of_variant(config, name, of_variants[name], runs))
        else:
            runs.append(_plain(own, config, StageName(name)))
    runs = numbered(runs)
    check_products(runs)
    check_sources(config, runs, of_variants)
    roles = frozenset(role for run in runs for role in run.roles)
    for run in runs:
        assert isinstance(run.config, StageConfig)
        run.config.roles = roles
    return tuple(runs)


def run_roles(config: Config) -> frozenset[RoleName]:
    """The roles of all stage runs, also where `config` is that of one of them."""
    if isinstance(config, StageConfig):
        return config.roles
    return frozenset(role for run in expand(config) for role in run.roles)


def variants_of(config: Config) -> dict[str, Variant]:
    """The variants that are run, by name."""
    return {n: variant(n, config.variants[n]) for n in config.stages if n in config.variants}


def stage_of(config: Config, name: str) -> StageName:
    """The stage that a stage run of this name runs."""
    stage = variant_stage(config.variants, name)
    assert stage is not None, f"there is no stage run {name!r}"
    return stage


def stages_of(config: Config) -> set[StageName]:
    """The stages that are run, under whatever names."""
    return {stage_of(config, name) for name in config.stages}


def any_rewarded(config: Config) -> bool:
    """Whether any stage run trains on rewards."""
    return any(is_rewarded(run.config, run.stage) for run in expand(config))


def judges_training(config: Config) -> bool:
    """Whether a judge compares held-out answers while some stage run trains."""
    return any(run.config.training_judge is not None for run in expand(config))


def compared(config: Config) -> list[str]:
    """The models that an evaluation of the run compares, in the order of tables and plots.

    The base models come first, then what is given, then what the run makes, in its order.
    """
    made = [run.product for run in expand(whole(config)) if run.stage is not StageName.reward_model]
    given = [name for name in MODEL_ORDER if getattr(config.model.checkpoints, name)]
    names = [*(name for name in given if name not in made), *filter(None, made)]
    first = dict.fromkeys(made_by(config, *_BASE_STAGES), _FIRST["large"]) | _FIRST
    return sorted(names, key=lambda name: first.get(name, len(_FIRST)))


def made_by(config: Config, *stages: StageName) -> list[str]:
    """The models that stage runs of these kinds make, in their order."""
    runs = expand(whole(config))
    return [run.product for run in runs if run.stage in stages and run.product]


def environment_of(config: Config, model: str) -> EnvironmentConfig:
    """What a model talks with in the evaluation: as in its PPO, else as the run says."""
    runs = expand(whole(config))
    own = [run for run in runs if run.product == model and run.stage in PPO_STAGES]
    return own[-1].config.environment if own else whole(config).environment


def base_models(config: Config) -> set[str]:
    """The names of models of a run that are pretrained and nothing else."""
    return {"base", "large", *made_by(config, *_BASE_STAGES)}


def models_read(config: Config, stage: str, finished: Collection[str]) -> set[str]:
    """The names of the models that a run still needs.

    Args:
        config: The run.
        stage: The current stage run.
        finished: The finished stage runs.
    """
    runs = [*expand(config)]
    if stage in StageName.__members__ and stage not in config.stages:
        runs.append(_plain(config, config, StageName(stage)))
    left = [run for run in runs if run.name not in finished]
    names = {name for run in left for name in run.reads}
    if any(run.stage in (StageName.evaluate, StageName.overoptimization) for run in left):
        names |= {*map(product, StageName), *(run.product for run in runs)} - {""}
    return names | {f"{run.product}_initial" for run in left if run.name == stage}


def _plain(config: Config, run: Config, stage: StageName) -> StageRun:
    """A stage under its own name; `run` has the stages before it, by which rankings are labeled."""
    at = run.stages.index(stage) if stage in run.stages else len(run.stages)
    labels = _labels(run, stage, run.stages[:at])
    plain = stage in RANKING_STAGES and StageName.label in run.stages[:at]
    return StageRun(
        name=stage,
        stage=stage,
        config=config,
        inputs={name: name for name in inputs(config, stage, labels)},
        product=product(stage),
        roles=stage_roles(config, stage, labels),
        seed_as=stage.value,
        labels=labels,
        rankings=(StageName.label.value,) if plain else (),
        demonstrations=(_REVISING.value,) if _revised(run, stage, at) else (),
    )


def _revised(run: Config, stage: StageName, at: int) -> bool:
    """Whether a plain stage trains on the revisions of the stage constitution before it."""
    return stage is StageName.sft and _REVISING in run.stages[:at]


def _labels(config: Config, stage: StageName, before: Sequence[str]) -> bool:
    """Whether a stage run samples and labels rankings: the first that reads any."""
    kinds = [stage_of(config, name) for name in before]
    if StageName.label in kinds:
        return False
    first = not any(kind in RANKING_STAGES for kind in kinds)
    return first and stage in RANKING_STAGES and config.samples_rankings


def _of_plain(config: Config, variants: Mapping[str, Variant]) -> StageConfig:
    """What the stages that are no variants run with; it shares the run's sections."""
    return _stage_config(config, config, [n for n in config.stages if n not in variants])


def _stage_config(config: Config, whole_run: Config, stages: list[str]) -> StageConfig:
    values = {each.name: getattr(config, each.name) for each in dataclasses.fields(config)}
    made = StageConfig(**values | {"stages": stages, "variants": {}})
    made.whole = whole_run
    return made


def _of_variant(config: Config, name: str, own: Variant, before: Sequence[StageRun]) -> StageRun:
    where = f"variants.{name}"
    labels = _labels(config, own.stage, [run.name for run in before])
    rankings = rankings_of(name, own, before)
    demonstrations = demonstrations_of(name, own, before)
    with named_keys(name, own.changes):
        settings = changed(config, own.changes, where)
        bound = _bound(own, inputs(settings, own.stage, labels), where)
        bound |= _compared_with(own, settings, where)
    above = _ancestors(bound.values(), before)
    stages = [*(run.stage.value for run in above), own.stage.value]
    stages = [StageName.label.value, *stages] if rankings else stages
    made = _stage_config(settings, config, list(dict.fromkeys(stages)))
    sizes = [run.config.model for run in above if run.stage is StageName.pretrain_large]
    if sizes:  # a model of another size that a variant made from scratch
        made.model = sizes[-1]
    return StageRun(
        name=name,
        stage=own.stage,
        config=made,
        inputs=bound,
        product=name if product(own.stage) and name != own.stage.value else product(own.stage),
        roles=stage_roles(made, own.stage, labels),
        seed_as=own.seed_as or name,
        changes=own.changes,
        kept=kept_of(config, own),
        variant=True,
        labels=labels,
        rankings=rankings,
        demonstrations=demonstrations,
    )


def _bound(own: Variant, called: Sequence[str], where: str) -> dict[str, str]:
    """Name of a model in the stage's code -> the product that the variant reads."""
    bound, start = {name: name for name in called}, START.get(own.stage, "sft")
    if own.start:
        if start not in called:
            raise ConfigError(
                f"the stage {own.stage.value} starts from no model",
                where=f"{where}.from",
                fix="leave it out",
            )
        bound[start] = own.start
    if own.reward_model:
        if "reward_model" not in called:
            more = "; reward=model reads one" if own.stage in ONLINE_STAGES else ""
            raise ConfigError(
                f"the stage {own.stage.value} reads no reward model in this run",
                where=f"{where}.reward_model",
                fix=f"leave it out{more}",
            )
        bound["reward_model"] = own.reward_model
    return bound


def _compared_with(own: Variant, settings: Config, where: str) -> dict[str, str]:
    """The product that the policy is compared with, where it is not the one that it starts from."""
    if not own.reference:
        return {}
    if reference_of(settings, own.stage) == TEACHER:
        return {TEACHER: own.reference}
    trains = own.stage in (*ONLINE_STAGES, StageName.dpo)
    if not (trains and RoleName.reference in stage_roles(settings, own.stage, False)):
        raise ConfigError(
            f"the stage {own.stage.value} compares the policy with no model",
            where=f"{where}.reference",
            fix="leave it out",
        )
    return {REFERENCE: own.reference}


def _ancestors(products: Iterable[str], before: Sequence[StageRun]) -> list[StageRun]:
    """The runs that products come from, in their order."""
    wanted = set(products)
    found: list[StageRun] = []
    for run in reversed(before):
        if run.product in wanted:
            found.insert(0, run)
            wanted |= set(run.reads)
    return found
