"""What each training option promises: on two ranks at every ZeRO stage, and on one rank.

Stage 0 stands for the single rank.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import option_ranks as options
import pytest
import torch
import trainer_ranks as ranks
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from workers.models.load import load_causal_lm, load_scalar
from workers.pocket.tokenizer import build_tokenizer

STAGES = (0, 1, 2, 3)
WORLDS = {1: (0,), 2: (1, 2, 3)}  # ranks: stages
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

every_stage = pytest.mark.parametrize("stage", STAGES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model, and what both ranks left behind."""
    path = tmp_path_factory.mktemp("options")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=ranks.VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path / "base")
    build_tokenizer().save_pretrained(path / "base")
    root = str(Path(__file__).parents[2])
    processes: list[subprocess.Popen[bytes]] = []
    for world, stages in WORLDS.items():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes += [
            subprocess.Popen(
                [sys.executable, options.__file__, *map(str, (rank, world, port, path)),
                 str([*stages])],
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
                stdout=(path / f"stdout-{world}-{rank}").open("wb"),
                stderr=(path / f"stderr-{world}-{rank}").open("wb"),
            )
            for rank in range(world)
        ]  # fmt: skip
    try:
        for process in processes:
            process.wait(timeout=280)
    finally:
        for process in processes:
            process.kill()
    notes = "\n".join(f.read_text()[-3000:] for f in sorted(path.glob("stderr-*")))
    assert not any(p.returncode for p in processes), notes
    return path


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[int, dict[str, Any]]]:
    """One record a rank: stage -> name of the run -> what it found; stage 0 in both."""
    alone = pickle.loads((folder / "options-1-0.pkl").read_bytes())
    pair = [pickle.loads((folder / f"options-2-{rank}.pkl").read_bytes()) for rank in range(2)]
    return [each | alone for each in pair]


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(folder / name / "model.safetensors")


def losses(results: list[dict[int, dict[str, Any]]], stage: int, name: str) -> list[float]:
    """What a run reported, the same on both ranks."""
    found = [result[stage][name] for result in results]
    assert found[0] == found[1]
    return found[0]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], atol: float) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("name", ["checkpointing", "rows"])
def test_recomputing_and_splitting_change_no_update(folder, results, name) -> None:
    assert losses(results, 1, name) == pytest.approx(losses(results, 1, "plain"), rel=1e-6)
    assert_same(weights(folder, f"{name}-1"), weights(folder, "plain-1"), 1e-5)


@pytest.mark.parametrize("name", ["plain", "freeze"])
def test_one_rank_trains_what_two_do(folder, results, name) -> None:
    assert losses(results, 0, name) == pytest.approx(losses(results, 1, name), rel=1e-6)
    assert_same(weights(folder, f"{name}-0"), weights(folder, f"{name}-1"), 1e-5)


@pytest.mark.parametrize("name", ["to zero", "from zero"])
def test_one_rank_goes_on_from_a_checkpoint_of_zero_and_back(folder, results, name) -> None:
    kept, found, loss, again = results[0][0][name]
    assert kept.keys() == found.keys()
    for key, (_, values) in kept.items():
        np.testing.assert_array_equal(values, found[key][1], key)
    assert again == pytest.approx(loss, rel=1e-6)
    writer, reader = ("none", "optimizer") if name == "to zero" else ("optimizer", "none")
    one, two = weights(folder, f"from-{writer}-0"), weights(folder, f"to-{reader}-0")
    assert_same(one, two, 1e-6)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_resting_state_changes_no_bit(folder, results, stage) -> None:
    for result in results:
        found = result[stage]["rest"]
        assert found["losses"] == result[stage]["plain"]
        assert found["awake"].keys() == found["resting"].keys()
        for name, (place, values) in found["awake"].items():
            other, kept = found["resting"][name]
            # On a CPU deepspeed copies masters into other memory; moments lie on the host already,
            # as does all the state of a single rank.
            assert (place != other) == (stage > 0 and name.startswith("master/")), name
            np.testing.assert_array_equal(values, kept, name)
    saved, sent = weights(folder, f"rest-{stage}"), results[0][stage]["rest"]["published"]
    assert_same(saved, weights(folder, f"plain-{stage}"), 0)
    assert_same({name: torch.tensor(w) for name, w in sent.items()}, saved, 0)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_master_that_rests_can_be_changed(results, stage) -> None:
    for result in results:
        before, after = result[stage]["rested_critic"]
        np.testing.assert_allclose(before - after, 0.5, atol=1e-6)


