"""Choice of the critic's initial model, and checks of all models that get a scalar head.

A reward model and a critic may differ from the policy in family and size. The critic reads the
policy's token ids, so it can only start from a model that shares the policy's tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.batching.batch_sizes import ONLINE_STAGES, PPO_STAGES
from orchestrator.config.cluster import RoleName
from orchestrator.config.data import DataSourceKind
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.training import CriticInit
from orchestrator.planning.model_sizes import ModelSize, checkpoint_size
from orchestrator.planning.stage_graph import any_rewarded
from workers.errors import BatchArithmeticError, TokenizerMismatchError
from workers.model_folders.shape import read_config, read_shape, require_scalar_class


@dataclass(frozen=True, slots=True)
class CriticStart:
    """The initial model of the critic."""

    checkpoint: Literal["critic", "reward_model", "sft"]
    head: Literal["keep", "zero"]
    note: str = ""  # shown in the plan if the critic does not start from the reward model as usual


def critic_start(config: Config, folders: Mapping[str, str]) -> CriticStart:
    """Where the critic starts: `critic` if given, else the reward model, else the SFT model.

    The reward model is not used if `algorithm.critic_init` excludes it, or if its tokenizer differs
    from the policy's (reward.bridge=text): the policy's token ids would mean other words to it.

    Args:
        config: The run.
        folders: Known checkpoints by name; "" or absent = does not exist yet.

    Raises:
        BrokenCheckpointError: a folder has no readable tokenizer.
    """
    if folders.get("critic"):
        head = "keep" if has_head(Path(folders["critic"])) else "zero"
        return CriticStart(
            "critic", head, f"the critic starts from its own checkpoint, head {head}"
        )
    if not config.reward.needs.model:
        return CriticStart("sft", "zero")
    if config.algorithm.critic_init is CriticInit.sft:
        return CriticStart("sft", "zero", "the critic starts from the SFT model, head zero")
    policies = [folders[name] for name in ("sft", "base", "initial") if folders.get(name)]
    policy, reward = next(iter(policies), ""), folders.get("reward_model")
    if config.reward.needs.text and policy and reward:
        from workers.data.tokenize.fingerprint import tokenizer_fingerprint
        from workers.data.tokenize.tokenizers import load_tokenizer

        mine, theirs = (tokenizer_fingerprint(load_tokenizer(f)) for f in (policy, reward))
        if mine != theirs:
            return CriticStart(
                "sft",
                "zero",
                "the critic starts from the SFT model with a head of zero: the reward model has "
                "another tokenizer",
            )
    return CriticStart("reward_model", "keep")


def has_head(folder: Path) -> bool:
    """Whether the model of the folder has a scalar head, according to config.json."""
    names = read_config(folder).get("architectures")
    return isinstance(names, list) and any(
        str(name).endswith(("ForTokenClassification", "ForSequenceClassification"))
        for name in names
    )


def plan_critic(config: Config) -> CriticStart | None:
    """Where the critic of the run's PPO stages will start; None if they have none."""
    ppo = any(stage in PPO_STAGES for stage in config.stages)
    if not (ppo and config.algorithm.estimator.needs_values):
        return None
    given = config.model.checkpoints
    names = ("critic", "reward_model", "sft", "base", "initial")
    folders = {name: getattr(given, name) for name in names}
    if StageName.reward_model in config.stages:
        folders["reward_model"] = ""  # trained from the SFT model, whose tokenizer it keeps
    known = {n: f for n, f in folders.items() if f and (Path(f) / "config.json").is_file()}
    return critic_start(config, known)


