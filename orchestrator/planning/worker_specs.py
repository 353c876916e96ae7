"""Conversion of the configuration to the specifications that set up the workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.batching.batch_sizes import fitting_warmup
from orchestrator.config.by_name import from_sections
from orchestrator.config.chat_model import ChatModelConfig
from orchestrator.config.cluster import Accelerator, ClusterConfig, RoleName, RoleResources
from orchestrator.config.engines import OptimizerConfig, Packing, Precision
from orchestrator.config.environment import EnvironmentConfig
from orchestrator.config.model import LoraConfig
from orchestrator.config.reward import Combine, RewardConfig
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.seeds import derive
from orchestrator.config.training import OnNonFinite
from orchestrator.planning.threads import engine_threads, threads_of
from orchestrator.process.secrets import secret
from workers.model_folders.shape import may_pack
from workers.process.openmp import openmp
from workers.records.specs import (
    Device,
    Dtype,
    EnvironmentSpec,
    FrozenModelSpec,
    GroupSpec,
    LoraSpec,
    OptimizerSpec,
    PartSpec,
    Rest,
    RewardSpec,
    RolloutSpec,
    TermSpec,
    TrainModelSpec,
)
from workers.roles.rollout import engine_environment
from workers.scorers.source import ENVIRONMENT, MODEL, WHERE

if TYPE_CHECKING:  # brings an HTTP client
    from workers.judging.interview import EndpointSpec

SLICES = 4  # a call to a worker of an environment begins no step after this part of its deadline


def dtype(precision: Precision) -> Dtype:
    """The torch name of a precision."""
    return "bfloat16" if precision is Precision.bf16 else "float32"


def device(config: Config) -> Device:
    """The torch device type of all roles."""
    return "cuda" if config.cluster.accelerator is Accelerator.cuda else "cpu"


def rollout_spec(
    config: Config, checkpoint: str, eos_token_id: int, vocabulary: int = 0
) -> RolloutSpec:
    """Specification of one generation engine that loads `checkpoint`."""
    rollout = config.rollout
    return from_sections(
        RolloutSpec,
        rollout,
        config.cluster.roles.rollout,
        config.run,
        checkpoint=checkpoint,
        threads=engine_threads(config),
        dtype=dtype(rollout.precision),
        device=device(config),
        kv_cache_bytes=rollout.kv_cache_mib << 20,
        seed=derive(config.seed, "engine"),
        eos_token_id=eos_token_id,
        interruptible=rollout.inflight_updates,
        vocabulary=vocabulary,
        transport_folder=str(Path.cwd()),
    )


def rollout_environment(config: Config) -> dict[str, str]:
    """Environment variables that a rollout process needs before it imports its engine."""
    return engine_environment(rollout_spec(config, "", 0))


def role_environment(config: ClusterConfig, role: RoleName) -> dict[str, str]:
    """Environment variables of a role's process.

    Without OMP_NUM_THREADS each process uses every core. Threads must wait passively: once another
    process needs a core too, a spinning thread occupies the core of the sibling that it waits for,
    which lowers the throughput by a factor of 6 to 10.
    """
    alone = {"REHEARSAL_HOST": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    return {
        **(alone if config.address == "local" else {}),
        **openmp(config.roles.of(role).threads or 1),  # models are loaded with their own number
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "TQDM_DISABLE": "1",
        "DS_ACCELERATOR": config.accelerator.value,
    }


def group_spec(config: Config, role: RoleResources) -> GroupSpec:
    """Settings of a trainer process that apply to all models it trains."""
    return from_sections(
        GroupSpec,
        config.trainer,
        config.run,
        threads=role.threads or 1,  # until a model is loaded
        dtype=dtype(config.trainer.precision),
        device=device(config),
        weight_bucket_bytes=config.trainer.weight_bucket_mib << 20,
        seed=derive(config.seed, "trainer"),
        skip_non_finite=config.algorithm.on_non_finite is OnNonFinite.skip,
        rest=_rest(config),
        transport_folder=str(Path.cwd()),
    )


def _rest(config: Config) -> Rest:
    if config.trainer.rest_on_host:
        return "state"
    return "cache" if config.rollout.sleep else "none"


def optimizer_spec(optimizer: OptimizerConfig, total_steps: int) -> OptimizerSpec:
    """AdamW over `total_steps` optimizer steps; a warm-up longer than these is shortened."""
    return from_sections(
        OptimizerSpec,
        optimizer,
        betas=(optimizer.beta1, optimizer.beta2),
        warmup_steps=fitting_warmup(optimizer.warmup_steps, total_steps),
        total_steps=total_steps,
    )


def packed(config: Config, checkpoint: str) -> bool:
    """Whether the sequences of a model are packed."""
    may = may_pack(Path(checkpoint), config.model.attention.value)
    return config.trainer.packing is Packing.auto and may


def train_spec(
    config: Config,
    checkpoint: str,
    optimizer: OptimizerConfig,
    total_steps: int,
    *,
    threads: int,
    head: str = "keep",
    ema_decay: float = 0.0,
    dropout: float | None = None,
    whole: bool = False,
    vocabulary: int = 0,
    estimator: PartSpec | None = None,
    policy_loss: PartSpec | None = None,
) -> TrainModelSpec:
    """A model to train from `checkpoint`; `whole` trains all weights, without adapters."""
    assert head in ("keep", "random", "zero")
    return from_sections(
        TrainModelSpec,
        config.model,
        checkpoint=checkpoint,
        threads=threads,
        optimizer=optimizer_spec(optimizer, total_steps),
        packed=packed(config, checkpoint),
        logits_bytes=config.trainer.logits_mib << 20,
        ema_decay=ema_decay,
        head=head,
        lora=None if whole else lora_spec(config.model.lora),
        freeze=() if whole else tuple(config.model.freeze),
        dropout=dropout,
        vocabulary=vocabulary,
        estimator=estimator,
        policy_loss=policy_loss,
    )


def lora_spec(lora: LoraConfig) -> LoraSpec | None:
    """Adapters, or None where all weights are trained."""
    return from_sections(LoraSpec, lora) if lora.rank else None


def frozen_spec(
    config: Config, checkpoint: str, stage: StageName, role: RoleName, vocabulary: int = 0
) -> FrozenModelSpec:
    """A frozen model, which only scores."""
    return from_sections(
        FrozenModelSpec,
        config.model,
        config.reward,
        checkpoint=checkpoint,
        threads=threads_of(config, stage, role),
        dtype=dtype(config.trainer.precision),
        device=device(config),
        packed=packed(config, checkpoint),
        logits_bytes=config.trainer.logits_mib << 20,
        vocabulary=vocabulary,
    )


def judge_spec(config: Config, judge_checkpoint: str, policy_checkpoint: str) -> RewardSpec:
    """A reward model as judge of the evaluation, independent of PPO's reward."""
    reward = replace(config.reward, kind=MODEL, settings={}, terms={})
    model = frozen_spec(config, judge_checkpoint, StageName.evaluate, RoleName.reward)
    return RewardSpec(_terms(reward), reward.folder, policy_checkpoint, model)


