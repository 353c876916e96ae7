"""Checks of the stages: no duplicates, and every stage has its checkpoints and data."""

from __future__ import annotations

from orchestrator.batching.batch_sizes import ONLINE_STAGES
from orchestrator.config.data import DataSourceKind, all_sets, kinds
from orchestrator.config.evaluation import JudgeKind
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.training import Margin
from orchestrator.planning.runs.expand import compared, expand
from orchestrator.planning.runs.labels import check_answers
from orchestrator.planning.runs.stage_run import StageRun
from orchestrator.planning.stage_graph import _PRODUCTS
from orchestrator.process.program import invocation
from orchestrator.results.summary import MODEL_ORDER
from workers.data.tokenize.data_sets import SHORTHANDS, SetKind
from workers.errors import ConfigError

_SETS = {
    StageName.pretrain: (SetKind.pretraining,),
    StageName.sft: (SetKind.demonstrations,),
    StageName.label: (SetKind.prompts,),
    StageName.constitution: (SetKind.prompts,),
    # demonstrations set the reward model's bias
    StageName.reward_model: (SetKind.comparisons, SetKind.demonstrations),
    StageName.dpo: (SetKind.comparisons,),
    StageName.rejection_sampling: (SetKind.prompts,),
    StageName.ppo: (SetKind.prompts,),
    StageName.ppo_ptx: (SetKind.prompts, SetKind.pretraining),
    StageName.online_dpo: (SetKind.prompts,),
    StageName.collect: (SetKind.prompts,),
}


def check_stages(config: Config) -> None:
    """Check that each stage appears once and has its checkpoints and data sets.

    Raises:
        ConfigError: no stage, a duplicate stage, a missing checkpoint, or a missing data set.
    """
    if not config.stages:
        raise ConfigError(
            "the run has no stages",
            where="stages",
            fix="choose an experiment (+experiment=pocket), or set stages=[sft,ppo]",
        )
    names = [str(name) for name in config.stages]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"stages appear twice: {', '.join(twice)}", where="stages",
                          fix="name each stage once")  # fmt: skip
    made: set[str] = set()
    check_answers(runs := expand(config))
    for run in runs:
        for name in run.reads:
            if name not in made and not getattr(config.model.checkpoints, name, ""):
                raise _no_checkpoint(config, run, name)
        if run.stage is StageName.evaluate:
            _check_models(config, made)
            _check_judging_model(config, made)
        _check_files(run)
        made.add(run.product)


def _check_models(config: Config, made: set[str]) -> None:
    given = (name for name in MODEL_ORDER if getattr(config.model.checkpoints, name))
    if not made & {*compared(config)} and not any(given):
        raise ConfigError(
            "there is no model to evaluate",
            where="stages",
            fix=f"set model.checkpoints.NAME=DIR, NAME one of {', '.join(MODEL_ORDER)}, or put "
            "the stages that make them before evaluate",
        )


def _check_judging_model(config: Config, made: set[str]) -> None:
    settings = config.evaluate
    given = settings.judge_checkpoint or config.model.checkpoints.reward_model
    if settings.judge is JudgeKind.reward_model and not given and "reward_model" not in made:
        raise ConfigError(
            "the judge is a reward model, but none is given and no earlier stage trains one",
            where="evaluate.judge",
            fix="set evaluate.judge_checkpoint=DIR, or choose another judge",
        )


def _no_checkpoint(config: Config, run: StageRun, name: str) -> ConfigError:
    if name == "teacher":
        return ConfigError(
            f"algorithm.advantage={run.config.algorithm.advantage} learns from a teacher, and none "
            "is given",
            where="model.checkpoints.teacher",
            fix="name the folder of a model with the student's tokenizer; a variant may name a "
            "model of the run (variants.NAME.reference)",
        )
    if name == "gold":
        return ConfigError(
            f"overoptimization.gold=reward_model, and the stage {run.name} is given none",
            where="model.checkpoints.gold",
            fix="name the folder of a reward model",
        )
    maker = next((each for each, made in _PRODUCTS.items() if made == name), None)
    if maker is None:
        return ConfigError(
            f"the stage {run.name} starts from a checkpoint that is not given",
            where=f"model.checkpoints.{name}",
            fix=f"name a folder; `{invocation('model', 'orchestrator.new_model')}` makes one from "
            "scratch",
        )
    late = "later " if maker in config.stages else ""
    return ConfigError(
        f"the stage {run.name} needs the checkpoint {name!r}, which is not given"
        + (f" and is made by a {late}stage" if late else " and made by no stage"),
        where="stages",
        fix=f"set model.checkpoints.{name}=DIR, or put the stage {maker.value} before {run.name}",
    )


