"""A model's shape from config.json, for the key names of any family."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from workers.errors import BrokenCheckpointError, ConfigError
from workers.model_folders.files import broken, read_json
from workers.process.library_errors import reading

_FIX = "restore the file; the folder must hold a language model as save_pretrained writes it"
# Keys that a run or a library writes into config.json without changing the model.
_INCIDENTAL = frozenset(
    {
        "_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype",
        "use_cache", "id2label", "label2id", "num_labels", "classifier_dropout",
        "token_classification_bias", "bos_token_id", "eos_token_id", "pad_token_id",
    }
)  # fmt: skip


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a causal language model that plans and engines depend on."""

    family: str  # transformers' model_type
    layers: int
    kv_heads: int  # key and value heads per layer
    head_size: int
    vocabulary: int
    positions: int | None  # longest sequence in tokens; None = no limit (ALiBi)
    tied: bool  # the output layer is the embedding
    width: int  # of the hidden states that the output layer reads
    plain_logits: bool  # logits are the output layer's result, neither capped nor scaled
    heads: int  # query heads per layer
    inner: int  # width of the feed-forward layers, summed over the experts used per token
    content: str  # config.json as JSON, without keys that do not change the model

    @cached_property
    def key(self) -> str:
        """Hash that is equal for folders whose weights fit the same engine, 16 hex digits."""
        return sha256(self.content.encode()).hexdigest()[:16]


# Settings by which Gemma, Cohere and Granite change the output layer's logits.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
# Families whose packed log-probabilities, values and gradients are tested against single rows. The
# others are padded: Bloom, Falcon and OPT cannot restart positions, Gemma 2 needs eager attention.
_PACKED = frozenset(
    {
        "gemma", "gpt2", "gpt_neox", "llama", "mistral", "mixtral", "phi3", "qwen2", "qwen2_moe",
        "qwen3", "qwen3_moe",
    }
)  # fmt: skip


# Families whose numbers have these names, whose configuration has no parts, and for which
# transformers has a token-classification class.
_EXPLICIT = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_NUMBERS = (
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size",
    "intermediate_size", "vocab_size", "max_position_embeddings",
)  # fmt: skip


def may_pack(folder: Path, attention: str) -> bool:
    """Whether this model supports rows of packed sequences that attend only to themselves.

    Args:
        folder: Hugging Face folder; False if it is missing or broken, which its loader reports.
        attention: transformers' `attn_implementation`.
    """
    try:
        family = read_config(folder).get("model_type")
    except BrokenCheckpointError:
        return False
    return attention == "sdpa" and isinstance(family, str) and family in _PACKED


def writes_text(config: dict[str, Any]) -> bool:
    """Whether a config.json is of a model that writes text: reward models and critics do not."""
    classes = config.get("architectures") or [""]
    return "Classification" not in str(classes[0])


def read_shape(folder: Path) -> ModelShape:
    """Read config.json as transformers does, with the family's defaults for absent keys.

    Raises:
        BrokenCheckpointError: config.json is missing, does not parse, or does not describe a
            language model.
    """
    content = read_config(folder)
    if _says_all(content):
        _refuse_quantised(folder, content)
        config = SimpleNamespace(**content)
    else:
        whole = load_config(folder)
        with reading(folder, "config.json describes no language model", _FIX):
            config = whole.get_text_config(decoder=True)
        content = config.to_dict()
    with reading(folder, "config.json describes no language model", _FIX):
        shape = _shape(config, content)
    _refuse_sizes(folder, shape)
    _refuse_settings(folder, content)
    return shape


def _says_all(content: dict[str, Any]) -> bool:
    """Whether every number of the shape can be read without the defaults of transformers.

    These take seconds to import, and the driver needs no more of them. The role that
    loads the model reads its configuration with transformers, and reports what is wrong with it.
    """
    return (
        content.get("model_type") in _EXPLICIT
        and all(type(content.get(name)) is int for name in _NUMBERS)
        and type(content.get("tie_word_embeddings")) is bool
        and not content.get("auto_map")
    )


