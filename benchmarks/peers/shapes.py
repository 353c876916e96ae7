"""Sizes of model and batch at which PPO steps of several programs are compared.

All sides get the same randomly initialised checkpoints and the same prompts. Every prompt has the
same number of tokens, and no response can end early, so that each side does the same work.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
)

PAD, BEGIN, END, UNKNOWN = SPECIAL = ("<pad>", "<begin>", "<end>", "<unknown>")
LEARNING_RATE = 1e-5
PROMPTS = "prompts.jsonl"
SFT, REWARD_MODEL = "sft", "reward_model"
_BIAS_CHANNEL = 0  # of the residual stream: the same positive number for every token


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama, and a PPO step of it."""

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    vocabulary: int
    sequences: int  # of a step
    minibatch: int  # sequences of an optimizer step
    prompt_tokens: int
    response_tokens: int
    epochs: int = 1

    @property
    def positions(self) -> int:
        """Tokens of a sequence."""
        return self.prompt_tokens + self.response_tokens

    @property
    def kv_cache_mib(self) -> int:
        """Room for all sequences of a step in an engine, with as much again for partial blocks."""
        numbers = 2 * self.layers * self.hidden_size * (self.positions + 32) * self.sequences
        return max(64, 2 * 4 * numbers >> 20)


SHAPES = {
    "tiny": Shape(128, 2, 4, 336, 512, sequences=8, minibatch=8,
                  prompt_tokens=16, response_tokens=24),
    "pocket": Shape(128, 4, 4, 352, 512, sequences=128, minibatch=32,
                    prompt_tokens=16, response_tokens=24),
    "llama_70m": Shape(512, 12, 8, 1376, 32_000, sequences=16, minibatch=8,
                       prompt_tokens=32, response_tokens=64),
}  # fmt: skip


def run_keys(shape: Shape, folder: Path, steps: int) -> list[str]:
    """The command line of `python -m orchestrator.run` for PPO at this shape.

    Args:
        folder: What `make_inputs` wrote.
        steps: PPO iterations.
    """
    folder = folder.resolve()
    same_rate = [
        f"algorithm.{role}_optimizer.{key}={value}"
        for role in ("policy", "critic")
        for key, value in (("learning_rate", LEARNING_RATE), ("warmup_steps", 0))
    ]
    return [
        "model=checkpoint", "data=files", "stages=[ppo]", "model.gradient_checkpointing=false",
        f"model.checkpoints.sft={folder / SFT}",
        f"model.checkpoints.reward_model={folder / REWARD_MODEL}",
        f"data.files.prompts={folder / PROMPTS}",
        f"data.files.max_prompt_tokens={shape.prompt_tokens}",
        f"rollout.max_prompt_tokens={shape.prompt_tokens}",
        f"rollout.max_response_tokens={shape.response_tokens}",
        f"rollout.max_concurrent_sequences={shape.sequences}",
        f"rollout.kv_cache_mib={shape.kv_cache_mib}",
        f"algorithm.iterations={steps}", f"algorithm.prompts_per_iteration={shape.sequences}",
        f"algorithm.sequences_per_minibatch={shape.minibatch}", f"algorithm.epochs={shape.epochs}",
        "algorithm.evaluate_every=0", *same_rate,
    ]  # fmt: skip


def make_inputs(folder: Path, shape: Shape, steps: int, seed: int = 0) -> None:
    """Write the models (policy and reference: sft; reward and critic: reward_model) and prompts.

    Args:
        steps: PPO steps for which there are different prompts.
        seed: Fixes weights and prompts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = LlamaForCausalLM(config)
        _never_special(policy)
        scalar = LlamaForTokenClassification(config)
        prompts = torch.randint(
            len(SPECIAL), shape.vocabulary, (steps * shape.sequences, shape.prompt_tokens)
        ).tolist()
    tokenizer = _tokenizer(shape.vocabulary)
    for name, model in ((SFT, policy), (REWARD_MODEL, scalar)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    lines = [json.dumps({"prompt": " ".join(_word(token) for token in p)}) for p in prompts]
    (folder / PROMPTS).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _config(shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=2 * shape.positions,
        tie_word_embeddings=False,
        initializer_range=max(0.02, shape.hidden_size**-0.5 / 2),
        pad_token_id=SPECIAL.index(PAD),
        bos_token_id=SPECIAL.index(BEGIN),
        eos_token_id=SPECIAL.index(END),
        num_labels=1,  # pyright: ignore[reportCallIssue]
        dtype="float32",
    )


@torch.no_grad()
def _never_special(model: Any) -> None:
    """Give special tokens logits far below all others, whatever the text.

    So no response ends early, and none contains what some programs take for padding. One channel
    of the residual stream is the same positive number everywhere: embeddings set it, no layer
    writes to it, and the output layer reads it for the special tokens alone.
    """
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    embeddings[:, _BIAS_CHANNEL] = 10 * embeddings.std()
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[_BIAS_CHANNEL] = 0.0
        layer.mlp.down_proj.weight[_BIAS_CHANNEL] = 0.0
    head[:, _BIAS_CHANNEL] = 0.0
    head[: len(SPECIAL)] = 0.0
    head[: len(SPECIAL), _BIAS_CHANNEL] = -100.0


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word per token, so that the number of words is that of tokens."""
    words = {name: i for i, name in enumerate(SPECIAL)}
    words |= {_word(i): i for i in range(len(SPECIAL), vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BEGIN, eos_token=END,
        unk_token=UNKNOWN, padding_side="left",
    )  # fmt: skip


def _word(token: int) -> str:
    return f"w{token}"
