"""Every ZeRO stage on one and two ranks trains as plain PyTorch does."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trainer_oracle as oracle
import trainer_ranks as ranks
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from workers.models.load import load_causal_lm, load_scalar
from workers.pocket.tokenizer import build_tokenizer

WORLDS = (1, 2)
STAGES = (1, 2, 3)
EVERY = [(world, stage) for world in WORLDS for stage in STAGES]


def _start(world: int, folder: Path) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    return [
        subprocess.Popen(
            [sys.executable, ranks.__file__, *map(str, (rank, world, port, folder)), "[1, 2, 3]"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"stderr-{world}-{rank}").open("wb"),
        )
        for rank in range(world)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base model, reward model, and what the ranks of both worlds left behind."""
    path = tmp_path_factory.mktemp("trainers")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=ranks.VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path / "base")
    build_tokenizer().save_pretrained(path / "base")
    reward = load_scalar(str(path / "base"), dtype="float32", head="random", seed=5)
    with torch.no_grad():
        reward.score.bias.fill_(0.3)
    reward.save_pretrained(path / "reward")
    processes = [process for world in WORLDS for process in _start(world, path)]
    try:
        for process in processes:
            process.wait(timeout=240)
    finally:
        for process in processes:
            process.kill()
    failed = [p.args for p in processes if p.returncode]
    notes = "\n".join(f.read_text()[-3000:] for f in sorted(path.glob("stderr-*")))
    assert not failed, notes
    return path


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[tuple[int, str, int], list[dict[str, Any]]]:
    """(world, role, stage) -> one record a rank."""
    found: dict[tuple[int, str, int], list[dict[str, Any]]] = {}
    for world in WORLDS:
        outs = [
            pickle.loads((folder / f"out-{world}-{rank}.pkl").read_bytes()) for rank in range(world)
        ]
        for role, stage in outs[0]:
            found[world, role, stage] = [out[role, stage] for out in outs]
    return found


def _causal(folder: Path, name: str = "base") -> oracle.Loop:
    return oracle.Loop(AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32))


def _assert_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    for name, p in model.named_parameters():
        torch.testing.assert_close(weights[name], p.detach(), rtol=0, atol=1e-5, msg=name)


def _saved(path: Path, kind: Any) -> torch.nn.Module:
    model, info = kind.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model


def _losses(stats: list[Any]) -> list[tuple[float, float]]:
    return [(s.loss, s.grad_norm) for s in stats]


@pytest.fixture(scope="module")
def supervised(folder: Path) -> tuple[oracle.Loop, list[tuple[float, float]], float]:
    loop = _causal(folder)
    losses = [loop.step(oracle.text_loss(loop)) for _ in range(3)]
    return loop, losses, float(oracle.text_loss(loop).detach())


@pytest.mark.parametrize(("world", "stage"), EVERY)
def test_greedy_answers_take_the_most_probable_token(
    results, supervised, world: int, stage: int
) -> None:
    def after(*tokens: int) -> list[int]:
        row = list(tokens)
        for _ in range(6):
            with torch.no_grad():
                logits = supervised[0].model(torch.tensor([row])).logits[0, -1]
            row.append(int(logits.argmax()))
        return row[len(tokens) :]

    wanted = after(3)
    assert 39 not in wanted + after(1, 4, 2)
    for out in results[world, "policy", stage]:
        assert [each.tolist() for each in out["greedy"]] == [after(1, 4, 2), wanted]
        assert out["stopped"][0].tolist() == wanted[: wanted.index(wanted[2])]


@pytest.mark.parametrize(("world", "stage"), EVERY)
def test_supervised_steps(folder, results, supervised, world, stage) -> None:
    loop, losses, final = supervised
    for out in results[world, "policy", stage]:
        np.testing.assert_allclose(_losses(out["supervised"]), losses, rtol=1e-5)
        assert [s.learning_rate for s in out["supervised"]] == pytest.approx(oracle.RATES[:3])
        assert out["text_loss"].nll / out["text_loss"].tokens == pytest.approx(final, rel=1e-5)
        assert out["text_loss"].tokens == ranks.texts().target_count
        assert out["after_error"].loss == pytest.approx(losses[0][0], rel=1e-5)
    path = folder / f"supervised-{world}-{stage}"
    _assert_weights(loop.model, dict(_saved(path, AutoModelForCausalLM).named_parameters()))
    AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize(("world", "stage"), EVERY)
