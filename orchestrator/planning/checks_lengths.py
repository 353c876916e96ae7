"""Checks of lengths: whether prompts and responses fit into the models' positions."""

from __future__ import annotations

from orchestrator.config.cluster import Accelerator
from orchestrator.config.data import DataSourceKind
from orchestrator.config.schema import Config
from orchestrator.planning.model_sizes import ModelSize, sequences_in_cache
from workers.errors import BatchArithmeticError, ResourceError


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
