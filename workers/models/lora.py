"""Low-rank adapters (LoRA, arXiv 2106.09685): adding, merging and saving them.

Adapters are added inside the model, without peft's wrapper: only weights inside an adapted layer
change their names (`q_proj.weight` to `q_proj.base_layer.weight`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.errors import ConfigError
from workers.records.specs import LoraSpec

FOLDER = "adapter"  # subfolder next to the merged weights, in peft's format
_BASE = ".base_layer"
_NAME = "default"  # peft's name of the one adapter


@dataclass(frozen=True, slots=True)
class Source:
    """A weight, by its name in checkpoints and engines, and the live parameters it comes from."""

    name: str
    parts: tuple[str, ...]  # live names: the weight, then A and B if it has an adapter
    scale: float = 0.0  # alpha / r
    transposed: bool = False  # the layer stores (in, out), as GPT-2 does

    def merge(self, parts: Sequence[Tensor]) -> Tensor:
        """W + scale * B A in a new tensor, or W itself if there is no adapter."""
        weight, *factors = parts
        if not factors:
            return weight
        a, b = (factor.float() for factor in factors)
        update = self.scale * (b @ a)
        return (weight.float() + (update.T if self.transposed else update)).to(weight.dtype)


def sources(model: nn.Module) -> tuple[Source, ...]:
    """Every weight of a model, in the model's order; tied weights once."""
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    found: list[Source] = []
    for live, _ in model.named_parameters():
        owner, _, leaf = live.rpartition(".")
        if ".lora_" in owner:
            continue
        layer: Any = adapted.get(owner.removesuffix(_BASE)) if owner.endswith(_BASE) else None
        owner = owner if layer is None else owner.removesuffix(_BASE)
        name = f"{owner}.{leaf}" if owner else leaf
        if layer is None or leaf != "weight":
            found.append(Source(name, (live,)))
            continue
        factors = tuple(f"{owner}.lora_{x}.{_NAME}.weight" for x in "AB")
        found.append(
            Source(name, (live, *factors), layer.scaling[_NAME], bool(layer.fan_in_fan_out))
        )
    return tuple(found)


def add_adapters(model: PreTrainedModel, spec: LoraSpec) -> None:
    """Freeze a model and add trainable adapters; a scalar head stays fully trainable.

    B starts at zero, so outputs are unchanged before the first step; A is drawn from torch's
    generator.

    Raises:
        ConfigError: a target matches no layer, a layer that is not linear, or a shared weight.
    """
    from peft import inject_adapter_in_model  # seconds to import, and few runs use it
    from peft.tuners.lora import Linear

    shared = _shared_weights(model)
    try:
        inject_adapter_in_model(_peft_config(model, spec), model, _NAME)
    except ValueError as error:
        raise _bad_target(f"peft refuses the targets: {error}") from error
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and not isinstance(module, Linear):
            raise _bad_target(f"{name} is not a linear layer")
        if isinstance(module, Linear) and id(module.get_base_layer().weight) in shared:
            raise _bad_target(f"the weight of {name} is shared with another layer")
    for head in head_names(model):
        model.get_submodule(head).requires_grad_(True)


def save_adapter(
    folder: Path, model: PreTrainedModel, spec: LoraSpec, state: Mapping[str, Tensor], base: str
) -> None:
    """Write adapters, and the scalar head if there is one, in peft's format.

    Args:
        folder: where to write.
        model: the adapted model; only its structure is read.
        spec: the spec that `add_adapters` got.
        state: live weights by live name.
        base: the folder of the frozen weights, recorded in the adapter's configuration.
    """
    heads = head_names(model)
    kept = {
        f"base_model.model.{name.replace(f'.{_NAME}.', '.')}": weight.contiguous()
        for name, weight in state.items()
        if ".lora_" in name or name.partition(".")[0] in heads
    }
    config = _peft_config(model, spec)
    config.modules_to_save = list(heads) or None
    # Only the name: the folder's path is of no use on another machine.
    config.base_model_name_or_path, config.inference_mode = Path(base).name, True
    # A list: peft writes sets in an order that differs from run to run.
    config.target_modules = [n for n, module in model.named_modules() if hasattr(module, "lora_A")]
    folder.mkdir(parents=True)
    config.save_pretrained(str(folder))
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def head_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Child modules outside the backbone that hold weights; () for a language model."""
    if model.get_output_embeddings() is not None:
        return ()
    return tuple(
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and next(child.parameters(), None) is not None
    )


def _peft_config(model: PreTrainedModel, spec: LoraSpec) -> Any:
    from peft import LoraConfig

    everywhere = spec.target == ("all-linear",)
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # pyright: ignore[reportArgumentType]: any number will do
        lora_dropout=spec.dropout,
        target_modules="all-linear" if everywhere else list(spec.target),
        exclude_modules=list(head_names(model)) or None,
        fan_in_fan_out=_stores_transposed(model),
    )


def _stores_transposed(model: nn.Module) -> bool:
    """Whether linear layers store (in, out), as in GPT-2."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def _shared_weights(model: nn.Module) -> set[int]:
    seen: set[int] = set()
    shared: set[int] = set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _bad_target(what: str) -> ConfigError:
    return ConfigError(
        what,
        where="model.lora.target",
        fix="name linear layers such as q_proj and v_proj, or use [all-linear]",
    )
