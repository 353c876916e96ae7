"""Checks across groups of the configuration: what one group alone cannot see."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.arithmetic import PPO_STAGES
from orchestrator.config import (
    Accelerator,
    Config,
    DataSourceKind,
    EndpointConfig,
    JudgeKind,
    Offload,
    OldLogprobs,
    Precision,
    RewardKind,
    RoleName,
    RolloutEngine,
    StageName,
    TextBridge,
    Transport,
)
from orchestrator.data_sets import all_sets, kinds
from orchestrator.placement import Layout
from orchestrator.sizes import ModelSize, sequences_in_cache
from orchestrator.summary import MODEL_ORDER
from workers.data.sets import SHORTHANDS, SetKind
from workers.errors import BatchArithmeticError, ConfigError, ResourceError
from workers.model_shape import read_shape
from workers.user_calls import Patience
from workers.user_code import split_path

_PRODUCTS = {
    StageName.pretrain: "base",
    StageName.sft: "sft",
    StageName.reward_model: "reward_model",
    StageName.ppo: "ppo",
    StageName.ppo_ptx: "ppo_ptx",
    StageName.pretrain_large: "large",
}
_SETS = {
    StageName.pretrain: (SetKind.pretraining,),
    StageName.sft: (SetKind.demonstrations,),
    # demonstrations set the zero of the reward
    StageName.reward_model: (SetKind.comparisons, SetKind.demonstrations),
    StageName.ppo: (SetKind.prompts,),
    StageName.ppo_ptx: (SetKind.prompts, SetKind.pretraining),
}
_SAME_TOLERANCE = 1e-3  # nats; above it log-probabilities of engine and trainer are not the same
_BF16_TOLERANCE = 1e-2  # nats; below it bf16 kernels of two libraries never agree


def product(stage: StageName) -> str:
    """The name of the checkpoint that a stage makes, or ""."""
    return _PRODUCTS.get(stage, "")


def inputs(config: Config, stage: StageName) -> tuple[str, ...]:
    """The names of the checkpoints that a stage starts from."""
    pocket = config.data.source is DataSourceKind.pocket
    if stage is StageName.pretrain:
        return () if pocket else ("initial",)
    if stage is StageName.sft:
        return ("base",)
    if stage is StageName.reward_model:
        sampled_from_base = pocket and config.reward_model.base_fraction > 0
        return ("sft", "base") if sampled_from_base else ("sft",)
    if stage in PPO_STAGES:
        return ("sft", "reward_model") if config.reward.kind is RewardKind.model else ("sft",)
    return ()


def models_read(config: Config, stage: str, finished: Collection[str]) -> set[str]:
    """The names of the models that a run still reads.

    Args:
        config: The run.
        stage: That it is in.
        finished: The stages that are over.
    """
    left = [each for each in StageName if each in config.stages or each.value == stage]
    left = [each for each in left if each.value not in finished]
    names = {name for each in left for name in inputs(config, each)}
    if StageName.evaluate in left:
        names |= {*_PRODUCTS.values()}
    return names | {f"{product(each)}_initial" for each in left if each.value == stage}


def stage_roles(config: Config, stage: StageName) -> tuple[RoleName, ...]:
    """The role groups that a stage calls."""
    if stage in PPO_STAGES:
        return tuple(RoleName)
    pocket = config.data.source is DataSourceKind.pocket
    if stage is StageName.reward_model:
        return (RoleName.rollout, RoleName.critic) if pocket else (RoleName.critic,)
    if stage is StageName.evaluate:
        judge = config.evaluate.judge
        scored = judge is JudgeKind.reward_model or (judge is JudgeKind.auto and not pocket)
        return (RoleName.rollout, *((RoleName.reward,) if scored else ()), RoleName.reference)
    return (RoleName.policy,)


def check_stages(config: Config) -> None:
    """Every stage once, and each finds its checkpoints and files.

    Raises:
        ConfigError: no stage, a stage twice, a missing checkpoint, or a missing file.
    """
    if not config.stages:
        raise ConfigError(
            "the run has no stages",
            where="stages",
            mend="choose an experiment (+experiment=pocket), or set stages=[sft,ppo]",
        )
    names = [stage.value for stage in config.stages]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"stages appear twice: {', '.join(twice)}", where="stages",
                          mend="name each stage once")  # fmt: skip
    made: set[str] = set()
    for stage in config.stages:
        for name in inputs(config, stage):
            if name not in made and not getattr(config.model.checkpoints, name):
                raise _no_checkpoint(config, stage, name)
        if stage is StageName.evaluate:
            _check_models(config, made)
            _check_judging_model(config, made)
        _check_files(config, stage)
        made.add(product(stage))


def check_ahead(config: Config) -> None:
    """What happens to sequences that are under way during training needs some that are.

    Raises:
        ConfigError: what is of use ahead of training only, without staleness.
    """
    if config.algorithm.staleness:
        return
    for key in ("inflight_updates", "join_running"):
        if getattr(config.rollout, key):
            raise ConfigError(
                f"{key}=true, but with algorithm.staleness=0 no sequence is under way when weights "
                "are sent, and none when a batch is asked for",
                where=f"rollout.{key}",
                mend=f"set algorithm.staleness=1, or rollout.{key}=false",
            )


def check_sharing(config: Config) -> None:
    """Engines and trainers can take turns with the memory of their GPUs, where they shall.

    Raises:
        ConfigError: there is no GPU, no turn, or no way to give memory away.
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
            mend=f"set {key}=false, or use a cluster of GPUs (cluster=one_gpu)",
        )
    if config.rollout.engine is not RolloutEngine.vllm:
        raise ConfigError(
            f"only vLLM gives its memory away, the engine is {config.rollout.engine.value}",
            where=key,
            mend=f"use rollout.engine=vllm, or set {key}=false",
        )
    if config.algorithm.staleness:
        raise ConfigError(
            f"{key}=true, but with algorithm.staleness={config.algorithm.staleness} engines sample "
            "while the trainers work",
            where=key,
            mend=f"set algorithm.staleness=0, or {key}=false",
        )
    if config.rollout.stream_sequences:
        raise ConfigError(
            f"{key}=true, but with rollout.stream_sequences above 0 other roles work "
            "on the first sequences while engines sample the rest",
            where=key,
            mend=f"set rollout.stream_sequences=0, or {key}=false",
        )


