"""Generation with plain transformers: slow, simple, and the reference for the fast engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

from workers.checkpoint_form import CheckpointFormReader
from workers.errors import RoleError, WeightSyncError
from workers.generation import Generated, Sample
from workers.messages import Finish, GroupAddress, Sampling, WeightOffer
from workers.models import load_causal_lm
from workers.safetensors_folder import OUTPUT_LAYERS
from workers.specs import RolloutSpec
from workers.weight_sync import GroupReceiver, NamedTensors, SharedMemoryReceiver


class TransformersEngine:
    """Samples token by token with a key-value cache, in batches of `max_concurrent_sequences`."""

    def __init__(self, spec: RolloutSpec) -> None:
        self._spec = spec
        self._device = torch.device(spec.device)
        model = load_causal_lm(spec.checkpoint, dtype=spec.dtype)
        torch.nn.Module.to(model, self._device)
        self._model: PreTrainedModel | None = model
        self._reader = CheckpointFormReader(model)
        self._tied = bool(model.config.tie_word_embeddings)
        self._shared = SharedMemoryReceiver()
        self._group: GroupReceiver | None = None

    def generate(self, samples: Sequence[Sample], sampling: Sampling) -> list[Generated]:
        """Sample all, in the order given. Temperature 0 is greedy, with logprobs at 1."""
        size = self._spec.max_concurrent_sequences
        return [
            result
            for first in range(0, len(samples), size)
            for result in self._batch(samples[first : first + size], sampling)
        ]

    def connect(self, address: GroupAddress, group_rank: int) -> None:
        """Join a transfer group as one receiver; leaves the one before."""
        self._leave()
        self._group = GroupReceiver(
            address, group_rank, self._device, self._spec.collective_seconds
        )

    def receive(self, offer: WeightOffer) -> str:
        """Copy the offered weights into the model; gives the checksum of what arrived."""
        if offer.transport == "shm":
            buckets, checksum = self._shared.receive(offer)
            for bucket in buckets:
                self._load(bucket)
            return checksum
        if self._group is None:
            raise WeightSyncError("no transfer group", mend="connect before sending weights")
        for bucket in self._group.receive(offer):
            self._load(bucket)
        return self._group.checksum

    def close(self) -> None:
        """Free the model."""
        self._leave()
        self._model = None
        del self._reader
        self._shared.close()

    def _leave(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None

    def _load(self, bucket: NamedTensors) -> None:
        self._require_model()
        # A tied output layer may come along and is the embedding itself.
        self._reader.read([(n, t) for n, t in bucket if not (self._tied and n in OUTPUT_LAYERS)])

    def _require_model(self) -> PreTrainedModel:
        if self._model is None:
            raise RoleError("engine is closed")
        return self._model

    @torch.inference_mode()
    def _batch(self, samples: Sequence[Sample], sampling: Sampling) -> list[Generated]:
        model, eos = self._require_model(), self._spec.eos_token_id
        generators = [torch.Generator(self._device).manual_seed(s.seed) for s in samples]
        tokens, mask, positions = self._left_padded(samples)
        cache, alive = DynamicCache(), torch.ones(len(samples), dtype=torch.bool)
        drawn: list[torch.Tensor] = []
        logprobs: list[torch.Tensor] = []
        while len(drawn) < sampling.max_tokens and bool(alive.any()):
            logits = model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            token, logprob = _draw(logits, sampling.temperature, generators)
            drawn.append(token.cpu())
            logprobs.append(logprob.cpu())
            alive &= drawn[-1] != eos
            tokens, positions = token[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(samples), 1)], dim=1)
        columns = torch.stack(drawn, dim=1).tolist(), torch.stack(logprobs, dim=1).tolist()
        return [_cut(t, p, eos) for t, p in zip(*columns, strict=True)]

    def _left_padded(
        self, samples: Sequence[Sample]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids, mask (True = real) and positions, each (B, S), prompts flush right."""
        width = max(len(s.prompt) for s in samples)
        tokens = torch.zeros(len(samples), width, dtype=torch.long)
        mask = torch.zeros(len(samples), width, dtype=torch.long)
        for i, sample in enumerate(samples):
            tokens[i, width - len(sample.prompt) :] = torch.tensor(sample.prompt)
            mask[i, width - len(sample.prompt) :] = 1
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return tokens.to(self._device), mask.to(self._device), positions.to(self._device)


def _draw(
    logits: torch.Tensor, temperature: float, generators: Sequence[torch.Generator]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token (B,) and its logprob (B,) from logits (B, V), each row from its own stream."""
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


def _cut(tokens: list[int], logprobs: list[float], eos: int) -> Generated:
    if eos not in tokens:
        return Generated(tokens, logprobs, Finish.LENGTH)
    end = tokens.index(eos) + 1
    return Generated(tokens[:end], logprobs[:end], Finish.STOP)
