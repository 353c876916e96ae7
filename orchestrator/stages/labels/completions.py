"""Several completions per prompt, sampled from a model for ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.session.session import Session
from workers.data.records import Prompt
from workers.records.generation import RolloutBatch


@dataclass(frozen=True, slots=True)
class Completions:
    """Sampled completions of one model."""

    tokens: list[list[list[int]]]  # per prompt, per completion
    batch: RolloutBatch  # all sequences, prompt by prompt


def sample_completions(
    session: Session,
    name: str,
    prompts: Sequence[Prompt],
    counts: Sequence[int],
    stage: str,
    temperature: float,
) -> Completions:
    """`counts[i]` completions of prompt i from model `name`.

    Args:
        session: Of the run.
        name: A checkpoint of the run.
        prompts: Asked where the count is not 0.
        counts: Completions per prompt.
        stage: Names the seeds.
        temperature: Of sampling.
    """
    rollout, version = session.engines_on(session.need(name))
    asked = [n for n, count in enumerate(counts) if count]
    session.live.note(f"sampling {sum(counts):,} completions of {len(asked):,} prompts from {name}")
    requests = session.requests(
        [prompts[n] for n in asked], [counts[n] for n in asked], stage, name
    )
    sampling = replace(session.sampling(), temperature=temperature)
    rollouts = rollout.generate(requests, sampling, version).result()
    batch = rollout.fetch(rollouts).result()
    row = {int(i): n for n, i in enumerate(batch.ids)}
    batch = batch.select(np.array([row[i] for request in requests for i in request.ids]))
    tokens: list[list[list[int]]] = [[] for _ in prompts]
    at = 0
    for n, request in zip(asked, requests, strict=True):
        tokens[n] = [batch.response(at + k) for k in range(len(request.ids))]
        at += len(request.ids)
    return Completions(tokens, batch)
