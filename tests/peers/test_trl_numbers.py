"""Losses and advantages beside those of TRL, an independent implementation, on the same tensors.

TRL is no dependency. It is taken from the environment that `python -m benchmarks.peers` made (its
`--cache`, or the folder that REHEARSAL_PEERS names); without one, these tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.peers.environments import default_cache, installed
from workers.ops import ResponseTokens, token_logprobs
from workers.ops.preferences import Preference, implicit_rewards, preference_loss
from workers.pocket.model import create_model
from workers.records.specs import PartSpec, PolicyLossSpec
from workers.records.training import StepWork, Work
from workers.training.estimator import Sequences, find_estimator, sequence_numbers
from workers.training.policy_loss import batch_loss

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CLOSE = {"abs": 1e-6, "rel": 0.0}
PAIRS, LENGTH, WORDS = 5, 9, 11
ROWS, TOKENS, LONGEST = 6, 7, 16
# Deviations of a thousand, beside which the two constants that guard a division by 0 (ours 1e-6,
# TRL's 1e-4) vanish.
REWARDS = [3000.0, 1000.0, -2000.0, 500.0, 1200.0, 1100.0, -900.0, 4000.0]


def _preferences(equal: bool) -> dict[str, Any]:
    """Logits of PAIRS better and as many worse completions, after prompts of two tokens."""
    generator = torch.Generator().manual_seed(1)
    rows = 2 * PAIRS
    lengths = torch.randint(1, LENGTH - 1, (rows,), generator=generator)
    ends = torch.full((rows,), LENGTH) if equal else 2 + lengths
    at = torch.arange(LENGTH)
    return {
        "logits": torch.randn(rows, LENGTH, WORDS, generator=generator, dtype=torch.float64),
        "tokens": torch.randint(0, WORDS, (rows, LENGTH), generator=generator),
        "mask": ((at >= 2) & (at < ends.unsqueeze(1))).long(),
        "reference": -20.0 * torch.rand(rows, generator=generator, dtype=torch.float64),
    }


def _policies(tokens: int = TOKENS) -> dict[str, Any]:
    """Log-probabilities before and after some updates, some of them beyond every bound."""
    generator = torch.Generator().manual_seed(2)
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    old = -3.0 * torch.rand(ROWS, tokens, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, tokens + 1, (ROWS,), generator=generator)
    return {
        "old": old,
        "logprobs": old + 0.4 * draw(ROWS, tokens),
        "reference": old + 0.3 * draw(ROWS, tokens),
        "advantages": draw(ROWS),
        "mask": (torch.arange(tokens) < lengths.unsqueeze(1)).long(),
    }


UNEQUAL, EQUAL, POLICY, SINGLE = _preferences(False), _preferences(True), _policies(), _policies(1)
# Name -> tensors, what TRL is told, and our loss.
PREFERENCES: dict[str, tuple[dict[str, Any], dict[str, Any], Preference]] = {
    "dpo": (UNEQUAL, {"of": "preference", "kind": "sigmoid"}, Preference("dpo", 0.3)),
    "robust dpo": (
        UNEQUAL,
        {"of": "preference", "kind": "robust", "smoothing": 0.1},
        Preference("dpo", 0.3, label_smoothing=0.1, robust=True),
    ),
    # TRL divides the log-ratios by the lengths, and we sum as the paper's equation does: with n
    # tokens in every completion, tau / n here is n^2 times its loss at tau.
    "ipo": (EQUAL, {"of": "preference", "kind": "ipo"}, Preference("ipo", 0.3 / (LENGTH - 2))),
    "simpo": (UNEQUAL, {"of": "simpo", "margin": 0.7}, Preference("simpo", 0.3, margin=0.7)),
    "smoothed simpo": (
        UNEQUAL,
        {"of": "simpo", "margin": 0.7, "smoothing": 0.1},
        Preference("simpo", 0.3, margin=0.7, label_smoothing=0.1),
    ),
}
CLIP = {"level": "token", "low": 0.2, "high": 0.2, "beta": 0.0, "longest": LONGEST}
POLICIES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "grpo": (POLICY, {"kind": "grpo"}, {"aggregate": "sequences"}),
    "grpo with its KL": (
        POLICY,
        {"kind": "grpo", "beta": 0.04},
        {"aggregate": "sequences", "kl_coefficient": 0.04},
    ),
    "dr_grpo": (POLICY, {"kind": "dr_grpo"}, {"aggregate": "constant"}),
    "dapo": (POLICY, {"kind": "dapo", "high": 0.28}, {"aggregate": "tokens", "clip_high": 0.28}),
    "gspo": (
        POLICY,
        {"kind": "grpo", "level": "sequence", "low": 0.03, "high": 0.04},
        {"aggregate": "sequences", "policy_loss": "gspo", "clip": 0.03, "clip_high": 0.04},
    ),
    # TRL's bound is that of the ratio itself.
    "cispo": (
        POLICY,
        {"kind": "cispo", "high": 1.3},
        {"aggregate": "tokens", "policy_loss": "cispo", "clip": 1.0, "clip_high": 0.3},
    ),
    # TRL clips the ratio of a whole sequence, and we clip those of tokens: the same for one token.
    "rloo of single tokens": (SINGLE, {"kind": "rloo"}, {"aggregate": "sequences"}),
}
ADVANTAGES = {"grpo": ("grpo", "group"), "dr_grpo": ("grpo", "none"), "rloo": ("rloo", "")}


def _plain(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def _cases(folder: Path) -> dict[str, Any]:
    create_model(
        folder / "model", hidden_size=32, layers=1, heads=1, kv_heads=1, intermediate_size=32,
        max_position_embeddings=64, tie_word_embeddings=True, seed=0,
    )  # fmt: skip
    cases: dict[str, Any] = {}
    for name, (tensors, told, _) in PREFERENCES.items():
        cases[name] = _plain(tensors) | {"beta": 0.3, "smoothing": 0.0} | told
    for name, (tensors, told, _) in POLICIES.items():
        cases[name] = {"of": "policy"} | _plain(tensors) | CLIP | told
    for name, (kind, scale) in ADVANTAGES.items():
        cases[f"advantages {name}"] = {
            "of": "advantages", "kind": kind, "scale": scale, "rewards": REWARDS, "samples": 4,
            "model": str(folder / "model"), "prompt": "copy the",
        }  # fmt: skip
    return cases


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What TRL computes of every case."""
    cache = Path(os.environ.get("REHEARSAL_PEERS") or default_cache())
    python = installed("trl", cache)
    if python is None:
        pytest.skip(f"no environment of TRL in {cache}: python -m benchmarks.peers makes it")
    folder = tmp_path_factory.mktemp("trl")
    cases, found = folder / "cases.json", folder / "numbers.json"
    cases.write_text(json.dumps(_cases(folder)), encoding="utf-8")
    script = Path(__file__).with_name("trl_numbers.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), str(script), str(cases), str(found)],
        capture_output=True, text=True, check=False, timeout=240, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(found.read_text(encoding="utf-8"))


def _ours(tensors: dict[str, Any], preference: Preference) -> tuple[Tensor, Tensor]:
    """Mean loss of the pairs, and its gradient with respect to the logits."""
    logits = tensors["logits"].clone().requires_grad_()
    mask = tensors["mask"][:, 1:]
    logprobs = token_logprobs(logits[:, :-1], tensors["tokens"][:, 1:])
    sums = torch.where(mask.bool(), logprobs, 0.0).sum(1)
    reference = None if preference.loss == "simpo" else tensors["reference"]
    rewards = implicit_rewards(sums, reference, mask.sum(1), preference)
    ranks = torch.tensor([1, 2])
    pairs = [rewards[[n, n + PAIRS]] for n in range(PAIRS)]
    loss = torch.stack([preference_loss(pair, ranks, preference) for pair in pairs]).mean()
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("name", PREFERENCES)
def test_preference_losses_and_gradients_are_trls(numbers: dict[str, Any], name: str) -> None:
    tensors, _, preference = PREFERENCES[name]
    loss, gradient = _ours(tensors, preference)
    scale = (LENGTH - 2) ** 2 if name == "ipo" else 1
    assert loss.item() / scale == pytest.approx(numbers[name]["loss"], **CLOSE)
    theirs = torch.tensor(numbers[name]["gradient"], dtype=torch.float64)
    assert (gradient / scale - theirs).abs().max() < 1e-6
    assert theirs.abs().max() > 1e-3


@pytest.mark.parametrize("name", POLICIES)
def test_policy_losses_and_gradients_are_trls(numbers: dict[str, Any], name: str) -> None:
    tensors, _, told = POLICIES[name]
    logprobs, mask = tensors["logprobs"].clone().requires_grad_(), tensors["mask"].bool()
    lengths = mask.sum(1)
    owner = torch.arange(ROWS).repeat_interleave(lengths)
    spec = {"clip": 0.2, "temperature": 1.0, "advantage_mean": 0.0, "advantage_std": 1.0} | told
    spec["policy_loss"] = PartSpec(told.get("policy_loss", "clip"))
    loss = PolicyLossSpec(**spec, max_response_tokens=LONGEST)
    found = batch_loss(
        ResponseTokens(
            logprobs[mask], tensors["old"][mask], tensors["advantages"][owner], owner, lengths
        ),
        tensors["reference"][mask] if loss.kl_coefficient else None,
        None,
        loss,
        StepWork(Work(()), int(lengths.sum()), ROWS),
    )
    value = found.policy if found.kl is None else found.policy + loss.kl_coefficient * found.kl
    (gradient,) = torch.autograd.grad(value, logprobs)
    assert bool(found.clipped.any())
    assert value.item() == pytest.approx(numbers[name]["loss"], **CLOSE)
    theirs = torch.tensor(numbers[name]["gradient"], dtype=torch.float64)
    assert (gradient - theirs).abs().max() < 1e-6
    assert theirs.abs().max() > 1e-3


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_are_those_of_trls_trainers(numbers: dict[str, Any], name: str) -> None:
    scores = torch.tensor(REWARDS, dtype=torch.float64)
    group = torch.arange(2).repeat_interleave(4)
    sequences = Sequences(group, scores, torch.zeros(8).double(), group + 1, 0.0)
    found = sequence_numbers(find_estimator(PartSpec(name)), sequences).tolist()
    size = 1.0 if name == "grpo" else 1000.0  # advantages are divided by deviations, or are not
    theirs = [advantage / size for advantage in numbers[f"advantages {name}"]]
    assert [each / size for each in found] == pytest.approx(theirs, **CLOSE)