def reward_spec(config: Config, reward_checkpoint: str, policy_checkpoint: str) -> RewardSpec:
    """The reward of PPO; `reward_checkpoint` is "" if its source needs no model."""
    reward, needs, role = config.reward, config.reward.needs, RoleName.reward
    model = frozen_spec(config, reward_checkpoint, StageName.ppo, role) if needs.model else None
    return RewardSpec(
        terms=_terms(reward),
        folder=reward.folder,
        policy_checkpoint=policy_checkpoint,
        model=model,
        secrets={name: secret(name, WHERE) for name in needs.secrets},
        normalised=reward.combine is Combine.normalised,
        overlaps=needs.waits,
        step_separator=reward.step_separator,
    )


def environment_spec(
    config: Config, environment: EnvironmentConfig, policy_checkpoint: str
) -> EnvironmentSpec:
    """What answers the policy between its turns; `environment` is that of the policy's stage."""
    return from_sections(
        EnvironmentSpec,
        environment,
        config.data,
        folder=str(Path.cwd()),
        tokenizer=policy_checkpoint,
        slice_seconds=config.run.call_seconds / SLICES,
        rewarded=any(term.kind == ENVIRONMENT for term in config.reward.each),
    )


def _terms(reward: RewardConfig) -> tuple[TermSpec, ...]:
    return tuple(TermSpec(term.kind, term.values(), term.name, term.weight) for term in reward.each)


def endpoint_spec(config: Config, key: str) -> EndpointSpec:
    """The chat model as judge; `key` is the secret itself and is passed to nothing else."""
    from workers.judging.interview import EndpointSpec

    section = config.evaluate.endpoint
    return from_sections(EndpointSpec, section, key=key, where="evaluate.endpoint", role="judge")


def chat_spec(settings: ChatModelConfig, where: str, role: str) -> EndpointSpec:
    """A chat model that answers other questions than those of the evaluation.

    Args:
        settings: Its section.
        where: The section's key.
        role: What errors call the model.

    Raises:
        ConfigError: its key is not in the environment.
    """
    from workers.judging.interview import EndpointSpec

    variable = settings.key_variable
    none = ", or set the key to '' for an endpoint without keys"
    key = secret(variable, f"{where}.key_variable", none) if variable else ""
    return from_sections(EndpointSpec, settings, key=key, instruction="", where=where, role=role)