def _check_rest(config: Config) -> None:
    trainer, key = config.trainer, "trainer.rest_on_host"
    if not config.rollout.sleep:
        raise ConfigError(
            "optimizer state is to make room for engines that never take it: their memory is fixed",
            where=key,
            mend=f"set rollout.sleep=true, or {key}=false",
        )
    if trainer.offload is not Offload.none:
        raise ConfigError(
            f"trainer.offload={trainer.offload.value} keeps the state in host memory anyway",
            where=key,
            mend=f"set {key}=false, or trainer.offload=none",
        )
    bf16 = trainer.precision is Precision.bf16
    if trainer.zero_stage == 3 or (trainer.zero_stage == 1 and bf16):
        raise ConfigError(
            f"deepspeed cannot move the optimizer's state at zero_stage={trainer.zero_stage} in "
            f"{trainer.precision.value}",
            where=key,
            mend=f"set trainer.zero_stage=2, or {key}=false",
        )


def _check_models(config: Config, made: set[str]) -> None:
    if not any(name in made or getattr(config.model.checkpoints, name) for name in MODEL_ORDER):
        raise ConfigError(
            "there is no model to evaluate",
            where="stages",
            mend=f"set model.checkpoints.NAME=DIR, NAME one of {', '.join(MODEL_ORDER)}, or put "
            "the stages that make them before evaluate",
        )


def _check_judging_model(config: Config, made: set[str]) -> None:
    settings = config.evaluate
    given = settings.judge_checkpoint or config.model.checkpoints.reward_model
    if settings.judge is JudgeKind.reward_model and not given and "reward_model" not in made:
        raise ConfigError(
            "a reward model shall judge, but none is given and none is made before evaluate",
            where="evaluate.judge",
            mend="set evaluate.judge_checkpoint=DIR, or choose another judge",
        )


def _no_checkpoint(config: Config, stage: StageName, name: str) -> ConfigError:
    maker = next((each for each, made in _PRODUCTS.items() if made == name), None)
    if maker is None:
        return ConfigError(
            f"the stage {stage.value} starts from a checkpoint that is not given",
            where=f"model.checkpoints.{name}",
            mend="name a folder; `python -m orchestrator.new_model` makes one from scratch",
        )
    late = "later " if maker in config.stages else ""
    return ConfigError(
        f"the stage {stage.value} needs the checkpoint {name!r}, which is not given"
        + (f" and is made by a {late}stage" if late else " and made by no stage"),
        where="stages",
        mend=f"set model.checkpoints.{name}=DIR, or put the stage {maker.value} before "
        f"{stage.value}",
    )


