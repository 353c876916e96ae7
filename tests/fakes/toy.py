"""Models small enough to follow by hand, over the tables of one vocabulary.

Policy: the logits of the next token are `weights + table[previous token]`, the table fixed.
Scalar: the value of a sequence is the mean of `weights` over its tokens, plus a bias.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from workers.errors import MissingCheckpointError
from workers.generation.engine import Generated
from workers.ops import token_logprobs
from workers.records.generation import Finish
from workers.records.weights import TensorMeta


def _table(vocabulary: int) -> Tensor:
    generator = torch.Generator().manual_seed(12345)
    return torch.randn(vocabulary, vocabulary, generator=generator, dtype=torch.float64)


def _read(path: str) -> dict[str, Tensor]:
    file = Path(path) / "model.safetensors"
    if not file.is_file():
        raise MissingCheckpointError("no such folder", where=path)
    return load_file(file)


def _write(path: str | Path, tensors: dict[str, Tensor]) -> None:
    Path(path).mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().contiguous() for n, t in tensors.items()}, f"{path}/model.safetensors")
    config = {"architectures": ["Toy"], "model_type": "llama", "num_hidden_layers": 1}
    if "layers" in tensors:
        config["num_hidden_layers"] = int(tensors["layers"])
    (Path(path) / "config.json").write_text(json.dumps(config))


class ToyPolicy:
    """A bigram model of which only the unigram part learns."""

    def __init__(self, weights: Tensor, layers: int = 1) -> None:
        self.layers = layers  # stands for the shape of the architecture
        self.weights = weights.detach().clone().requires_grad_()
        self._table = _table(len(weights))

    @classmethod
    def create(cls, vocabulary: int, seed: int, layers: int = 1) -> ToyPolicy:
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(vocabulary, generator=generator, dtype=torch.float64)
        weights[2] += 2.0  # responses end after a handful of tokens
        return cls(weights, layers)

    @classmethod
    def load(cls, path: str) -> ToyPolicy:
        tensors = _read(path)
        return cls(tensors["policy"], int(tensors["layers"]))

    def save(self, path: str | Path) -> None:
        _write(path, {"policy": self.weights, "layers": torch.tensor(self.layers)})

    def meta(self) -> TensorMeta:
        """The one weight; the engines take another of the same shape alone."""
        return TensorMeta("weights", "float64", (self.layers, len(self.weights)))

    def checksum(self) -> str:
        return f"{zlib.crc32(self.weights.detach().numpy().tobytes()):08x}"

    def logits(self, previous: Tensor) -> Tensor:
        """Of the tokens after `previous`: (N, V)."""
        return self.weights + self._table[previous]

    def logprobs(self, tokens: Sequence[int], start: int, temperature: float = 1.0) -> Tensor:
        """Log-probabilities of tokens[start:], each given the one before; (S - start,) nats."""
        row = torch.tensor(np.asarray(tokens), dtype=torch.long)
        return token_logprobs(self.logits(row[start - 1 : -1]), row[start:], temperature)

    def sample(
        self,
        prompt: Sequence[int],
        seed: int,
        temperature: float,
        most: int,
        eos: int,
        allowed: Sequence[int] = (),
    ) -> Generated:
        if allowed:
            return self._one_of(prompt, seed, temperature, allowed)
        generator = np.random.default_rng(seed)
        tokens = [*prompt]
        while len(tokens) < len(prompt) + most and tokens[len(prompt) :][-1:] != [eos]:
            logits = self.logits(torch.tensor(tokens[-1])).detach() / temperature
            cumulated = torch.softmax(logits, 0).cumsum(0).numpy()
            token = int(np.searchsorted(cumulated, generator.random() * cumulated[-1]))
            tokens.append(min(token, len(cumulated) - 1))
        with torch.no_grad():
            logprobs = self.logprobs(tokens, len(prompt), temperature).tolist()
        finish = Finish.STOP if tokens[-1] == eos else Finish.LENGTH
        return Generated(tokens[len(prompt) :], logprobs, finish)

    def _one_of(
        self, prompt: Sequence[int], seed: int, temperature: float, allowed: Sequence[int]
    ) -> Generated:
        """One token of those that are allowed, as if there were no others."""
        logits = self.logits(torch.tensor(prompt[-1])).detach()[list(allowed)] / temperature
        logprobs = torch.log_softmax(logits, 0)
        drawn = int(np.random.default_rng(seed).random() * len(allowed))
        return Generated([allowed[drawn]], [float(logprobs[drawn])], Finish.LENGTH)


class ToyScalar:
    """Scores whole sequences and every prefix."""

    def __init__(self, weights: Tensor, bias: float = 0.0) -> None:
        self.weights = weights.detach().clone().requires_grad_()
        self.bias = bias

    @classmethod
    def create(cls, vocabulary: int, seed: int) -> ToyScalar:
        generator = torch.Generator().manual_seed(seed)
        return cls(torch.randn(vocabulary, generator=generator, dtype=torch.float64))

    @classmethod
    def load(cls, path: str, head: str) -> ToyScalar:
        tensors = _read(path)
        if head == "keep":
            return cls(tensors["scalar"], float(tensors["bias"]))
        size = len(tensors["policy"])
        return cls.create(size, 7) if head == "random" else cls(torch.zeros(size).double())

    def save(self, path: str | Path) -> None:
        _write(path, {"scalar": self.weights, "bias": torch.tensor(self.bias).double()})

    def prefix_values(self, tokens: Sequence[int]) -> Tensor:
        """(S,) the value after each token."""
        row = torch.tensor(np.asarray(tokens), dtype=torch.long)
        counts = torch.arange(1, len(row) + 1)
        return self.weights[row].cumsum(0) / counts + self.bias
