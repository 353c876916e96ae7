"""Step of the child process that starts the run's engine on a tiny model and samples from it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.config.schema import Config
from orchestrator.planning.worker_specs import rollout_spec
from workers.pocket.model import create_model
from workers.pocket.words import EOS, VOCABULARY
from workers.records.generation import GenerationRequest, Sampling
from workers.roles.rollout import RolloutWorker

_TOKENS = 4
_CACHE_BYTES = 16 << 20
_PROMPT = (5, 6, 7)
_HEAD = 64  # supported by every attention kernel


def _generate(config: Config, folder: Path) -> dict[str, Any]:
    began = time.monotonic()
    model = folder / "model"
    create_model(
        model, hidden_size=2 * _HEAD, layers=1, heads=2, kv_heads=2, intermediate_size=2 * _HEAD,
        max_position_embeddings=64, tie_word_embeddings=False, seed=0,
    )  # fmt: skip
    spec = replace(
        rollout_spec(config, str(model), VOCABULARY.index(EOS)),
        max_prompt_tokens=16,
        max_response_tokens=16,
        max_concurrent_sequences=4,
        kv_cache_bytes=_CACHE_BYTES,
        tensor_parallel_size=1,
    )
    worker = RolloutWorker(0)
    worker.start(spec, 1)
    request = GenerationRequest(0, _PROMPT, (0,), (0,))
    batch = worker.generate([request], Sampling(1.0, _TOKENS), 1)
    tokens = len(batch.response(0))
    return {"tokens": tokens, "seconds": round(time.monotonic() - began, 1)}


STEPS = {"generate": _generate}