def _check_files(config: Config, stage: StageName) -> None:
    if config.data.source is DataSourceKind.pocket:
        if stage is StageName.sft and config.sft.epochs:
            raise ConfigError(
                "the pocket world's demonstrations have no end, so there is no pass over them",
                where="sft.epochs",
                mend="set sft.steps and leave sft.epochs at 0, or use data=files",
            )
        _check_unread(config)
        return
    if stage is StageName.pretrain_large:
        raise ConfigError(
            "the stage pretrain_large makes a model of the pocket world from scratch",
            where="data.source",
            mend="use data=pocket",
        )
    given = kinds(config.data)
    needed = _needed(config, stage)
    if stage is StageName.evaluate and SetKind.prompts not in given:  # else a part is held out
        needed = (SetKind.evaluation_prompts,)
    for kind in needed:
        if kind not in given:
            name = next(name for name, each in SHORTHANDS.items() if each is kind)
            mixes = stage is StageName.sft and kind is SetKind.pretraining
            raise ConfigError(
                f"the stage {stage.value} reads {kind.value}, and no data set holds any",
                where=f"data.files.{name}",
                mend=f"set data.files.{name}=FILE, or data.sets.NAME.kind={kind.value} and "
                "data.sets.NAME.path (docs/data.md lists the formats)"
                + ("; or sft.pretraining_fraction=0" if mixes else ""),
            )


def _needed(config: Config, stage: StageName) -> tuple[SetKind, ...]:
    """Kinds of sets without which a stage cannot run; those of evaluate stand for each other."""
    needed = _SETS.get(stage, ())
    if stage is StageName.sft and config.sft.pretraining_fraction > 0.0:
        needed = (*needed, SetKind.pretraining)
    return needed


def unused_sets(config: Config) -> list[str]:
    """A sentence on each data set that is given, but that no stage of the run uses."""
    given = kinds(config.data)
    used: set[SetKind] = set()
    for stage in config.stages:
        used.update(_needed(config, stage))
        if stage in PPO_STAGES:  # the probes of weight syncs
            used.add(SetKind.evaluation_prompts)
        if stage is StageName.evaluate:
            held_out = SetKind.evaluation_prompts
            used |= {held_out if held_out in given else SetKind.prompts, SetKind.pretraining}
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
            mend="add data=files, or leave the set out",
        )


def check_lengths(config: Config, size: ModelSize | None) -> None:
    """Prompts, responses and probes fit into the model's positions and the engine's cache.

    Raises:
        BatchArithmeticError: more tokens than positions, a probe longer than a response, or
            prompts longer than the engines take.
        ResourceError: the KV cache of an engine cannot hold one sequence.
    """
    rollout = config.rollout
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    if rollout.parity_tokens > rollout.max_response_tokens:
        raise BatchArithmeticError(
            f"parity_tokens={rollout.parity_tokens} exceed max_response_tokens="
            f"{rollout.max_response_tokens}",
            where="rollout.parity_tokens",
            mend="probe no more tokens than a response has",
        )
    files = config.data.files
    if (
        config.data.source is DataSourceKind.files
        and files.max_prompt_tokens > rollout.max_prompt_tokens
    ):
        raise BatchArithmeticError(
            f"prompts of the files may have {files.max_prompt_tokens} tokens, those of the engines "
            f"{rollout.max_prompt_tokens}",
            where="data.files.max_prompt_tokens",
            mend=f"lower it to {rollout.max_prompt_tokens}, or raise rollout.max_prompt_tokens",
        )
    if size is None:
        return
    if size.positions is not None and longest > size.positions:
        raise BatchArithmeticError(
            f"{rollout.max_prompt_tokens} prompt and {rollout.max_response_tokens} response tokens "
            f"make {longest}; the model has {size.positions} positions",
            where="rollout",
            mend="lower rollout.max_prompt_tokens or rollout.max_response_tokens",
        )
    if sequences_in_cache(config, size) < 1:
        raise _no_room(config, longest)


def _no_room(config: Config, longest: int) -> ResourceError:
    rollout = config.rollout
    if config.cluster.accelerator is Accelerator.cpu:
        return ResourceError(
            f"a KV cache of {rollout.kv_cache_mib} MiB cannot hold one sequence of {longest} "
            "tokens",
            where="rollout.kv_cache_mib",
            mend="raise rollout.kv_cache_mib",
        )
    return ResourceError(
        f"{rollout.gpu_memory_fraction:.0%} of {config.cluster.gpu_memory_gib:g} GiB a GPU hold no "
        f"engine's weights and one sequence of {longest} tokens",
        where="rollout.gpu_memory_fraction",
        mend="raise it, or rollout.tensor_parallel_size and cluster.roles.rollout.gpus, or set "
        "cluster.gpu_memory_gib to what the GPUs have",
    )


