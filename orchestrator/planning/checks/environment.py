"""Checks of the environment: what cannot be combined with turns is refused, never ignored."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.batching.batch_sizes import PPO_STAGES
from orchestrator.config.environment import EnvironmentConfig, EnvironmentKind
from orchestrator.config.evaluation import JudgeKind
from orchestrator.config.reward import TextBridge
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.stage_graph import RANKING_STAGES, chooses_by_reward, labels
from orchestrator.planning.worker_specs import SLICES
from workers.environments.tools import needed_columns
from workers.errors import ConfigError
from workers.scorers.source import ENVIRONMENT

_START_SECONDS = 60.0  # of the process in which environments live, when it is replaced
_TALKS = (*PPO_STAGES, StageName.evaluate)
_ONE_TURN = (
    StageName.online_dpo, StageName.rejection_sampling, StageName.label, StageName.collect,
    StageName.overoptimization,
)  # fmt: skip


def check_environment(config: Config) -> None:
    """Check that everything that the run samples with an environment can have several turns.

    Raises:
        ConfigError: a stage, a setting or a reward cannot be combined with an environment, or its
            deadlines do not fit into a call.
    """
    environment = config.environment
    takers = [term.where for term in config.reward.each if term.kind == ENVIRONMENT]
    if takers and environment.kind is not EnvironmentKind.function:
        raise ConfigError(
            f"the reward is that of an environment, and environment.kind={environment.kind.value} "
            "gives none",
            where=takers[0],
            fix="set environment=function environment.factory=package.module:make, or another "
            "reward",
        )
    if not environment.on:
        return
    for key, is_set, why in _contradictions(config):
        if is_set:
            raise ConfigError(
                f"an environment cannot be combined with this yet: {why}",
                where=key,
                fix="turn it off, or set environment=none",
            )
    _check_deadline(config)
    _check_tokens(config)
    missing = {*needed_columns(environment.tools)} - {*config.data.keep_columns}
    if missing:
        raise ConfigError(
            f"a tool reads the column {min(missing)!r} of the prompt's row, which is not kept",
            where="environment.tools",
            fix=f"set data.keep_columns=[{min(missing)}]",
        )


def _contradictions(config: Config) -> Iterator[tuple[str, bool, str]]:
    """Key, whether it is set, and why it cannot be combined with an environment."""
    stages, algorithm, rollout = config.stage_names, config.algorithm, config.rollout
    one = next((stage for stage in stages if stage in _ONE_TURN), None)
    yield "stages", one is not None, f"{one.value if one else ''} samples single turns"
    ranked = any(stage in RANKING_STAGES and labels(config, stage) for stage in stages)
    yield "stages", ranked, "the rankings of this run are sampled in single turns"
    chooses = StageName.sft in stages and chooses_by_reward(config)
    yield "sft.keep_best", chooses, "the answers by which it chooses are single turns"
    if any(stage in PPO_STAGES for stage in stages):
        taught = not algorithm.estimator.needs_reward
        yield "algorithm.advantage", taught, "a teacher is imitated in single turns"
    yield "algorithm.staleness", algorithm.staleness > 0, "turns are sampled from one policy"
    yield "rollout.stream_sequences", rollout.stream_sequences > 0, "a batch comes as a whole"
    yield "rollout.overprovision", rollout.overprovision > 0, "all sequences are played to the end"
    separated = bool(config.reward.step_separator)
    yield "reward.step_separator", separated, "steps are those of a response of one turn"
    judged = config.evaluate.judge is JudgeKind.reward_model and StageName.evaluate in stages
    text = config.reward.bridge is TextBridge.text and (config.reward.needs.model or judged)
    yield (
        "reward.bridge",
        text,
        "a reward model of another tokenizer would read the last turn alone",
    )
    if StageName.evaluate in stages:
        settings = config.evaluate
        yield "evaluate.best_of", bool(settings.best_of), "its answers are single turns"
        yield "evaluate.few_shot", bool(settings.few_shot), "its answers are single turns"


def _check_deadline(config: Config) -> None:
    """Check that a call to a worker can hold one step in which everything is made again."""
    environment, most = config.environment, config.run.call_seconds
    left = most * (1 - 1 / SLICES) - _START_SECONDS
    longest = (environment.max_turns + 1) * environment.step_seconds
    if longest <= left:
        return
    raise ConfigError(
        f"an environment that is made again may take {longest:g} s for all its turns, and a call "
        f"to a worker, which ends after run.call_seconds={most:g}, leaves {max(0.0, left):g} s",
        where="environment.step_seconds",
        fix="lower it or environment.max_turns, or raise run.call_seconds",
    )


def _check_tokens(config: Config) -> None:
    most = config.rollout.max_response_tokens
    if config.environment.turn_tokens > most:
        raise ConfigError(
            f"a turn of {config.environment.turn_tokens:,} tokens is longer than all turns and "
            f"observations together, {most:,}",
            where="environment.turn_tokens",
            fix="lower it, or raise rollout.max_response_tokens",
        )


def environment_notes(config: Config) -> list[str]:
    """One sentence if no stage talks with the environment that is set; else none."""
    if not config.environment.on or any(stage in _TALKS for stage in config.stage_names):
        return []
    return ["environment: no stage of this run talks with it; ppo, ppo_ptx and evaluate do"]


def environment_facts(environment: EnvironmentConfig) -> list[str]:
    """What the plan says of it."""
    if not environment.on:
        return []
    tools = environment.kind is EnvironmentKind.tools
    who = ", ".join(environment.tools) if tools else environment.factory
    each = f" of up to {environment.turn_tokens:,} tokens" if environment.turn_tokens else ""
    return [
        f"{'tools' if tools else 'environment'} {who}: up to {environment.max_turns} turns{each}"
    ]