def test_logprobs_are_those_of_unpadded_rows(folder, results, world, stage) -> None:
    loop = _causal(folder)
    for rank, out in enumerate(results[world, "policy", stage]):
        assert out["logprobs"].ids.tolist() == ranks.work(rank, world).ids.tolist()
        for i, row in zip(out["logprobs"].ids, out["logprobs"].values.rows(), strict=True):
            wanted = oracle.response_logprobs(loop, int(i) - 100).detach().numpy()
            np.testing.assert_allclose(row, wanted, atol=1e-5)


@pytest.fixture(scope="module")
def ppo(folder: Path) -> tuple[oracle.Loop, list[tuple[float, float]], list[float], dict]:
    loop = _causal(folder)
    average = {n: p.detach().clone() for n, p in loop.model.named_parameters()}
    losses, text = [], []
    for _ in range(2):
        policy, ptx = oracle.ppo_loss(loop), oracle.text_loss(loop)
        _, norm = loop.step(policy + 0.5 * ptx)
        losses.append((float(policy), norm))
        text.append(float(ptx))
        for name, p in loop.model.named_parameters():
            average[name] = (average[name] + p.detach()) / 2
    return loop, losses, text, average


@pytest.mark.parametrize(("world", "stage"), EVERY)
def test_ppo_and_pretraining_text_share_a_step(folder, results, ppo, world, stage) -> None:
    loop, losses, text, average = ppo
    outs = results[world, "policy", stage]
    for out in outs:
        np.testing.assert_allclose(_losses(out["ppo"]), losses, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose([s.extra["ptx_loss"] for s in out["ppo"]], text, rtol=1e-5)
        assert out["ppo"] == outs[0]["ppo"]
    published = {name: torch.tensor(w) for name, w in outs[0]["published"].items()}
    _assert_weights(loop.model, published)
    for name, weight in outs[0]["sent"].items():
        np.testing.assert_array_equal(weight, outs[0]["published"][name])
    assert outs[0]["sent"].keys() == outs[0]["published"].keys()
    model = _saved(folder / f"ppo-{world}-{stage}", AutoModelForCausalLM)
    _assert_weights(model, average)


@pytest.mark.parametrize("name", ranks.FURTHER)
def test_every_loss_and_average_is_the_same_on_any_number_of_ranks(folder, results, name) -> None:
    loop, losses = _causal(folder), []
    for _ in range(2):
        policy = oracle.further_loss(loop, name)
        _, norm = loop.step(policy + 0.5 * oracle.text_loss(loop))
        losses.append((float(policy), norm))
    for world, stage in EVERY:
        for out in results[world, "policy", stage]:
            found = _losses(out[f"ppo_{name}"])
            np.testing.assert_allclose(found, losses, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ranks.PREFERENCES)
def test_preference_steps_are_those_of_single_pairs(folder, results, name) -> None:
    loop = _causal(folder)
    losses = [loop.step(oracle.preference_loss(loop, name)) for _ in range(2)]
    for world, stage in EVERY:
        for out in results[world, "policy", stage]:
            found = _losses(out[f"preference_{name}"])
            np.testing.assert_allclose(found, losses, rtol=2e-5, atol=1e-6)
            if name == "simpo":
                after = float(oracle.preference_loss(loop, name))
                assert out["preferred"].loss_sum / 2 == pytest.approx(after, rel=2e-5)


def test_ppo_statistics(folder, results) -> None:
    loop, e = _causal(folder), ranks.experience()
    new = torch.cat([oracle.response_logprobs(loop, i) for i in range(5)]).detach().double()
    log_ratio = new - torch.tensor(e.old_logprobs.values).double()
    advantages = (torch.tensor(e.advantages.values).double() - 0.3) / 1.7
    cut = ((log_ratio.exp() > 1.2) & (advantages > 0)) | (
        (log_ratio.exp() < 0.8) & (advantages < 0)
    )
    entropies = []
    for i in range(5):
        start = int(e.prompt_lengths[i])
        p = (loop.logits(e.tokens.row(i))[start - 1 : -1] / 0.7).softmax(-1).detach()
        entropies.append(-(p * p.log()).sum(-1))
    for world, stage in EVERY:
        extra = results[world, "policy", stage][-1]["ppo"][0].extra
        assert extra["clip_fraction"] == pytest.approx(float(cut.double().mean()), abs=1e-9)
        assert extra["ratio_max"] == pytest.approx(float(log_ratio.exp().max()), rel=1e-4)
        assert extra["ratio_mean"] == pytest.approx(float(log_ratio.exp().mean()), rel=1e-4)
        assert extra["entropy"] == pytest.approx(float(torch.cat(entropies).mean()), rel=1e-4)


@pytest.mark.parametrize(("world", "stage"), EVERY)
def test_what_is_not_finite_stops_every_rank(results, world, stage) -> None:
    # Only one rank holds the sequence; both name it where it can be known.
    for out in results[world, "policy", stage]:
        assert str(ranks.POISON_ID) in out["error"]
        assert "policy loss is not finite" in out["error"]
        assert "the gradient is not finite" in out["gradient_error"]


@pytest.mark.parametrize(("world", "stage"), EVERY)
def test_a_skipped_step_leaves_weights_and_optimizer_alone(results, world, stage) -> None:
    for out in results[world, "policy", stage]:
        loss, gradient = out["skipped"]
        assert not loss.applied
        assert not gradient.applied
        assert loss.culprits == (ranks.POISON_ID,)
        assert gradient.culprits == ()
        assert out["after_skips"] == out["after_error"]


@pytest.fixture(scope="module")
def reward(folder: Path) -> tuple[oracle.Loop, list[tuple[float, float]]]:
    loop = oracle.Loop(load_scalar(str(folder / "base"), dtype="float32", head="random", seed=0))
    losses = [loop.step(oracle.ranking_loss(loop)) for _ in range(2)]
    with torch.no_grad():
        loop.model.score.bias -= 0.75
    losses.append(loop.step(oracle.ranking_loss(loop)))
    return loop, losses


@pytest.mark.parametrize(("world", "stage"), EVERY)
def test_reward_model_steps(folder, results, reward, world, stage) -> None:
    loop, losses = reward
    scores = [float(loop.logits(row)[-1, 0]) for row in ranks.texts().tokens.rows()]
    for out in results[world, "critic", stage]:
        stats = [*out["rankings"], out["after_shift"]]
        np.testing.assert_allclose(_losses(stats), losses, rtol=1e-5)
        np.testing.assert_allclose(out["shift"], 0.75, atol=1e-5)
        np.testing.assert_allclose(out["scores"], scores, atol=2e-5)
        assert (out["pairs"].pairs, out["pairs"].rankings) == (5 + 9, 2)
        assert out["after_shift"].extra["pair_accuracy"] == out["pairs"].correct / 14
        assert out["pairs"].loss_sum / 2 == pytest.approx(losses[2][0], rel=1e-5)
    path = folder / f"reward-{world}-{stage}"
    _assert_weights(
        loop.model, dict(_saved(path, AutoModelForTokenClassification).named_parameters())
    )


@pytest.fixture(scope="module")
def critic(folder: Path) -> tuple[oracle.Loop, list[tuple[float, float]], np.ndarray]:
    loop = oracle.Loop(load_scalar(str(folder / "reward"), dtype="float32"))
    values = torch.cat([oracle.response_values(loop, i) for i in range(5)]).detach().numpy()
    return loop, [loop.step(oracle.value_loss(loop)) for _ in range(2)], values


@pytest.mark.parametrize(("world", "stage"), EVERY)
def test_value_function_steps(folder, results, critic, world, stage) -> None:
    loop, losses, values = critic
    e = ranks.experience()
    explained = 1 - np.var(e.returns.values - values) / np.var(e.returns.values)
    for out in results[world, "critic", stage]:
        np.testing.assert_allclose(_losses(out["value"]), losses, rtol=1e-5)
        assert out["value"][0].extra["explained_variance"] == pytest.approx(explained, rel=1e-4)
        for i, row in zip(out["values"].ids, out["values"].values.rows(), strict=True):
            wanted = values[e.values.offsets[i - 100] : e.values.offsets[i - 99]]
            np.testing.assert_allclose(row, wanted, atol=1e-5)
        assert not out["zero_values"].values.values.any()
    path = folder / f"critic-{world}-{stage}"
    _assert_weights(
        loop.model, dict(_saved(path, AutoModelForTokenClassification).named_parameters())
    )


def test_a_saved_policy_is_what_was_trained(folder) -> None:
    model = load_causal_lm(str(folder / "supervised-2-3"), dtype="float32")
    assert model.config.use_cache  # generation with the saved folder is not slowed down