# What the attention of vLLM 0.32 computes on a CPU; the engine itself would say so, but only after
# a model has been pretrained.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def check_head_sizes(config: Config) -> None:
    """The engines can serve the models that this run is given or makes.

    Raises:
        ConfigError: vLLM on a CPU has no attention of that head size.
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
    for name in MODEL_ORDER:
        folder = Path(getattr(config.model.checkpoints, name) or "/")
        if (folder / "config.json").is_file():
            _check_head_size(read_shape(folder).head_size, f"model.checkpoints.{name}")


def _check_head_size(size: int, where: str) -> None:
    if size not in CPU_HEAD_SIZES:
        raise ConfigError(
            f"attention heads of size {size}; vLLM on a CPU computes {CPU_HEAD_SIZES}",
            where=where,
            mend="choose hidden_size / heads among these, or rollout.engine=transformers",
        )


def check_reward(config: Config) -> None:
    """The reward function is named, and gets text.

    Raises:
        ConfigError: otherwise.
    """
    if config.reward.kind is not RewardKind.function:
        return
    reward = config.reward
    split_path(reward.function, "reward.function")
    most = Patience(reward.function_seconds, reward.function_retries).most_seconds
    if most > config.run.call_seconds:
        raise ConfigError(
            f"function_seconds={reward.function_seconds:g} with function_retries="
            f"{reward.function_retries} can take {most:g} s for a batch: its deadline for all "
            "responses at once, once more for one after the other, and that for each try; a call "
            f"to a worker ends after run.call_seconds={config.run.call_seconds:g}",
            where="reward.function_seconds",
            mend=f"lower it, or set run.call_seconds above {most:g}",
        )
    if config.reward.bridge is TextBridge.tokens:
        raise ConfigError(
            "a reward function reads text, not tokens",
            where="reward.bridge",
            mend="set reward.bridge=text, or choose reward=function, which sets both",
        )


def check_judge(config: Config) -> None:
    """What the judge of the evaluation is told can be understood.

    The address is checked in every run: it may hold a secret, and each writes its config.yaml.

    Raises:
        ConfigError: no function is named, or the endpoint's address, model, instruction or request
            make no sense.
    """
    settings = config.evaluate
    if settings.endpoint.url:
        _check_address(settings.endpoint.url)
    if StageName.evaluate not in config.stages:
        return
    if settings.judge is JudgeKind.function:
        split_path(settings.judge_function, "evaluate.judge_function")
    if settings.judge is JudgeKind.endpoint:
        _check_endpoint(settings.endpoint)


def _check_endpoint(endpoint: EndpointConfig) -> None:
    where = "evaluate.endpoint"
    if not endpoint.url:
        raise ConfigError("the judge has no address", where=f"{where}.url",
                          mend="write https://HOST/v1")  # fmt: skip
    if not endpoint.model:
        raise ConfigError("no judging model is named", where=f"{where}.model",
                          mend="set it to a model that the endpoint serves")  # fmt: skip
    missing = [p for p in ("{prompt}", "{first}", "{second}") if p not in endpoint.instruction]
    if missing:
        raise ConfigError(
            f"the judge's instruction lacks {', '.join(missing)}",
            where=f"{where}.instruction",
            mend="use judge=endpoint, whose instruction is in conf/judge/endpoint.yaml",
        )
    try:
        request: object = json.loads(endpoint.request)
    except ValueError:
        request = None
    if not isinstance(request, dict):
        raise ConfigError("what is sent with every question is no JSON object",
                          where=f"{where}.request", mend="write '{}' to send nothing")  # fmt: skip


def _check_address(address: str) -> None:
    if not _is_plain(address):
        # the address itself may hold a password: it is not repeated, nor the error that names it
        raise ConfigError(
            "the judge's address is no plain http or https address",
            where="evaluate.endpoint.url",
            mend="write https://HOST/v1 or https://HOST:PORT/v1, nothing behind it; a key belongs "
            "into the environment variable that key_variable names",
        )


def _is_plain(address: str) -> bool:
    """Scheme, host, port and path alone."""
    if any(c in "?#" or c.isspace() or not c.isprintable() for c in address):
        return False
    try:
        url = urlsplit(address)
        port = url.port
    except ValueError:  # a bracket is left open, or the port is no number up to 65535
        return False
    host = url.hostname and "@" not in url.netloc
    return url.scheme in ("http", "https") and bool(host) and port != 0


def check_devices(config: Config, layout: Layout) -> None:
    """Accelerator, GPUs per role, precision and transport go together.

    Raises:
        ConfigError: they do not.
        ResourceError: a role has GPUs on a CPU cluster, or none on a GPU cluster.
    """
    cuda = config.cluster.accelerator is Accelerator.cuda
    for role in layout.roles:
        gpus = config.cluster.roles.of(role).gpus
        scores_by_function = role is RoleName.reward and config.reward.kind is RewardKind.function
        if cuda == (gpus > 0) or (cuda and scores_by_function):
            continue
        raise ResourceError(
            f"{role.value} workers take {gpus:g} GPUs on a {config.cluster.accelerator.value} "
            "cluster",
            where=f"cluster.roles.{role.value}.gpus",
            mend="give every role GPUs with cluster.accelerator=cuda, and none with cpu",
        )
    if RoleName.rollout in layout.roles:
        _check_engines(config)
    if {RoleName.rollout, RoleName.policy} <= set(layout.roles):
        _check_transport(config, layout)
        _check_old_logprobs(config)


def _check_engines(config: Config) -> None:
    shards, gpus = config.rollout.tensor_parallel_size, config.cluster.roles.rollout.gpus
    if shards > 1 and config.rollout.engine is RolloutEngine.transformers:
        raise ConfigError(
            f"tensor_parallel_size={shards} with an engine that runs on one device",
            where="rollout.tensor_parallel_size",
            mend="set it to 1, or use rollout.engine=vllm",
        )
    if config.cluster.accelerator is Accelerator.cuda and shards > 1 and gpus != shards:
        raise ResourceError(
            f"an engine over {shards} GPUs is given {gpus:g}",
            where="cluster.roles.rollout.gpus",
            mend=f"set it to rollout.tensor_parallel_size={shards}",
        )
    bf16 = Precision.bf16 in (config.rollout.precision, config.trainer.precision)
    if bf16 and config.rollout.parity_tolerance < _BF16_TOLERANCE:
        raise ConfigError(
            f"parity_tolerance={config.rollout.parity_tolerance:g} nats cannot hold in bf16",
            where="rollout.parity_tolerance",
            mend="use fp32 in rollout.precision and trainer.precision, or 0.3",
        )


def _check_old_logprobs(config: Config) -> None:
    tolerance = config.rollout.parity_tolerance
    if config.algorithm.old_logprobs is OldLogprobs.rollout and config.algorithm.staleness:
        raise ConfigError(
            "sequences sampled ahead of training come from another version of the policy, so the "
            "engine's log-probabilities are not those of the policy before the update",
            where="algorithm.old_logprobs",
            mend="set algorithm.old_logprobs=trainer, or algorithm.staleness=0",
        )
    if config.algorithm.old_logprobs is OldLogprobs.rollout and tolerance > _SAME_TOLERANCE:
        raise ConfigError(
            "the engine's log-probabilities can stand for the trainer's only where each sync "
            f"proves that they agree, and a tolerance of {tolerance:g} nats proves too little",
            where="algorithm.old_logprobs",
            mend=f"set rollout.parity_tolerance={_SAME_TOLERANCE:g} or less (fp32), or "
            "algorithm.old_logprobs=trainer",
        )


def _check_transport(config: Config, layout: Layout) -> None:
    transport = config.rollout.transport
    if transport is Transport.shm:
        engines = range(config.cluster.roles.rollout.workers)
        nodes = {layout.node_of(RoleName.rollout, rank) for rank in engines}
        if nodes != {layout.node_of(RoleName.policy, 0)}:
            raise ConfigError(
                "shared memory does not reach engines on other nodes",
                where="rollout.transport",
                mend="use gloo or nccl",
            )
    if transport is Transport.nccl:
        if config.cluster.accelerator is not Accelerator.cuda:
            raise ConfigError("nccl needs GPUs", where="rollout.transport", mend="use shm or gloo")
        shared = min(config.cluster.roles.rollout.gpus, config.cluster.roles.policy.gpus)
        if shared < 1:
            raise ConfigError(
                "nccl cannot connect two processes on one GPU",
                where="rollout.transport",
                mend="use shm or gloo, or give rollout and policy workers whole GPUs",
            )
