"""Conversion between a live model's weights and the names and layout of its saved folder.

In memory, transformers keeps the experts of a layer in one tensor and has renamed some weights of
older families. The folders it writes, and vLLM, which loads such folders, keep the published names.
A weight sync therefore uses the folder's form. The conversion is that of transformers, applied only
here, one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from workers.errors import WeightSyncError
from workers.model_folders.weight_files import bare_name
from workers.records.weights import TensorMeta
from workers.weights.packing import NamedTensor, NamedTensors, dtype_name, layer_of


def checkpoint_form(
    model: PreTrainedModel, tensors: Iterable[NamedTensor]
) -> Iterator[NamedTensors]:
    """Yield named parameters in the form of the model's folder, one layer at a time.

    Args:
        model: Determines the family's conversion; its weights are not read.
        tensors: Whole layers, one after the other, under the live model's names.

    Returns:
        One list per layer; tensors whose layout does not change share memory with the input.
    """
    for _, layer in groupby(tensors, key=lambda named: layer_of(named[0])):
        yield list(revert_weight_conversion(model, dict(layer)).items())


def checkpoint_metas(model: PreTrainedModel, metas: Sequence[TensorMeta]) -> tuple[TensorMeta, ...]:
    """Metas of the result of `checkpoint_form`, in its order, computed without weights.

    Args:
        model: Determines the family's conversion.
        metas: Every parameter under the live model's name.
    """
    hollow = [
        (m.name, torch.empty(m.shape, dtype=getattr(torch, m.dtype), device="meta")) for m in metas
    ]
    return tuple(
        TensorMeta(name, dtype_name(t.dtype), tuple(t.shape))
        for layer in checkpoint_form(model, hollow)
        for name, t in layer
    )


class CheckpointFormReader:
    """Copies tensors in the form of the folder into the parameters of a live model.

    If the two forms differ, the inverse conversion is derived by converting tensors of element
    numbers: each number ends up at the place of its element in the folder's form.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._parameters = dict(model.named_parameters())
        self._layers: dict[
            str, tuple[str, ...]
        ] = {}  # name in the folder -> live names of the layer
        for _, names in groupby(self._parameters, key=layer_of):
            layer = tuple(names)
            hollow = [(name, self._parameters[name].to("meta")) for name in layer]
            for converted in checkpoint_form(model, hollow):
                self._layers.update((bare_name(name), layer) for name, _ in converted)

    @torch.no_grad()
    def read(self, tensors: NamedTensors) -> None:
        """Overwrite the parameters that correspond to these tensors.

        Raises:
            WeightSyncError: The model has no such weight.
        """
        bare = [(bare_name(name), tensor) for name, tensor in tensors]
        for name, _ in tensors:
            if bare_name(name) not in self._layers:
                raise WeightSyncError(f"the model has no weight {name}")
        for layer, group in groupby(bare, key=lambda named: self._layers[named[0]]):
            self._read_layer({name: self._parameters[name] for name in layer}, list(group))

    def _read_layer(self, own: dict[str, nn.Parameter], tensors: NamedTensors) -> None:
        same = {bare_name(name): parameter for name, parameter in own.items()}
        if all(name in same for name, _ in tensors):
            for name, tensor in tensors:
                same[name].copy_(tensor)
            return
        places = _places(self._model, own)
        for name, tensor in tensors:
            parameter, elements = places[name]
            parameter.view(-1)[elements.flatten()] = tensor.flatten().to(parameter)


def _places(
    model: PreTrainedModel, own: dict[str, nn.Parameter]
) -> dict[str, tuple[nn.Parameter, torch.Tensor]]:
    """For each tensor of a layer's folder form: its live parameter, and which elements of it."""
    starts: list[tuple[int, nn.Parameter]] = []
    numbers: NamedTensors = []
    total = 0
    for name, parameter in own.items():
        last = total + parameter.numel()
        counted = torch.arange(total, last, device=parameter.device)
        numbers.append((name, counted.view(parameter.shape)))
        starts.append((total, parameter))
        total = last
    found: dict[str, tuple[nn.Parameter, torch.Tensor]] = {}
    for converted in checkpoint_form(model, numbers):
        for name, elements in converted:
            first = int(elements.min())
            start, parameter = max((s for s in starts if s[0] <= first), key=lambda s: s[0])
            found[bare_name(name)] = parameter, elements - start
    return found