def role_sizes(
    config: Config, policy: ModelSize, reference: ModelSize | None = None
) -> dict[RoleName, ModelSize | None]:
    """The largest model that each role loads; None if there is none or it cannot be read yet.

    The reference role also measures the evaluated models, of which the teacher is one.

    Args:
        config: The run.
        policy: Size of the policy.
        reference: Size of what a variant compares its policy with, if it is another one.
    """
    # The critic's trainers train the reward model, starting from the SFT model.
    made = StageName.reward_model in config.stages
    given = config.model.checkpoints
    reward = policy if made else checkpoint_size(Path(given.reward_model or "/"))
    if not config.reward.needs.model:
        reward = None
    if config.gold_model and (gold := checkpoint_size(Path(given.gold or "/"))) is not None:
        reward = max(filter(None, (reward, gold)), key=lambda size: size.parameters)
    critic, start = policy if made else None, plan_critic(config)
    if start is not None:
        starts = {"critic": checkpoint_size(Path(given.critic or "/")), "reward_model": reward}
        sizes = (critic, starts.get(start.checkpoint, policy))
        critic = max((s for s in sizes if s), key=lambda size: size.parameters, default=None)
    teacher = checkpoint_size(Path(given.teacher or "/"))
    held = max((s for s in (policy, teacher, reference) if s), key=lambda size: size.parameters)
    return dict.fromkeys(RoleName, policy) | {
        RoleName.reward: reward,
        RoleName.reference: held,
        RoleName.critic: critic,
        RoleName.environment: None,
    }


def check_backbones(config: Config, policy: ModelSize | None, reference: str = "") -> None:
    """Check that the given models support a scalar head and every sequence of the policy.

    A teacher or another reference needs no head.

    Args:
        config: The run.
        policy: Size of the policy, if it is known already.
        reference: Name of what a variant compares its policy with; "" = as its stage does.

    Raises:
        ConfigError: the model family has no token-classification class.
        BatchArithmeticError: the model has fewer positions than a sequence may have tokens.
        TokenizerMismatchError: the model's vocabulary is smaller than the policy's.
    """
    rollout = config.rollout
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    taught = not reference and _learns_from_teacher(config)
    compared = ["teacher"] if taught else [reference] if reference else []
    for name, reads_ids in (*_carriers(config), *((name, True) for name in compared)):
        folder = Path(getattr(config.model.checkpoints, name, "") or "/")
        if not (folder / "config.json").is_file():
            continue  # a stage of this run trains it, or loading it reports that it is missing
        where = f"model.checkpoints.{name}"
        if name not in compared:
            require_scalar_class(read_shape(folder).family, where)
        size = checkpoint_size(folder)
        if not reads_ids or size is None:
            continue
        if size.positions is not None and longest > size.positions:
            raise BatchArithmeticError(
                f"sequences of up to {longest} tokens; this model has {size.positions} positions",
                where=where,
                fix="lower rollout.max_prompt_tokens or rollout.max_response_tokens",
            )
        if policy is not None and size.vocabulary < policy.vocabulary:
            raise TokenizerMismatchError(
                f"the policy samples from {policy.vocabulary} token ids, this model knows "
                f"{size.vocabulary}",
                where=where,
                fix="give a model with the policy's tokenizer"
                + ("" if name in compared else ", or set reward.bridge=text"),
            )


def _learns_from_teacher(config: Config) -> bool:
    ppo = any(stage in PPO_STAGES for stage in config.stages)
    return ppo and config.algorithm.estimator.needs_teacher


def _carriers(config: Config) -> Iterator[tuple[str, bool]]:
    """Names of given checkpoints that get a scalar head, and whether they read policy tokens."""
    made = StageName.reward_model in config.stages
    if made:
        yield _origin(config), True
    if not any(stage in ONLINE_STAGES for stage in config.stages):
        return
    start = plan_critic(config)
    origin = start.checkpoint if start is not None else ""
    if origin and (origin != "reward_model" or not made):
        yield _origin(config) if origin == "sft" else origin, True
    if any_rewarded(config) and config.reward.needs.model and origin != "reward_model":
        yield "reward_model", not config.reward.needs.text


def _origin(config: Config) -> str:
    """The given checkpoint whose architecture the SFT model has; "" if trained from scratch."""
    stages = config.stages
    if StageName.sft not in stages:
        return "sft"
    if StageName.pretrain not in stages:
        return "base"
    return "" if config.data.source is DataSourceKind.pocket else "initial"
