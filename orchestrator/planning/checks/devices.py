"""Checks of devices and engines: whether the settings suit the hardware and each other."""

from __future__ import annotations

from pathlib import Path

from orchestrator.config.cluster import Accelerator, RoleName
from orchestrator.config.engines import Offload, Precision, RolloutEngine
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.training import OldLogprobs
from orchestrator.planning.placement import Layout
from orchestrator.results.summary import MODEL_ORDER
from workers.errors import ConfigError, ResourceError
from workers.model_folders.shape import read_shape

_SAME_TOLERANCE = 1e-3  # nats; largest tolerance that proves equal engine and trainer logprobs
_BF16_TOLERANCE = 1e-2  # nats; bf16 kernels of two libraries never agree more closely


def check_ahead(config: Config) -> None:
    """Check that settings for generation during training are only used with staleness.

    Raises:
        ConfigError: rollout.inflight_updates or rollout.join_running with staleness 0.
    """
    if config.algorithm.staleness:
        return
    for key in ("inflight_updates", "join_running"):
        if getattr(config.rollout, key):
            raise ConfigError(
                f"{key}=true, but with algorithm.staleness=0 no sequence is being generated "
                "when weights are sent or a batch is requested",
                where=f"rollout.{key}",
                fix=f"set algorithm.staleness=1, or rollout.{key}=false",
            )


def check_extra_engines(config: Config) -> None:
    """Check that engines can join and leave, if that is set.

    Raises:
        ConfigError: the cluster cannot grow, or engines share their GPUs with trainers.
    """
    engines, key = config.cluster.roles.rollout, "cluster.roles.rollout.max_workers"
    if engines.most == engines.workers:
        return
    if config.cluster.address == "local":
        raise ConfigError(
            f"max_workers={engines.max_workers}, but a local cluster has room for the reserved "
            f"{engines.workers} engine(s) only",
            where=key,
            fix="join a cluster by cluster.address=HOST:PORT, or raise "
            "cluster.roles.rollout.workers instead",
        )
    if config.rollout.sleep:
        raise ConfigError(
            "with rollout.sleep=true every engine takes turns with trainers on the same GPUs, and "
            "extra engines would have none to take turns with",
            where=key,
            fix="set rollout.sleep=false, or max_workers=0",
        )


def check_sharing(config: Config) -> None:
    """Check that engines and trainers can alternate in using GPU memory, if that is set.

    Raises:
        ConfigError: there is no GPU, they work at the same time, or memory cannot be released.
    """
    rests = config.trainer.rest_on_host
    if config.rollout.sleep or rests:
        _check_turns(config, "trainer.rest_on_host" if rests else "rollout.sleep")
    if rests:
        _check_rest(config)


def _check_turns(config: Config, key: str) -> None:
    if config.cluster.accelerator is not Accelerator.cuda:
        raise ConfigError(
            f"{key}=true on a CPU, where all roles share one memory and keep what they have",
            where=key,
            fix=f"set {key}=false, or use a cluster of GPUs (cluster=one_gpu)",
        )
    if config.rollout.engine is not RolloutEngine.vllm:
        raise ConfigError(
            f"only vLLM gives its memory away, the engine is {config.rollout.engine.value}",
            where=key,
            fix=f"use rollout.engine=vllm, or set {key}=false",
        )
    if config.algorithm.staleness:
        raise ConfigError(
            f"{key}=true, but with algorithm.staleness={config.algorithm.staleness} engines sample "
            "while the trainers work",
            where=key,
            fix=f"set algorithm.staleness=0, or {key}=false",
        )
    if config.rollout.stream_sequences:
        raise ConfigError(
            f"{key}=true, but with rollout.stream_sequences above 0 other roles work "
            "on the first sequences while engines sample the rest",
            where=key,
            fix=f"set rollout.stream_sequences=0, or {key}=false",
        )


def _check_rest(config: Config) -> None:
    trainer, key = config.trainer, "trainer.rest_on_host"
    if not config.rollout.sleep:
        raise ConfigError(
            "optimizer state is to make room for engines that never take it: their memory is fixed",
            where=key,
            fix=f"set rollout.sleep=true, or {key}=false",
        )
    if trainer.offload is not Offload.none:
        raise ConfigError(
            f"trainer.offload={trainer.offload.value} keeps the state in host memory anyway",
            where=key,
            fix=f"set {key}=false, or trainer.offload=none",
        )
    bf16 = trainer.precision is Precision.bf16
    roles = config.cluster.roles
    divided = max(roles.policy.workers, roles.critic.workers) > 1
    if divided and (trainer.zero_stage == 3 or (trainer.zero_stage == 1 and bf16)):
        raise ConfigError(
            f"deepspeed cannot move the optimizer's state at zero_stage={trainer.zero_stage} in "
            f"{trainer.precision.value}",
            where=key,
            fix=f"set trainer.zero_stage=2, or {key}=false",
        )


