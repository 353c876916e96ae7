"""The runs of the stage label: whose rankings a stage run reads, and which prompts are new."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from orchestrator.batching.batch_sizes import ONLINE_STAGES
from orchestrator.config.run import StageName
from orchestrator.config.variants import Variant, nearest
from orchestrator.planning.runs.stage_run import StageRun
from orchestrator.planning.stage_graph import RANKING_STAGES
from workers.errors import ConfigError


def rankings_of(name: str, own: Variant, before: Sequence[StageRun]) -> tuple[str, ...]:
    """The runs of the stage label whose rankings a variant trains on.

    Without `rankings` those of the stage label itself, if it comes before.

    Raises:
        ConfigError: it names something else, or a stage run that trains on no rankings has it.
    """
    where = f"variants.{name}.rankings"
    made = [str(run.name) for run in before if run.stage is StageName.label]
    if own.rankings and own.stage not in RANKING_STAGES:
        raise ConfigError(
            f"the stage {own.stage.value} trains on no rankings", where=where, fix="leave it out"
        )
    for each in own.rankings:
        if each not in made:
            raise ConfigError(
                f"{name} trains on the rankings of {each!r}, and no run of the stage label before "
                "it has this name",
                where=where,
                fix=f"{nearest(each, made)}there are: {', '.join(made) or 'none'}",
            )
    if own.stage not in RANKING_STAGES:
        return ()
    return own.rankings or ((StageName.label.value,) if StageName.label.value in made else ())


def demonstrations_of(name: str, own: Variant, before: Sequence[StageRun]) -> tuple[str, ...]:
    """The runs of the stage constitution whose revisions a variant trains on.

    Without `demonstrations` those of the stage constitution itself, if it comes before.

    Raises:
        ConfigError: it names something else, or a stage run that is no SFT has it.
    """
    where, stage = f"variants.{name}.demonstrations", StageName.constitution
    made = [str(run.name) for run in before if run.stage is stage]
    if own.demonstrations and own.stage is not StageName.sft:
        raise ConfigError(
            f"the stage {own.stage.value} trains on no demonstrations", where=where,
            fix="leave it out",
        )  # fmt: skip
    for each in own.demonstrations:
        if each not in made:
            raise ConfigError(
                f"{name} trains on the revisions of {each!r}, and no run of the stage constitution "
                "before it has this name",
                where=where,
                fix=f"{nearest(each, made)}there are: {', '.join(made) or 'none'}",
            )
    if own.stage is not StageName.sft:
        return ()
    return own.demonstrations or ((stage.value,) if stage.value in made else ())


def check_answers(runs: Sequence[StageRun]) -> None:
    """Refuse answers of what writes none, and scores of what is no reward model.

    Raises:
        ConfigError: a run of the stage label names a reward model among those that answer, or
            has answers scored where the reward is no model.
    """
    models = {run.product for run in runs if run.stage is StageName.reward_model}
    for run in runs:
        if run.stage is StageName.constitution and run.config.constitution.model in {
            *models, "reward_model", "critic",
        }:  # fmt: skip
            raise ConfigError(
                f"{run.config.constitution.model} is a reward model, which writes no answers",
                where=f"{run.key('constitution')}.model",
                fix="name a model that was trained to answer, such as sft",
            )
        if run.stage is not StageName.label:
            continue
        where = run.key("label")
        wrong = [m for m in run.config.label.models if m in {*models, "reward_model", "critic"}]
        if wrong:
            raise ConfigError(
                f"{wrong[0]} is a reward model, which writes no answers",
                where=f"{where}.models",
                fix="name models that were trained to answer, such as sft or ppo",
            )
        if run.config.label.scored and not run.config.reward.needs.model:
            raise ConfigError(
                f"the reward is no model (reward.kind={run.config.reward.kind}), so none can "
                "score the answers before it is trained again",
                where=f"{where}.scored",
                fix="set it to false, or choose reward=model",
            )


def numbered(runs: Sequence[StageRun]) -> list[StageRun]:
    """The runs, each of the stage label with the first prompt that no earlier stage has asked."""
    found: list[StageRun] = []
    asked, labels = 0, list[str]()
    for run in runs:
        if run.stage is StageName.label:
            found.append(replace(run, first_prompt=asked, earlier_labels=tuple(labels)))
            labels.append(str(run.name))
            asked += run.config.label.prompts + run.config.label.heldout_prompts
            continue
        if run.stage is StageName.constitution:
            run = replace(run, first_prompt=asked)
            asked += run.config.constitution.prompts + run.config.constitution.heldout_prompts
        if run.labels:
            asked += run.config.reward_model.prompts + run.config.reward_model.heldout_prompts
        found.append(run)
    return found


def round_names(runs: Sequence[StageRun]) -> Iterator[tuple[str, str, str]]:
    """Label run, reward model and policy of each round; "" where a round has none.

    A reward model, or a policy without one, belongs to the newest rankings that it trains on.
    """
    for label in (run for run in runs if run.stage is StageName.label):
        own = [run for run in runs if run.rankings[-1:] == (label.name,)]
        models = [run for run in own if run.stage is StageName.reward_model]
        alone = [(label.name, "", run.product) for run in own if run not in models]
        taught = [(label.name, each.product, name) for each in models for name in _of(each, runs)]
        yield from taught + alone or [(str(label.name), "", "")]


def _of(model: StageRun, runs: Sequence[StageRun]) -> list[str]:
    """The policies that learn from a reward model; [""] if none does."""
    learns = [run for run in runs if run.product and run is not model]
    found = [run.product for run in learns if model.product in run.reads and _trains(run)]
    return found or [""]


def _trains(run: StageRun) -> bool:
    return run.stage in ONLINE_STAGES
