"""The interface of generation engines, and the checks and records that they share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from workers.errors import DataError, WeightSyncError
from workers.model_folders.weight_files import OUTPUT_LAYERS, bare_name
from workers.records.arrays import IntArray, Ragged
from workers.records.generation import Finish, GenerationRequest, RolloutBatch, Sampling
from workers.records.weights import GroupAddress, WeightOffer

if TYPE_CHECKING:
    from workers.records.specs import RolloutSpec


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence to sample: prompt token ids and the seed of its random stream."""

    prompt: tuple[int, ...]
    seed: int
    max_tokens: int | None = None  # None = as `Sampling` says


@dataclass(frozen=True, slots=True)
class Generated:
    """One sampled response, end-of-sequence token included."""

    tokens: Sequence[int]
    logprobs: Sequence[float]  # nats, one per token, after temperature
    finish: Finish


class GenerationEngine(Protocol):
    """Samples responses with weights that can be replaced while no sample is active."""

    @property
    def running(self) -> bool:
        """Whether samples are active."""
        ...

    def add(self, samples: Sequence[Sample], sampling: Sampling) -> list[int]:
        """Add samples to the active ones; returns a unique number per sample.

        Temperature 0 is greedy, with logprobs at temperature 1.
        """
        ...

    def step(self) -> list[tuple[int, Generated]]:
        """Draw a token of every scheduled sample; returns the samples that finished."""
        ...

    def drop(self, numbers: Collection[int]) -> list[tuple[int, Generated]]:
        """Abort samples; returns the tokens drawn of each, if the engine keeps them."""
        ...

    @property
    def asleep(self) -> bool:
        """Whether any of its GPU memory is released."""
        ...

    def sleep(self) -> None:
        """Release the GPU memory; only while no sample is active.

        Weights move to host memory, cached prefixes are dropped. The calls that need the memory
        take it back: `add` all of it, `receive` that of the weights.
        """
        ...

    def connect(self, address: GroupAddress, group_rank: int) -> None:
        """Join a transfer group and leave the previous one.

        A tensor-parallel engine takes the ranks from `group_rank` upward.
        """
        ...

    def receive(self, offer: WeightOffer) -> str:
        """Replace all weights and drop cached prefixes; returns the checksum of the received bytes.

        After an error, weights of two versions may be mixed, and the engine must be restarted.
        """
        ...

    def close(self) -> None:
        """Free the model and stop every process of the engine."""
        ...


def require_complete(offer: WeightOffer, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise WeightSyncError unless an offer has every weight of the model, in its shape.

    Engines accept partial updates silently and would then mix the weights of two versions.

    Args:
        offer: The weights to be sent.
        shapes: Of every weight, by its name within the body of the model.
    """
    arriving = [(bare_name(m.name), m.shape) for m in offer.metas]
    offered = {n: shape for n, shape in arriving if n in shapes or n not in OUTPUT_LAYERS}
    wrong = sorted(
        name for name in offered.keys() | shapes.keys() if offered.get(name) != shapes.get(name)
    )
    if wrong:
        first = wrong[0]
        raise WeightSyncError(
            f"{len(wrong)} weights do not fit the model: {first} is {shapes.get(first, 'unknown')} "
            f"in the engine and {offered.get(first, 'missing')} in the update",
            where=f"update to version {offer.version}",
            fix="send every weight of the architecture that the engine was started with",
        )


def require_fitting(
    requests: Sequence[GenerationRequest], sampling: Sampling, spec: RolloutSpec, vocabulary: int
) -> None:
    """Raise DataError for requests that the engine cannot process."""
    for request in requests:
        tokens, where = request.prompt_tokens, f"prompt {request.prompt_id}"
        most = spec.max_prompt_tokens
        if request.max_tokens:  # a later turn: the prompt is a conversation
            most += spec.max_response_tokens - request.max_tokens
        if not 0 < len(tokens) <= most:
            raise DataError(
                f"{len(tokens)} prompt tokens, allowed are 1 to {most}",
                where=where,
                fix="drop the prompt, or raise rollout.max_prompt_tokens",
            )
        if min(tokens) < 0 or max(tokens) >= vocabulary:
            raise DataError(
                f"token ids {min(tokens)} to {max(tokens)} outside the vocabulary of {vocabulary}",
                where=where,
                fix="encode prompts with the tokenizer of the policy",
            )
        if len(request.ids) != len(request.seeds):
            raise DataError(f"{len(request.ids)} ids for {len(request.seeds)} seeds", where=where)
    if not 0 < sampling.max_tokens <= spec.max_response_tokens:
        raise DataError(
            f"max_tokens={sampling.max_tokens}, allowed are 1 to {spec.max_response_tokens}",
            fix="raise rollout.max_response_tokens",
        )


def pack(
    requests: Sequence[GenerationRequest],
    results: Sequence[Generated],
    versions: int | IntArray,
) -> RolloutBatch:
    """Build a batch from K results per request.

    Args:
        requests: In the order of the rows.
        results: One per sample, request by request.
        versions: Policy version of all tokens, or (B, 2) versions of the first and last tokens.
    """
    prompts = [r.prompt_tokens for r in requests for _ in r.ids]
    rows = [[*p, *g.tokens] for p, g in zip(prompts, results, strict=True)]
    return RolloutBatch(
        ids=np.array([i for r in requests for i in r.ids], dtype=np.int64),
        prompt_ids=np.array([r.prompt_id for r in requests for _ in r.ids], dtype=np.int64),
        tokens=Ragged.from_rows(rows, np.int32),
        prompt_lengths=np.array([len(p) for p in prompts], dtype=np.int64),
        logprobs=Ragged.from_rows([g.logprobs for g in results], np.float32),
        finish=np.array([g.finish for g in results], dtype=np.int64),
        versions=np.array(np.broadcast_to(versions, (len(rows), 2)), dtype=np.int64),
    )
