"""Greedy answers of a model in training, by transformers' own generation.

A look at a few answers at the end of a stage that has no engines. Rollouts come from engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from workers.records.arrays import IntArray


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel,
    prompts: Sequence[IntArray],
    *,
    limit: int,
    stop: int,
    vocabulary: int,
    device: torch.device | str,
) -> list[IntArray]:
    """The most probable next token, again and again, after each prompt.

    At ZeRO 3 all ranks must call this with the same prompts.

    Args:
        model: In evaluation mode.
        prompts: Token ids of each.
        limit: Most tokens per answer.
        stop: The id that ends an answer; it is not part of the result.
        vocabulary: Ids of this value and above are no tokens and never chosen; 0 = no limit.
        device: Of the model.

    Returns:
        Token ids of each answer.
    """
    rows: Any = model.get_input_embeddings().weight
    size = int(getattr(rows, "ds_shape", rows.shape)[0])  # at ZeRO 3 `shape` is that of a part
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=stop,
        pad_token_id=stop,
        suppress_tokens=list(range(vocabulary, size)) if 0 < vocabulary < size else None,
    )
    return [_answer(model, prompt, settings, device) for prompt in prompts]


def _answer(
    model: PreTrainedModel,
    prompt: IntArray,
    settings: GenerationConfig,
    device: torch.device | str,
) -> IntArray:
    ids = torch.as_tensor(np.asarray(prompt, np.int64), device=device)[None]
    generate: Any = model.generate
    whole = generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    found = whole[0, ids.shape[1] :].cpu().numpy()
    ends = np.flatnonzero(found == settings.eos_token_id)
    return found[: int(ends[0])] if len(ends) else found
