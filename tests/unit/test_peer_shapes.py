"""What the peers' benchmark compares: models whose responses cannot end, prompts of one length."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.common import configuration
from benchmarks.peers.shapes import SHAPES, SPECIAL, make_inputs, run_keys

SMALL = replace(SHAPES["tiny"], hidden_size=64, layers=1, heads=2, vocabulary=64)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder, SMALL, steps=3)
    return folder


@pytest.fixture(scope="module")
def policy(inputs: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(inputs / "sft", dtype=torch.float32)


def test_every_prompt_is_another_and_has_the_shape_s_tokens(inputs: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(inputs / "sft")
    lines = (inputs / "prompts.jsonl").read_text().splitlines()
    tokens = [tuple(tokenizer(json.loads(line)["prompt"])["input_ids"]) for line in lines]
    assert len(set(tokens)) == 3 * 8
    assert {len(t) for t in tokens} == {16}
    assert min(min(t) for t in tokens) >= len(SPECIAL)


def test_no_text_gives_a_special_token_a_chance(policy: PreTrainedModel) -> None:
    torch.manual_seed(1)
    ids = torch.randint(0, SMALL.vocabulary, (16, 40))
    chances = policy(input_ids=ids).logits.log_softmax(-1)
    assert chances[..., : len(SPECIAL)].max() < -30  # 1e-13 per token
    assert chances[..., len(SPECIAL) :].min() > -12  # all others stay possible


def test_the_same_seed_writes_the_same_weights(tmp_path: Path, policy: PreTrainedModel) -> None:
    make_inputs(tmp_path, SMALL, steps=1)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "sft", dtype=torch.float32)
    for (name, weight), (_, other) in zip(
        policy.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(weight, other), name


def test_the_run_s_keys_are_those_of_the_shape(inputs: Path) -> None:
    config = configuration(*run_keys(SHAPES["llama_70m"], inputs, 5))
    assert config.algorithm.prompts_per_iteration == 16
    assert config.algorithm.sequences_per_minibatch == 8
    assert config.rollout.max_prompt_tokens == 32
    assert config.rollout.max_response_tokens == 64
    assert config.algorithm.iterations == 5
    assert config.algorithm.policy_optimizer.learning_rate == 1e-5


def test_the_cache_holds_a_step_s_sequences() -> None:
    shape = SHAPES["llama_70m"]
    needed = 16 * 96 * 12 * 2 * 512 * 4  # sequences, tokens, layers, key and value, width, bytes
    assert needed < shape.kv_cache_mib * 2**20 < 4 * needed
