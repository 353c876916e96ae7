"""Generation with plain transformers: slow, simple, and the reference for the vLLM engine."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

from workers.errors import ConfigError, RoleError
from workers.generation.engine import Generated, Sample
from workers.model_folders.saved_form import CheckpointFormReader
from workers.model_folders.weight_files import OUTPUT_LAYERS
from workers.models.load import load_causal_lm
from workers.records.generation import Finish, Sampling
from workers.records.specs import RolloutSpec
from workers.records.weights import GroupAddress, WeightOffer
from workers.weights.packing import NamedTensors
from workers.weights.transfer import WeightReceiver
from workers.weights.transport import Link


class TransformersEngine:
    """Samples token by token with a key-value cache, in batches of `max_concurrent_sequences`."""

    def __init__(self, spec: RolloutSpec) -> None:
        self._spec = spec
        self._device = torch.device(spec.device)
        model = load_causal_lm(spec.checkpoint, dtype=spec.dtype)
        torch.nn.Module.to(model, self._device)
        self._model: PreTrainedModel | None = model
        self._reader = CheckpointFormReader(model)
        self._numbers = itertools.count()
        self._batches: list[_Decoding] = []  # processed one after the other
        self._tied = bool(model.config.tie_word_embeddings)
        link = Link(self._device, spec.collective_seconds)
        self._receiver = WeightReceiver(link, spec.transport_folder)

    @property
    def running(self) -> bool:
        """Whether samples are active."""
        return bool(self._batches)

    def add(self, samples: Sequence[Sample], sampling: Sampling) -> list[int]:
        """Queue samples as new batches. Temperature 0 is greedy, with logprobs at temperature 1."""
        model, size = self._require_model(), self._spec.max_concurrent_sequences
        numbers = [next(self._numbers) for _ in samples]
        for n in range(0, len(samples), size):
            some = dict(zip(numbers[n : n + size], samples[n : n + size], strict=True))
            ids = self._spec.vocabulary or None
            self._batches.append(_Decoding(model, self._device, some, sampling, ids))
        return numbers

    def step(self) -> list[tuple[int, Generated]]:
        """One more token of the oldest batch."""
        self._require_model()
        batch = self._batches[0]
        finished = batch.step(self._spec.eos_token_id)
        if not batch.alive:
            del self._batches[0]
        return finished

    def drop(self, numbers: Collection[int]) -> list[tuple[int, Generated]]:
        """Drop samples; returns the tokens drawn of each."""
        drawn = [each for batch in self._batches for each in batch.drop(set(numbers))]
        self._batches = [batch for batch in self._batches if batch.alive]
        return drawn

    @property
    def asleep(self) -> bool:
        """Always False: this engine keeps its memory."""
        return False

    def sleep(self) -> None:
        """Raise ConfigError: torch cannot release the memory of live tensors."""
        raise ConfigError(
            "this engine cannot give its memory away",
            where="rollout.sleep",
            fix="use rollout.engine=vllm, or set rollout.sleep=false",
        )

    def connect(self, address: GroupAddress, group_rank: int) -> None:
        """Join a transfer group as one receiver; leaves the previous group."""
        self._receiver.connect(address, group_rank)

    def receive(self, offer: WeightOffer) -> str:
        """Copy the offered weights into the model; returns the checksum of the received bytes."""
        for bucket in self._receiver.receive(offer):
            self._load(bucket)
        return self._receiver.checksum

    def close(self) -> None:
        """Free the model."""
        self._receiver.close()
        self._model = None
        del self._reader

    def _load(self, bucket: NamedTensors) -> None:
        self._require_model()
        # Skip a tied output layer: it is the embedding, which is sent too.
        self._reader.read([(n, t) for n, t in bucket if not (self._tied and n in OUTPUT_LAYERS)])

    def _require_model(self) -> PreTrainedModel:
        if self._model is None:
            raise RoleError("engine is closed")
        return self._model


class _Decoding:
    """One batch, token by token; tokens of finished rows are ignored until the last row ends."""

    def __init__(
        self,
        model: PreTrainedModel,
        device: torch.device,
        numbered: Mapping[int, Sample],
        sampling: Sampling,
        ids: int | None,  # only tokens below this are drawn; None = all
    ) -> None:
        samples = list(numbered.values())
        self._model = model
        self._ids = ids
        self._numbers = list(numbered)  # of the rows
        self._temperature = sampling.temperature
        self._allowed = list(sampling.allowed)
        self._limits = [s.max_tokens or sampling.max_tokens for s in samples]
        self._samples = samples
        self._device = device
        self._cache: DynamicCache | None = None
        self._drawn: list[tuple[list[int], list[float]]] = [([], []) for _ in samples]
        self.alive = set(range(len(samples)))

    @torch.inference_mode()
    def step(self, eos: int) -> list[tuple[int, Generated]]:
        """Draw one token per row; returns the rows that finished."""
        if self._cache is None:
            self._begin()
        logits = self._model(
            input_ids=self._tokens,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1, : self._ids]
        if self._allowed:
            others = torch.full_like(logits, -torch.inf)
            others[:, self._allowed] = logits[:, self._allowed]
            logits = others
        token, logprob = _draw(logits, self._temperature, self._generators)
        self._tokens, self._positions = token[:, None], self._positions[:, -1:] + 1
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        return self._note(token.tolist(), logprob.tolist(), eos)

    def drop(self, numbers: set[int]) -> list[tuple[int, Generated]]:
        """Finish rows early; returns their tokens so far."""
        rows = [row for row in sorted(self.alive) if self._numbers[row] in numbers]
        self.alive -= set(rows)
        return [(self._numbers[row], self._result(row, Finish.ABORT)) for row in rows]

    def _begin(self) -> None:
        self._cache = DynamicCache()
        self._generators = [
            torch.Generator(self._device).manual_seed(s.seed) for s in self._samples
        ]
        self._tokens, self._mask, self._positions = _left_padded(self._samples, self._device)

    def _note(
        self, tokens: list[int], logprobs: list[float], eos: int
    ) -> list[tuple[int, Generated]]:
        finished: list[tuple[int, Generated]] = []
        for row in sorted(self.alive):
            own_tokens, own_logprobs = self._drawn[row]
            own_tokens.append(tokens[row])
            own_logprobs.append(logprobs[row])
            ended = tokens[row] == eos
            if ended or len(own_tokens) == self._limits[row]:
                self.alive.remove(row)
                finish = Finish.STOP if ended else Finish.LENGTH
                finished.append((self._numbers[row], self._result(row, finish)))
        return finished

    def _result(self, row: int, finish: Finish) -> Generated:
        return Generated(*self._drawn[row], finish)


def _left_padded(
    samples: Sequence[Sample], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, mask (1 = real) and positions, each (B, S), prompts aligned right."""
    width = max(len(s.prompt) for s in samples)
    tokens = torch.zeros(len(samples), width, dtype=torch.long)
    mask = torch.zeros(len(samples), width, dtype=torch.long)
    for i, sample in enumerate(samples):
        tokens[i, width - len(sample.prompt) :] = torch.tensor(sample.prompt)
        mask[i, width - len(sample.prompt) :] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return tokens.to(device), mask.to(device), positions.to(device)


def _draw(
    logits: torch.Tensor, temperature: float, generators: Sequence[torch.Generator]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token (B,) and its logprob (B,) from logits (B, V), each row with its own generator."""
    scaled = logits.float() / (temperature or 1.0)
    logprobs = scaled.log_softmax(dim=-1)
    if temperature == 0:
        token = logprobs.argmax(dim=-1)
    else:  # argmax of p / e with e ~ Exp(1) is a draw from p
        noise = torch.stack(
            [
                torch.empty_like(row).exponential_(generator=g)
                for row, g in zip(scaled, generators, strict=True)
            ]
        )
        token = (logprobs - noise.log()).argmax(dim=-1)
    return token, logprobs.gather(1, token[:, None]).squeeze(1)