# Head sizes that the attention of vLLM 0.32 supports on a CPU. The engine itself would report an
# unsupported size only after pretraining.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def check_head_sizes(config: Config) -> None:
    """Check that the engines can serve the models that this run is given or trains.

    Raises:
        ConfigError: vLLM on a CPU does not support the head size.
        BrokenCheckpointError: a given folder has a config.json that does not parse.
    """
    if (
        config.cluster.accelerator is not Accelerator.cpu
        or config.rollout.engine is not RolloutEngine.vllm
    ):
        return
    made = {StageName.pretrain: config.model.pocket, StageName.pretrain_large: config.model.large}
    for stage, model in made.items():
        if stage in config.stages:
            _check_head_size(model.hidden_size // model.heads, f"the model of stage {stage.value}")
    served = [n for n in MODEL_ORDER if n != "teacher" or StageName.evaluate in config.stages]
    for name in served:
        folder = Path(getattr(config.model.checkpoints, name) or "/")
        if (folder / "config.json").is_file():
            _check_head_size(read_shape(folder).head_size, f"model.checkpoints.{name}")


def _check_head_size(size: int, where: str) -> None:
    if size not in CPU_HEAD_SIZES:
        raise ConfigError(
            f"attention heads of size {size}; vLLM on a CPU computes {CPU_HEAD_SIZES}",
            where=where,
            fix="choose hidden_size / heads among these, or rollout.engine=transformers",
        )


def check_devices(config: Config, layout: Layout) -> None:
    """Check that accelerator, GPUs per role and precision are compatible.

    Raises:
        ConfigError: they are not.
        ResourceError: a role has GPUs on a CPU cluster, or none on a GPU cluster.
    """
    cuda = config.cluster.accelerator is Accelerator.cuda
    for role in layout.roles:
        gpus = config.cluster.roles.of(role).gpus
        needs = config.reward.needs
        free = cuda and role is RoleName.reward and not (needs.model or needs.gpu)
        if cuda == (gpus > 0) or free:
            continue
        raise ResourceError(
            f"{role.value} workers take {gpus:g} GPUs on a {config.cluster.accelerator.value} "
            "cluster",
            where=f"cluster.roles.{role.value}.gpus",
            fix="give every role GPUs with cluster.accelerator=cuda, and none with cpu",
        )
    if RoleName.rollout in layout.roles:
        _check_engines(config)
        _check_engines_apart(config, layout)
    if {RoleName.rollout, RoleName.policy} <= set(layout.roles):
        _check_old_logprobs(config)


def _check_engines(config: Config) -> None:
    shards, gpus = config.rollout.tensor_parallel_size, config.cluster.roles.rollout.gpus
    if shards > 1 and config.rollout.engine is RolloutEngine.transformers:
        raise ConfigError(
            f"tensor_parallel_size={shards} with an engine that runs on one device",
            where="rollout.tensor_parallel_size",
            fix="set it to 1, or use rollout.engine=vllm",
        )
    if config.cluster.accelerator is Accelerator.cuda and shards > 1 and gpus != shards:
        raise ResourceError(
            f"an engine over {shards} GPUs is given {gpus:g}",
            where="cluster.roles.rollout.gpus",
            fix=f"set it to rollout.tensor_parallel_size={shards}",
        )
    bf16 = Precision.bf16 in (config.rollout.precision, config.trainer.precision)
    if bf16 and config.rollout.parity_tolerance < _BF16_TOLERANCE:
        raise ConfigError(
            f"parity_tolerance={config.rollout.parity_tolerance:g} nats cannot hold in bf16",
            where="rollout.parity_tolerance",
            fix="choose trainer=zero1_bf16 (zero2_bf16, zero3_bf16), which sets trainer, engines "
            "and 0.3, or fp32 in trainer.precision and rollout.precision",
        )


def _check_engines_apart(config: Config, layout: Layout) -> None:
    """Refuse vLLM engines that share a GPU with each other.

    They start at the same time, and each would count the other's memory as used by itself.
    """
    if config.rollout.engine is not RolloutEngine.vllm:
        return
    for share in (share for node in layout.nodes for share in node.shared):
        engines = sum(place.role is RoleName.rollout for place in share.places)
        if engines > 1:
            raise ResourceError(
                f"{engines} engines on one GPU: vLLM measures the free memory at its start, and "
                "counts what the other engine allocates as used by itself",
                where="cluster.roles.rollout.workers",
                fix="use at most one engine per GPU, with a higher "
                "rollout.max_concurrent_sequences",
            )


def _check_old_logprobs(config: Config) -> None:
    tolerance = config.rollout.parity_tolerance
    if config.algorithm.old_logprobs is OldLogprobs.rollout and config.algorithm.staleness:
        raise ConfigError(
            "sequences sampled ahead of training come from another version of the policy, so the "
            "engine's log-probabilities are not those of the policy before the update",
            where="algorithm.old_logprobs",
            fix="set algorithm.old_logprobs=trainer, or algorithm.staleness=0",
        )
    if config.algorithm.old_logprobs is OldLogprobs.rollout and tolerance > _SAME_TOLERANCE:
        raise ConfigError(
            "the engine's log-probabilities can replace the trainer's only if each sync shows "
            f"that they agree, and a tolerance of {tolerance:g} nats is too large for that",
            where="algorithm.old_logprobs",
            fix=f"set rollout.parity_tolerance={_SAME_TOLERANCE:g} or less (fp32), or "
            "algorithm.old_logprobs=trainer",
        )