def test_the_plan_refuses_what_deepspeed_cannot_move(results) -> None:
    refused = {stage: results[0][stage]["refused_rest"] for stage in STAGES}
    assert refused[0] == {"float32": "", "bfloat16": ""}
    assert refused[1] == {"float32": "", "bfloat16": "AttributeError"}
    assert refused[2] == {"float32": "", "bfloat16": ""}
    assert refused[3] == dict.fromkeys(("float32", "bfloat16"), "AssertionError")


@every_stage
def test_offloading_changes_no_update(folder, results, stage) -> None:
    names = ("offload", "offload_all") if stage == 3 else ("offload",)
    for name in names:
        wanted = losses(results, stage, "plain")
        assert losses(results, stage, name) == pytest.approx(wanted, rel=1e-6)
        assert_same(weights(folder, f"{name}-{stage}"), weights(folder, f"plain-{stage}"), 1e-6)


@every_stage
def test_bf16_follows_fp32(results, stage) -> None:
    out = results[0][stage]["bf16"]
    assert (out["working"], out["master"]) == ("torch.bfloat16", "torch.float32")
    # Half of bf16's 8 bits of precision, over three steps at a rate of 1e-2.
    assert out["losses"] == pytest.approx(losses(results, stage, "plain"), rel=4e-3)
    assert out["losses"][2] < out["losses"][0] - 1


@every_stage
def test_updates_below_the_resolution_of_bf16_add_up(folder, stage) -> None:
    base = {n: w.bfloat16() for n, w in weights(folder, "base").items()}
    one, many = (weights(folder, f"{name}-{stage}") for name in ("tiny-one", "tiny-many"))
    name = "model.layers.0.mlp.up_proj.weight"
    # Weights of about .1 are 2**-11 = 5e-4 apart in bf16; a step moves them by 4e-5.
    assert float((one[name] != base[name]).float().mean()) < 0.15
    assert float((many[name] != base[name]).float().mean()) > 0.5
    # Nor did they jump: what moved, moved by about the sum of the steps, rounded once.
    moved = (many[name].float() - base[name].float()).abs()
    reached = options.TINY_STEPS * options.TINY.learning_rate
    assert float(moved.mean()) == pytest.approx(reached, rel=0.5)


def test_bf16_prints_nothing(folder) -> None:
    assert not (folder / "stdout-2-0").read_text()
    assert not (folder / "stdout-1-0").read_text()


@every_stage
def test_frozen_weights_keep_every_bit(folder, results, stage) -> None:
    base, trained = weights(folder, "base"), weights(folder, f"freeze-{stage}")
    frozen = {n for n in base if n.startswith(("model.embed_tokens", "model.layers.0."))}
    assert len(frozen) == 10
    for name in base:
        assert torch.equal(base[name], trained[name]) == (name in frozen), name


@every_stage
def test_an_adapter_starts_at_the_base_model(results, stage) -> None:
    out = results[0][stage]
    assert out["lora"]["losses"][0] == out["plain"][0]
    assert out["lora"]["start"] == pytest.approx(out["plain"][0] * ranks.texts().target_count)
    assert out["lora"]["losses"][2] < out["lora"]["losses"][0] - 0.3


def adapter(folder: Path, name: str) -> dict[str, Tensor]:
    found = load_file(folder / name / "adapter" / "adapter_model.safetensors")
    return {key.removeprefix("base_model.model."): weight for key, weight in found.items()}


def by_hand(base: Tensor, factors: dict[str, Tensor], layer: str) -> Tensor:
    """W + 12 / 3 * B A in double precision."""
    a, b = (factors[f"{layer}.lora_{x}.weight"].double() for x in "AB")
    return base.double() + 4.0 * torch.einsum("or,ri->oi", b, a)


