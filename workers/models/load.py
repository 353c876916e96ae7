"""Loading of causal language models and scalar-head models from Hugging Face folders."""

from __future__ import annotations

import copy
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from workers.errors import BrokenCheckpointError, ConfigError
from workers.model_folders.shape import require_scalar_class
from workers.models.dropout import set_dropout
from workers.models.packed_attention import NAME as PACKED
from workers.models.padding import TokenRows, pack_rows, pad_rows
from workers.models.weight_loading import incomplete, load_weights, model_config, require_causal
from workers.records.arrays import Ragged
from workers.records.specs import Dtype

Head = Literal["keep", "random", "zero"]


def load_causal_lm(
    path: str,
    *,
    dtype: Dtype,
    attention: str = "sdpa",
    packed: bool = False,
    dropout: float | None = None,
) -> PreTrainedModel:
    """Load a causal language model from a folder, in evaluation mode.

    Args:
        path: Hugging Face folder.
        dtype: Number format of the weights.
        attention: transformers' `attn_implementation`.
        packed: Support sequences packed end to end (`attention` must be sdpa).
        dropout: Rate in training; None = as the folder's configuration says.

    Raises:
        MissingCheckpointError: no such folder.
        BrokenCheckpointError: weights are missing, truncated or of another shape.
        ConfigError: the architecture has no dropout to set or does not support this attention, or
            packed sequences would attend to each other.
    """
    config = model_config(path)
    require_causal(config, path)
    before = set_dropout(config, dropout)
    kernel = PACKED if packed else attention
    model, absent = load_weights(AutoModelForCausalLM, path, config, dtype, kernel)
    # Layers have read their rate already; restored so that a saved folder does not carry this rate
    # into the next stage.
    if before:
        _own_configs(model)
        model.config.update(before)
    if absent:
        raise incomplete(path, absent)
    if packed:
        _require_apart(model, path)
    return model


def load_scalar(
    path: str,
    *,
    dtype: Dtype,
    attention: str = "sdpa",
    packed: bool = False,
    head: Head = "keep",
    seed: int = 0,
) -> PreTrainedModel:
    """Load a backbone with a head that maps every position to one number, in evaluation mode.

    The head (weight (1, d) and bias (1,)) is that of the family's token-classification class, so
    the saved folder loads with plain transformers. The bias holds the reward model's offset.

    Args:
        path: Hugging Face folder of a scalar-head model or of a causal language model.
        dtype: Number format of the weights.
        attention: transformers' `attn_implementation`.
        packed: Support sequences packed end to end (`attention` must be sdpa).
        head: "keep" loads it, "random" draws its weight from N(0, 1/(d+1)) (Stiennon et al. 2020,
            appendix B.1) with a bias of zero, "zero" starts value functions at zero.
        seed: Seed of the random head.

    Raises:
        MissingCheckpointError: no such folder.
        BrokenCheckpointError: weights are missing, truncated or of another shape; with
            `head="keep"` also if the folder has no head.
        ConfigError: the family has no class with such a head or does not support this attention,
            or packed sequences would attend to each other.
    """
    kernel = PACKED if packed else attention
    model, new = _scalar(path, dtype, kernel, head)
    name, linear = scalar_head(model)
    _start_head(linear, head, bias_absent=f"{name}.bias" in new, seed=seed)
    if packed:
        _require_apart(model, path)
    return model


def check_causal_lm(path: str, attention: str) -> None:
    """Raise `load_causal_lm`'s errors about names and shapes, without reading a weight."""
    config = model_config(path)
    require_causal(config, path)
    _, absent = load_weights(AutoModelForCausalLM, path, config, "float32", attention, hollow=True)
    if absent:
        raise incomplete(path, absent)


def check_scalar(path: str, attention: str, head: Head) -> None:
    """Raise `load_scalar`'s errors about names and shapes, without reading a weight."""
    _scalar(path, "float32", attention, head, hollow=True)


