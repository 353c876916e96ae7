"""Answers of a trained model, in this process."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path


def generate(
    model: str | Path,
    prompts: Sequence[str | Sequence[Mapping[str, str]]],
    *,
    max_tokens: int = 0,
    temperature: float | None = None,
    seed: int = 0,
) -> list[str]:
    """Answers of a model, sampled with transformers on the CPU; `rehearsal serve` is the fast way.

    Args:
        model: A Hugging Face folder, such as `run.models["ppo"]`.
        prompts: Each a text, which is continued as it is, or a dialogue as messages with `role` and
            `content`, which the model's chat template renders.
        max_tokens: Longest answer; 0 = as the model was trained (generation_config.json).
        temperature: 0 takes the likeliest token; None = as in training.
        seed: The same seed, model and prompts give the same answers on the same machine.

    Raises:
        MissingCheckpointError: There is no such folder.
        BrokenCheckpointError: It holds no whole model, or no tokenizer.
        ConfigError: A dialogue, and the model has no chat template; a value that is out of range.
    """
    with warnings.catch_warnings():  # tqdm, in a notebook without widgets
        warnings.filterwarnings("ignore", message="IProgress not found")
        from workers.generation.answers import answers

    return answers(str(model), prompts, max_tokens, temperature, seed)