@pytest.mark.parametrize(
    "name", ["lora-0", "lora-1", "lora-2", "lora-3", "lora-ema-3", "lora-reward-3"]
)
def test_the_merged_folder_is_base_plus_adapter(folder, name) -> None:
    base, merged, factors = weights(folder, "base"), weights(folder, name), adapter(folder, name)
    adapted = 0
    for key, weight in base.items():
        layer = key.removesuffix(".weight")
        if not layer.endswith(LINEAR):
            assert torch.equal(merged[key], weight), key
            continue
        adapted += 1
        assert factors[f"{layer}.lora_A.weight"].shape[0] == 3
        wanted = by_hand(weight, factors, layer)
        assert float((wanted - weight.double()).abs().max()) > 1e-3
        torch.testing.assert_close(merged[key].double(), wanted, rtol=0, atol=1e-6, msg=key)
    assert adapted == 2 * len(LINEAR)
    extra = {"score.weight", "score.bias"} if name == "lora-reward-3" else set()
    assert merged.keys() - base.keys() == extra


@every_stage
def test_only_adapters_have_optimizer_state(results, stage) -> None:
    # A (3, in) and B (out, 3) of each layer: q and o 32x32, k and v 32x16, gate, up and down 32x48.
    each = 2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48)
    assert results[0][stage]["lora"]["state"] == 2 * 3 * each


@every_stage
def test_engines_get_the_merged_weights(folder, results, stage) -> None:
    merged = weights(folder, f"lora-{stage}")
    published = results[0][stage]["lora"]["published"]
    assert published.keys() == merged.keys()
    for name, weight in published.items():
        np.testing.assert_array_equal(weight, merged[name].numpy())


def total_loss(model: torch.nn.Module) -> float:
    batch, total = ranks.texts(), 0.0
    for tokens, targets in zip(batch.tokens.rows(), batch.targets.rows(), strict=True):
        ids = torch.tensor(tokens).long()
        logp = model(input_ids=ids[None]).logits[0].detach().log_softmax(-1)
        total -= sum(float(logp[t - 1, ids[t]]) for t in range(1, len(ids)) if targets[t])
    return total


@every_stage
def test_merged_and_peft_models_are_what_was_trained(folder, results, stage) -> None:
    wanted = results[0][stage]["lora"]["end"]
    merged = load_causal_lm(str(folder / f"lora-{stage}"), dtype="float32")
    assert total_loss(merged) == pytest.approx(wanted, rel=1e-5)
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, str(folder / f"lora-{stage}" / "adapter")).eval()
    assert total_loss(loaded) == pytest.approx(wanted, rel=1e-5)


def test_the_head_of_an_adapted_reward_model_trains(folder, results) -> None:
    rows = [torch.tensor(row).long()[None] for row in ranks.texts().tokens.rows()]
    wanted = results[0][3]["lora_critic"]["scores"]
    path = folder / "lora-reward-3"
    merged = load_scalar(str(path), dtype="float32")
    untrained = load_scalar(str(folder / "base"), dtype="float32", head="random", seed=0)
    assert float((merged.score.weight - untrained.score.weight).detach().abs().min()) > 1e-4
    base = AutoModelForTokenClassification.from_pretrained(
        folder / "base", dtype=torch.float32, num_labels=1
    )
    loaded = PeftModel.from_pretrained(base, str(path / "adapter")).eval()
    for model in (merged, loaded):
        scores = [float(model(input_ids=row).logits[0, -1, 0]) for row in rows]
        np.testing.assert_allclose(scores, wanted, atol=2e-5)


def test_averaged_adapters_average_their_factors(folder) -> None:
    # The same three steps with and without averaging: the average lags behind.
    last, mean = adapter(folder, "lora-3"), adapter(folder, "lora-ema-3")
    name = "model.layers.1.self_attn.q_proj.lora_B.weight"
    assert 0 < float(mean[name].abs().mean()) < float(last[name].abs().mean())


def test_a_load_draws_the_same_whatever_came_before(results) -> None:
    first, second = losses(results, 1, "dropout")
    assert first == second
    assert abs(first - losses(results, 1, "plain")[0]) > 1e-3


def test_a_saved_folder_forgets_the_dropout_of_its_training(folder) -> None:
    model = load_causal_lm(str(folder / "dropout-1"), dtype="float32")
    assert model.config.attention_dropout == 0.0