def _scalar(
    path: str, dtype: Dtype, attention: str, head: Head, *, hollow: bool = False
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of head weights missing in the folder."""
    config = model_config(path)
    require_scalar_class(config.model_type, path)
    config.num_labels = 1
    config.classifier_dropout = 0.0
    config.token_classification_bias = True
    model, absent = load_weights(
        AutoModelForTokenClassification, path, config, dtype, attention, hollow=hollow
    )
    name, _ = scalar_head(model)
    new = {key for key in absent if key.startswith(f"{name}.")}
    if absent - new:
        raise incomplete(path, absent - new)
    if head == "keep" and f"{name}.weight" in new:
        raise BrokenCheckpointError(
            f"the checkpoint has no scalar head ({name}.weight)",
            where=path,
            fix="give the folder of a trained reward model",
        )
    return model, new


def scalar_head(model: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of the head of a token-classification model: `score`, `classifier`, ..."""
    ((name, head),) = [(n, m) for n, m in model.named_children() if isinstance(m, nn.Linear)]
    return name, head


@torch.no_grad()
def keeps_documents_apart(model: nn.Module, *, packed: bool = False) -> bool:
    """Whether documents that share a row, each with positions from 0, do not attend to each other.

    They silently do in families without such position ids (Bloom, Falcon, OPT), and in flash
    attention with more than one row. Tested on a few tokens: adding another document to the row
    must change a document's last hidden state by less than 0.1 of the change when both are one
    text.

    Args:
        model: With or without a head; its hidden states are compared.
        packed: Test packed rows; the model must be loaded with `packed`.
    """
    device = next(model.parameters()).device
    backbone: nn.Module = getattr(model, str(getattr(model, "base_model_prefix", "")), model)

    def last_state(rows: TokenRows) -> Tensor:
        return backbone(
            input_ids=rows.input_ids,
            attention_mask=rows.attention_mask,
            position_ids=rows.position_ids,
            use_cache=False,
        )[0].float()[-1, -1]

    def lay(*documents: list[int]) -> TokenRows:
        tokens = Ragged.from_rows(documents, np.int32)
        if packed:
            return pack_rows(tokens, device)
        positions = np.concatenate([np.arange(len(d)) for d in documents])
        whole = Ragged.from_rows([tokens.values] * 2, np.int32)
        return pad_rows(whole, device, Ragged.from_rows([positions] * 2, np.int32))

    alone = last_state(lay([3, 1]))
    beside = (last_state(lay([1, 2, 1], [3, 1])) - alone).abs().max()
    joined = (last_state(lay([1, 2, 1, 3, 1])) - alone).abs().max()
    return bool(beside < 0.1 * joined)


def _own_configs(model: nn.Module) -> None:
    """Give layers a copy of the configuration: some (Falcon's) read dropout in each pass."""
    kept = copy.deepcopy(model.config)
    for module in model.modules():
        if not isinstance(module, PreTrainedModel) and hasattr(module, "config"):
            module.config = kept


def keep_checkpointing(model: nn.Module) -> None:
    """Keep gradient checkpointing active in evaluation mode.

    A layer checkpoints only if its `training` flag is set; the dropout layers inside it have
    separate flags. A layer that applies dropout by its own flag (OPT, Falcon) is not changed:
    dropout must stay off, even if that costs memory.
    """
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = module.training or not _drops_by_own_flag(module)


def _drops_by_own_flag(layer: nn.Module) -> bool:
    """Whether a layer applies a dropout rate from its attributes or its configuration."""
    config = getattr(layer, "config", None)
    rates = [getattr(layer, "dropout", None)]
    rates += [getattr(config, name, None) for name in ("hidden_dropout", "attention_dropout")]
    return any(isinstance(rate, (int, float)) and rate > 0 for rate in rates)


def _start_head(score: nn.Linear, head: Head, *, bias_absent: bool, seed: int) -> None:
    with torch.no_grad():
        if head == "random":
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(score.weight.shape, generator=generator)
            score.weight.copy_(drawn / (score.in_features + 1) ** 0.5)
        elif head == "zero":
            score.weight.zero_()
        if head != "keep" or bias_absent:
            score.bias.zero_()


def _require_apart(model: nn.Module, path: str) -> None:
    if not keeps_documents_apart(model, packed=True):
        raise ConfigError(
            "in this model, sequences that share a row attend to each other",
            where=path,
            fix="set trainer.packing=off",
        )
