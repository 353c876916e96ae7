"""Engines over toy models: what vLLM, transformers and DeepSpeed are to the workers."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fakes.toy import ToyPolicy, ToyScalar
from workers.generation.engine import Generated, Sample
from workers.models.padding import TokenRows, pad_rows
from workers.ops import entropy, token_logprobs
from workers.records.arrays import Ragged
from workers.records.generation import Finish, Sampling
from workers.records.weights import GroupAddress, WeightOffer

RATE = 0.5  # of every gradient step; schedules are the real engine's business


class ToyPasses:
    """Forward passes, as `workers.models.forward.ModelPasses`."""

    packed = False

    def __init__(self, model: ToyPolicy | ToyScalar) -> None:
        self.model: Any = model

    def lay(self, rows: Ragged, device: Any, positions: Ragged | None = None) -> TokenRows:
        return pad_rows(rows, device, positions)

    def logprobs(
        self, rows: TokenRows, cells: Tensor, temperature: float = 1.0, *,
        with_entropy: bool = False, sampled: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        logits = self.model.logits(rows.input_ids.flatten()[cells])
        found = token_logprobs(logits, rows.labels(cells), temperature).float()
        return found, entropy(logits.detach(), temperature).float() if with_entropy else None

    def values(self, rows: TokenRows, cells: Tensor) -> Tensor:
        prefixes = torch.stack([self.model.prefix_values(row) for row in rows.input_ids])
        return prefixes.flatten()[cells].float()


class ToyGeneration:
    """Draws a token of every sequence per step, as `workers.generation.engine.GenerationEngine`.

    `wire` holds the weights on offer, by version.
    """

    asleep = False

    def __init__(self, model: ToyPolicy, eos: int, wire: dict[int, Tensor]) -> None:
        self.model, self._eos, self._wire = model, eos, wire
        self._count = 0
        self._active: dict[int, tuple[Generated, int]] = {}  # whole response, tokens drawn of it

    @property
    def running(self) -> bool:
        return bool(self._active)

    def add(self, samples: Sequence[Sample], sampling: Sampling) -> list[int]:
        numbers = []
        for each in samples:
            self._count += 1
            most = sampling.max_tokens if each.max_tokens is None else each.max_tokens
            whole = self.model.sample(
                each.prompt, each.seed, sampling.temperature, most, self._eos, sampling.allowed
            )
            self._active[self._count] = (whole, 0)
            numbers.append(self._count)
        return numbers

    def step(self) -> list[tuple[int, Generated]]:
        self._active = {n: (whole, drawn + 1) for n, (whole, drawn) in self._active.items()}
        done = [n for n, (whole, drawn) in self._active.items() if drawn == len(whole.tokens)]
        return [(n, self._active.pop(n)[0]) for n in done]

    def drop(self, numbers: Collection[int]) -> list[tuple[int, Generated]]:
        dropped = [(n, *self._active.pop(n)) for n in numbers]
        return [
            (n, Generated(whole.tokens[:drawn], whole.logprobs[:drawn], Finish.ABORT))
            for n, whole, drawn in dropped
        ]

    def connect(self, address: GroupAddress, group_rank: int) -> None:
        pass

    def receive(self, offer: WeightOffer) -> str:
        self.model = ToyPolicy(self._wire[offer.version], self.model.layers)
        return self.model.checksum()

    def sleep(self) -> None:
        pass

    def close(self) -> None:
        pass


class Ring:
    """The ranks of one trainer role; each gives something, and gets what all have given."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._given: list[Any] = [None] * size
        self._barrier = threading.Barrier(size, timeout=60.0)

    def gather(self, rank: int, value: Any) -> list[Any]:
        self._given[rank] = value
        self._barrier.wait()
        found = [*self._given]
        self._barrier.wait()  # nobody gives the next before all have taken this
        return found


class Outcome(NamedTuple):
    """Result of one optimizer step."""

    grad_norm: float
    learning_rate: float
    applied: bool


@dataclass
class ToyTraining:
    """Gradient descent on the sum of all ranks' losses, as `TrainEngine`."""

    model: ToyPolicy | ToyScalar
    rank: int
    ring: Ring
    device = "cpu"

    def __post_init__(self) -> None:
        self.passes = ToyPasses(self.model)

    def mode(self, *, training: bool) -> None:
        pass

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> Outcome:
        weights = self.model.weights
        own = torch.zeros_like(weights) if weights.grad is None else weights.grad
        gradient = torch.stack(self.ring.gather(self.rank, own)).sum(0)
        weights.grad = None
        applied = bool(gradient.isfinite().all())
        if applied:
            with torch.no_grad():
                weights -= RATE * gradient
        return Outcome(float(gradient.norm()), RATE, applied)

    def gather_rows(self, row: Sequence[float]) -> Tensor:
        return torch.tensor(self.ring.gather(self.rank, list(row)), dtype=torch.float64)

    def gather_objects(self, value: object) -> list[Any]:
        return self.ring.gather(self.rank, value)

    def rest(self, *, state: bool) -> None:
        pass

    def close(self) -> None:
        pass
