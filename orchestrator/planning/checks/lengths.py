"""Checks of lengths: whether prompts, responses and rows fit into the models' positions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from orchestrator.config.cluster import Accelerator
from orchestrator.config.data import DataSourceKind, kinds
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.model_sizes import ModelSize, sequences_in_cache
from orchestrator.planning.stage_graph import inputs, product
from orchestrator.results.summary import MODEL_ORDER
from workers.data.tokenize.data_sets import SetKind
from workers.errors import BatchArithmeticError, ResourceError
from workers.model_folders.shape import read_shape

_PRETRAINING = (StageName.pretrain, StageName.pretrain_large)


def check_lengths(config: Config, size: ModelSize | None) -> None:
    """Check that prompts, responses and probes fit the model's positions and the engine's cache.

    Raises:
        BatchArithmeticError: more tokens than positions, a probe longer than a response, or
            prompts longer than the engines accept.
        ResourceError: the KV cache of an engine cannot hold one sequence.
    """
    rollout = config.rollout
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    if rollout.parity_tokens > rollout.max_response_tokens:
        raise BatchArithmeticError(
            f"parity_tokens={rollout.parity_tokens} exceed max_response_tokens="
            f"{rollout.max_response_tokens}",
            where="rollout.parity_tokens",
            fix="probe at most as many tokens as a response may have",
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
            fix=f"lower it to {rollout.max_prompt_tokens}, or raise rollout.max_prompt_tokens",
        )
    if size is None:
        return
    if size.positions is not None and longest > size.positions:
        raise BatchArithmeticError(
            f"{rollout.max_prompt_tokens} prompt and {rollout.max_response_tokens} response tokens "
            f"make {longest}; the model has {size.positions} positions",
            where="rollout",
            fix="lower rollout.max_prompt_tokens or rollout.max_response_tokens",
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
            fix="raise rollout.kv_cache_mib",
        )
    return ResourceError(
        f"{rollout.gpu_memory_fraction:.0%} of {config.cluster.gpu_memory_gib:g} GiB a GPU hold no "
        f"engine's weights and one sequence of {longest} tokens",
        where="rollout.gpu_memory_fraction",
        fix="raise it, or rollout.tensor_parallel_size and cluster.roles.rollout.gpus, or set "
        "cluster.gpu_memory_gib to what the GPUs have",
    )


def check_rows(config: Config) -> None:
    """Check that no stage reads rows with more tokens than its model has positions.

    `check_lengths` checks prompts and responses.

    Raises:
        BatchArithmeticError: rows may be too long; names the key and the stage.
        BrokenCheckpointError: a given folder has a config.json that does not parse.
    """
    for stage in config.stage_names:
        rows = tuple(_rows(config, stage))
        for name in _readers(config, stage) if rows else ():
            positions = _positions(config, name)
            for key, tokens, fix in rows:
                if positions is not None and tokens > positions:
                    raise BatchArithmeticError(
                        f"the stage {stage.value} reads rows of up to {tokens} tokens; its model "
                        f"has {positions} positions",
                        where=key,
                        fix=fix.format(positions),
                    )


def _rows(config: Config, stage: StageName) -> Iterator[tuple[str, int, str]]:
    """Per kind of row that a stage reads: key, maximum tokens, and how to lower them."""
    files = config.data.files
    if config.data.source is DataSourceKind.files and _reads_whole_rows(config, stage):
        yield (
            "data.files.max_completion_tokens",
            files.max_prompt_tokens + files.max_completion_tokens,
            "lower data.files.max_prompt_tokens and data.files.max_completion_tokens to {} "
            "together, or give a model with more positions",
        )
    if stage in _PRETRAINING or stage is StageName.ppo_ptx:
        yield "pretrain.row_tokens", config.pretrain.row_tokens, "lower it to {}"
    if stage is StageName.sft:
        yield "sft.pack_tokens", config.sft.pack_tokens, "lower it to {}, or to 0"
        if config.sft.pretraining_full_rows and config.sft.pretraining_fraction:
            yield "pretrain.row_tokens", config.pretrain.row_tokens, "lower it to {}"


def _reads_whole_rows(config: Config, stage: StageName) -> bool:
    """Whether a stage reads full rows of the files, not only prompts."""
    if stage is StageName.evaluate:  # the perplexity of pretraining text, if there is any
        return SetKind.pretraining in kinds(config.data)
    prompts_alone = {StageName.ppo, StageName.online_dpo, StageName.rejection_sampling}
    prompts_alone |= {StageName.label, StageName.collect, StageName.overoptimization}
    return stage not in prompts_alone


def _readers(config: Config, stage: StageName) -> tuple[str, ...]:
    """Names of the checkpoints whose models read the stage's rows."""
    if stage is StageName.collect:
        return tuple(config.collect.models)
    if stage is StageName.label:
        return tuple(config.label.models)
    if stage is not StageName.evaluate:
        return (product(stage),)
    made = {product(each) for each in config.stage_names}
    return tuple(n for n in MODEL_ORDER if n in made or getattr(config.model.checkpoints, n))


def _positions(config: Config, name: str) -> int | None:
    """Positions of a checkpoint's model; None = no limit, or not readable here."""
    maker = next((stage for stage in config.stage_names if product(stage) == name), None)
    if maker is None:
        folder = Path(getattr(config.model.checkpoints, name) or "/")
        return read_shape(folder).positions if (folder / "config.json").is_file() else None
    if maker is StageName.pretrain_large:
        return config.model.large.max_position_embeddings
    if maker is StageName.pretrain and config.data.source is DataSourceKind.pocket:
        return config.model.pocket.max_position_embeddings
    return _positions(config, inputs(config, maker)[0])