def _check_files(run: StageRun) -> None:
    config, stage = run.config, run.stage
    if config.data.source is DataSourceKind.pocket:
        likert = stage is StageName.reward_model and config.reward_model.margin is Margin.likert
        if likert and not run.rankings:
            raise ConfigError(
                "the pocket world's labeler ranks completions and rates none",
                where="reward_model.margin",
                fix="set it to ranks or none, or use data=files with a column likert",
            )
        if stage is StageName.sft and config.sft.epochs and not run.demonstrations:
            raise ConfigError(
                "the pocket world's demonstrations have no end, so there is no pass over them",
                where="sft.epochs",
                fix="set sft.steps and leave sft.epochs at 0, or use data=files",
            )
        _check_unread(config)
        return
    if stage is StageName.pretrain_large:
        raise ConfigError(
            "the stage pretrain_large makes a model of the pocket world from scratch",
            where="data.source",
            fix="use data=pocket",
        )
    if stage is StageName.evaluate and config.evaluate.few_shot:
        raise ConfigError(
            "base models are prompted with demonstrations of the pocket world, and files hold none "
            "in a form that they could continue",
            where="evaluate.few_shot",
            fix="set it to 0",
        )
    given = kinds(config.data)
    needed = _needed(run)
    # Without evaluation prompts, held-out answers are those to a part of the prompts.
    heldout = stage in (StageName.evaluate, StageName.overoptimization)
    if heldout and SetKind.prompts not in given:
        needed = (SetKind.evaluation_prompts,)
    for kind in needed:
        if kind not in given:
            name = next(name for name, each in SHORTHANDS.items() if each is kind)
            mixes = stage is StageName.sft and kind is SetKind.pretraining
            raise ConfigError(
                f"the stage {stage.value} reads {kind.value}, and no data set holds any",
                where=f"data.files.{name}",
                fix=f"set data.files.{name}=FILE, or data.sets.NAME.kind={kind.value} and "
                "data.sets.NAME.path (docs/data.md lists the formats)"
                + ("; or sft.pretraining_fraction=0" if mixes else ""),
            )


def _needed(run: StageRun) -> tuple[SetKind, ...]:
    """Kinds of data sets that a stage requires; not for evaluate, which accepts alternatives."""
    config, stage = run.config, run.stage
    needed = _SETS.get(stage, ())
    if run.demonstrations:
        needed = tuple(kind for kind in needed if kind is not SetKind.demonstrations)
    if run.rankings:
        needed = tuple(kind for kind in needed if kind is not SetKind.comparisons)
    elif SetKind.comparisons in needed and config.samples_rankings:
        needed = tuple(SetKind.prompts if each is SetKind.comparisons else each for each in needed)
    if stage is StageName.sft and config.sft.pretraining_fraction > 0.0:
        needed = (*needed, SetKind.pretraining)
    return needed


def unused_sets(config: Config) -> list[str]:
    """One sentence per data set that is given but used by no stage of the run."""
    given = kinds(config.data)
    used: set[SetKind] = set()
    for run in expand(config):
        used.update(_needed(run))
        if run.stage in ONLINE_STAGES:  # the probes of weight syncs
            used.add(SetKind.evaluation_prompts)
        held_out = SetKind.evaluation_prompts
        if run.stage in (StageName.evaluate, StageName.overoptimization):
            used.add(held_out if held_out in given else SetKind.prompts)
        if run.stage is StageName.evaluate:
            used.add(SetKind.pretraining)
    return [
        f"{each.key} is read, but no stage of this run uses {each.kind.value.replace('_', ' ')}"
        for each in all_sets(config.data)
        if each.kind not in used
    ]


def _check_unread(config: Config) -> None:
    for each in all_sets(config.data):
        raise ConfigError(
            "a data set is given, but the run reads the pocket world",
            where=each.key,
            fix="add data=files, or leave the set out",
        )
