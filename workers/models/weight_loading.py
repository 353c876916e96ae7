"""Loading of weights with transformers, and checks that it does not make.

transformers initializes missing weights randomly and ignores unknown ones. Here both are errors
that name the weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from workers.errors import BrokenCheckpointError, ConfigError, MissingCheckpointError
from workers.model_folders.shape import load_config
from workers.model_folders.weight_files import OUTPUT_LAYERS, is_constant
from workers.process.library_errors import reading
from workers.records.specs import Dtype

# Messages of transformers about an attention that a family, device or installation lacks.
_NO_ATTENTION = re.compile("attention implementation|attn_implementation|Flash ?Attention")
# Names of scalar and classification heads in transformers' classes and common reward models.
_HEADS = re.compile(r"^(score|classifier|v_head|value_head|reward_head|qa_outputs)\.")
_AGAIN = "copy or make the checkpoint again; missing weights are never drawn at random"

# The library warns about every head it adds and shows a progress bar per load; the checks below
# raise what matters.
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def model_config(path: str) -> Any:
    """The configuration of a model's folder.

    Raises:
        MissingCheckpointError: There is no such folder.
        BrokenCheckpointError: Its config.json does not describe a model.
    """
    if not (Path(path) / "config.json").is_file():
        raise MissingCheckpointError(
            "no checkpoint folder with a config.json",
            where=path,
            fix="give the path of a Hugging Face model folder",
        )
    return load_config(Path(path))


def load_weights(
    kind: Any, path: str, config: Any, dtype: Dtype, attention: str, *, hollow: bool = False
) -> tuple[Any, set[str]]:
    """Load a model in evaluation mode; also returns the names of weights missing in the folder.

    Args:
        kind: One of transformers' Auto classes.
        path: Hugging Face folder.
        config: Configuration of the model to build.
        dtype: Number format of the weights.
        attention: transformers' `attn_implementation`.
        hollow: Only compare names and shapes: no weight is read, and the model holds no data.

    Raises:
        BrokenCheckpointError: The weights do not load, have other shapes, or belong to another
            model.
        ConfigError: The family or the machine does not support this attention.
        ResourceError: The weights do not fit into memory.
    """
    with reading(path, "the weights do not load", "copy or make the checkpoint again"):
        try:
            model, info = kind.from_pretrained(
                path,
                config=config,
                dtype=getattr(torch, dtype),
                attn_implementation=attention,
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                # Replaces the base model's settings: training does not use them, and transformers
                # refuses to save some settings that it loads.
                generation_config=GenerationConfig(),
                ignore_mismatched_sizes=True,  # `_refuse_shapes` raises, with the names
                device_map={"": "meta"} if hollow else None,
            )
        except (ValueError, ImportError) as error:
            if not _NO_ATTENTION.search(str(error)):
                raise
            raise ConfigError(
                f"{config.model_type!r} models do not load with {attention} attention here: "
                + str(error).partition(". ")[0],
                where=path,
                fix="set model.attention=eager" + ("" if attention == "sdpa" else " or sdpa"),
            ) from error
    _refuse_shapes(path, info["mismatched_keys"])
    _refuse_foreign(path, kind, info["unexpected_keys"])
    return model.eval(), set(info["missing_keys"])


def incomplete(path: str, absent: set[str]) -> BrokenCheckpointError:
    """The error for a folder that lacks weights."""
    return BrokenCheckpointError(
        f"{len(absent)} weights are missing from the checkpoint: {_some(absent)}",
        where=path,
        fix=_AGAIN,
    )


def require_causal(config: Any, path: str) -> None:
    """Require a family that generates text from left to right.

    Raises:
        BrokenCheckpointError: It does not; names the family.
    """
    family = config.model_type
    reads_both_ways = (
        family in MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(config, "is_decoder", None) is False
    )
    if family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not reads_both_ways:
        return
    raise BrokenCheckpointError(
        f"a {family!r} model, which is no causal language model",
        where=path,
        fix="give a model that writes text from left to right (AutoModelForCausalLM)",
    )


def _refuse_shapes(path: str, wrong: Iterable[tuple[str, Any, Any]]) -> None:
    found = sorted((name, tuple(stored), tuple(wanted)) for name, stored, wanted in wrong)
    if not found:
        return
    name, stored, wanted = found[0]
    raise BrokenCheckpointError(
        f"{len(found)} weights have another shape than config.json says: {name} is {stored}, not "
        f"{wanted}",
        where=path,
        fix="give config.json and weights of one model; a scalar head has one output",
    )


def _refuse_foreign(path: str, kind: Any, unexpected: Iterable[str]) -> None:
    """Raise for weights that the model would ignore; an output layer may be replaced by a head."""
    language = kind is AutoModelForCausalLM
    foreign = {name for name in unexpected if not is_constant(name)}
    heads = {name for name in foreign if _HEADS.search(name)}
    if language and heads:
        raise BrokenCheckpointError(
            f"a reward model or classifier, not a language model: it has the head {_some(heads)}",
            where=path,
            fix="give the folder of a language model; reward models go to "
            "model.checkpoints.reward_model",
        )
    foreign -= OUTPUT_LAYERS if not language else set()
    if foreign:
        raise BrokenCheckpointError(
            f"{len(foreign)} weights are not of this model, and would be left out: "
            f"{_some(foreign)}",
            where=path,
            fix="give config.json and weights of one model, without adapters or additional heads",
        )


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown}, ..."