def load_config(folder: Path) -> Any:
    """The configuration that transformers reads from config.json; never runs code of the folder.

    Raises:
        BrokenCheckpointError: config.json is missing, does not parse, or does not describe a model
            that transformers supports.
    """
    # Deferred: the import takes seconds, and the driver reads folders only in some runs.
    from transformers import AutoConfig

    content = read_config(folder)
    _refuse_custom_code(folder, content)
    _refuse_quantised(folder, content)
    with reading(folder, "cannot read config.json", _FIX):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _refuse_custom_code(folder: Path, content: dict[str, Any]) -> None:
    """Raise for models that need Python files of the folder; transformers' families do not."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    family = content.get("model_type")
    if content.get("auto_map") and family not in CONFIG_MAPPING_NAMES:
        raise broken(
            folder,
            f"the model ({family!r}) needs its own Python code, which is never run",
            "give a model of a family that transformers itself holds",
        )


def _refuse_quantised(folder: Path, content: dict[str, Any]) -> None:
    settings = content.get("quantization_config")
    if settings is None:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    raise broken(
        folder,
        f"quantised weights ({method}), which can be neither trained nor compared with an engine's",
        "give the model with its original weights (bf16, fp16 or fp32)",
    )


def _refuse_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raise for numbers that make any model compute NaN or drop everything."""
    for name, value in settings.items():
        if isinstance(value, dict):
            _refuse_settings(folder, value)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        positive = name.endswith(("eps", "epsilon", "theta"))
        rate = name.endswith(("dropout", "pdrop"))
        if (positive and value <= 0) or (rate and not 0 <= value < 1):
            raise broken(folder, f"config.json says {name}={value!r}", _FIX)


def _refuse_sizes(folder: Path, shape: ModelShape) -> None:
    """Raise for sizes that no model has; building such a model could take forever."""
    sizes = {
        "layers": (shape.layers, 1 << 13),
        "key and value heads": (shape.kv_heads, 1 << 16),
        "head size": (shape.head_size, 1 << 16),
        "vocabulary": (shape.vocabulary, 1 << 27),
        "width": (shape.width, 1 << 20),
        "positions": (1 if shape.positions is None else shape.positions, 1 << 40),
    }
    for name, (size, most) in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= most:
            raise broken(folder, f"config.json says {size!r} for the {name} of the model", _FIX)


def read_config(folder: Path) -> dict[str, Any]:
    """The unchanged content of config.json.

    Raises:
        BrokenCheckpointError: config.json is missing or not a JSON object.
    """
    return read_json(folder / "config.json")


def _shape(config: Any, content: dict[str, Any]) -> ModelShape:
    heads, width = config.num_attention_heads, config.hidden_size
    positions = getattr(config, "max_position_embeddings", None)
    return ModelShape(
        family=config.model_type,
        layers=config.num_hidden_layers,
        kv_heads=_kv_heads(config, heads),
        head_size=getattr(config, "head_dim", None) or width // heads,
        vocabulary=config.vocab_size,
        positions=None if getattr(config, "alibi", False) else positions,
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        width=width,
        plain_logits=all(getattr(config, name, None) in (None, 1) for name in _LOGIT_CHANGES),
        heads=heads,
        inner=_inner(config, width),
        content=_content(content),
    )


def _inner(config: Any, width: int) -> int:
    names = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
    inner = next((n for name in names if (n := getattr(config, name, None))), 4 * width)
    return inner * max(1, getattr(config, "num_experts_per_tok", None) or 1)


def _kv_heads(config: Any, heads: int) -> int:
    if getattr(config, "multi_query", False) and not getattr(
        config, "new_decoder_architecture", False
    ):  # Falcon and GPT-BigCode: one key for all queries; num_kv_heads is ignored
        return 1
    return (
        getattr(config, "num_key_value_heads", None)
        or getattr(config, "num_kv_heads", None)
        or heads
    )


def _content(content: dict[str, Any]) -> str:
    values = {k: v for k, v in content.items() if k not in _INCIDENTAL}
    return json.dumps(values, sort_keys=True, default=str)


def require_scalar_class(family: str, where: str) -> None:
    """Require a family for which transformers has a token-classification class.

    Raises:
        ConfigError: it has none; names the family.
    """
    if family in _EXPLICIT:  # they have one, and the import takes seconds
        return
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    )

    if family not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES:
        raise ConfigError(
            f"transformers has no token-classification class for {family!r} models, so they cannot "
            "carry the scalar head of a reward model or critic",
            where=where,
            fix="take a reward model or critic of another family (model.checkpoints.critic), for "
            "example Llama, Qwen, Mistral, Gemma, GPT-2 or GPT-NeoX",
        )
