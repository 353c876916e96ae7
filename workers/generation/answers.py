"""Answers of a model folder by transformers' own generation, for a few prompts at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from workers.data.tokenize.tokenizers import detokenize, load_tokenizer
from workers.errors import ConfigError
from workers.models.load import load_causal_lm

Asked = str | Sequence[Mapping[str, str]]  # a text to continue, or messages of a dialogue
_BATCH = 16  # prompts at a time
_LONGEST = 256  # tokens of an answer, where neither the caller nor the folder says


def answers(
    folder: str, prompts: Sequence[Asked], max_tokens: int, temperature: float | None, seed: int
) -> list[str]:
    """One answer per prompt, in order; `orchestrator.api.generate` documents the arguments.

    Raises:
        MissingCheckpointError, BrokenCheckpointError: The folder is not there or not whole.
        ConfigError: A prompt or a value that cannot be used.
    """
    if isinstance(prompts, str):
        raise _wrong("prompts", "one text, not a sequence of prompts", 'write ["..."] around it')
    if max_tokens < 0 or (temperature is not None and not 0 <= temperature < math.inf):
        raise _wrong("max_tokens, temperature", "out of range", "give numbers of at least 0")
    tokenizer = load_tokenizer(folder)
    rows = [_token_ids(tokenizer, prompt, number) for number, prompt in enumerate(prompts)]
    model = load_causal_lm(folder, dtype="float32")
    own = model.generation_config
    longest = max_tokens or (own.max_new_tokens if own is not None else None) or _LONGEST
    options: dict[str, Any] = {"max_new_tokens": longest}
    if temperature is not None:
        options |= {"do_sample": temperature > 0}
        if temperature > 0:
            options |= {"temperature": float(temperature)}
    end, draw = cast(int, tokenizer.eos_token_id), cast(Any, model).generate
    found: list[str] = []
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        for start in range(0, len(rows), _BATCH):
            ids, mask = _left_padded(rows[start : start + _BATCH], end)
            drawn = draw(input_ids=ids, attention_mask=mask, pad_token_id=end, **options)
            found += [detokenize(tokenizer, row) for row in drawn[:, ids.shape[1] :].tolist()]
    return found


def _token_ids(tokenizer: PreTrainedTokenizerBase, prompt: Asked, number: int) -> list[int]:
    where = f"prompts[{number}]"
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
    else:
        text = _rendered(tokenizer, prompt, where)
        ids = tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise _wrong(where, "a prompt without a token", "write a question")
    return list(ids)


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], where: str
) -> str:
    """A dialogue as text up to the assistant's turn."""
    turns = [dict(turn) for turn in messages]
    if not turns or not all({"role", "content"} <= turn.keys() for turn in turns):
        raise _wrong(where, "messages without role and content", 'write {"role": "user", ...}')
    if not tokenizer.chat_template:
        raise _wrong(where, "a dialogue, and the model has no chat template", "give a text")
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert isinstance(text, str)
    return text


def _left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, each (rows, longest), padded on the left: True = a token."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _wrong(where: str, what: str, fix: str) -> ConfigError:
    return ConfigError(what, where=where, fix=fix)
