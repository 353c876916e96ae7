"""Numbers of TRL's own code on given tensors; runs in an environment that has TRL.

    python trl_numbers.py CASES.json NUMBERS.json

The losses are TRL's methods on a trainer that consists of what they read; the advantages are those
of whole trainers with a tiny model, whose reward function returns given numbers.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.cpo import CPOTrainer


def _same(value: Any, **_: object) -> Any:
    return value


def _trainer(**own: Any) -> Any:
    """What the losses of every trainer read, in one process."""
    together = SimpleNamespace(
        device="cpu", num_processes=1, gather=_same, gather_for_metrics=_same, reduce=_same
    )
    return SimpleNamespace(
        accelerator=together,
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        **own,
    )


def _floats(rows: Any, *, learned: bool = False) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64, requires_grad=learned)


def _answer(loss: torch.Tensor, learned: torch.Tensor) -> dict[str, Any]:
    (gradient,) = torch.autograd.grad(loss, learned)
    return {"loss": loss.item(), "gradient": gradient.tolist()}


def preference(case: dict[str, Any]) -> dict[str, Any]:
    """DPO's losses from logits (2 B, S, V): the better completions, then the worse."""
    logits, mask = _floats(case["logits"], learned=True), torch.tensor(case["mask"])
    trainer = _trainer(
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl",
        loss_types=[case["kind"]], loss_weights=[1.0], beta=case["beta"],
        label_smoothing=case["smoothing"], use_weighting=False, _total_train_tokens=0,
    )  # fmt: skip
    inputs = {
        "input_ids": torch.tensor(case["tokens"]),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": _floats(case["reference"])[: len(mask) // 2],
        "ref_rejected_logps": _floats(case["reference"])[len(mask) // 2 :],
    }
    model = lambda **_: SimpleNamespace(logits=logits)  # noqa: E731
    return _answer(DPOTrainer._compute_loss(trainer, model, inputs, False), logits)


def simpo(case: dict[str, Any]) -> dict[str, Any]:
    """SimPO's loss from the same logits."""
    logits, mask = _floats(case["logits"], learned=True), torch.tensor(case["mask"])
    labels = torch.tensor(case["tokens"]).masked_fill(mask == 0, -100)
    means = CPOTrainer.get_batch_logps(logits, labels, average_log_prob=True)
    trainer = _trainer(
        alpha=0.0, loss_type="simpo", simpo_gamma=case["margin"], beta=case["beta"],
        label_smoothing=case["smoothing"],
    )  # fmt: skip
    losses, _, _ = CPOTrainer.cpo_loss(trainer, *means.chunk(2))
    return _answer(losses.mean(), logits)


def policy(case: dict[str, Any]) -> dict[str, Any]:
    """A policy loss of GRPO's or RLOO's trainer from log-probabilities (B, T)."""
    logprobs, mask = _floats(case["logprobs"], learned=True), torch.tensor(case["mask"])
    old = _floats(case["old"])
    trainer = _trainer(
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            logprobs, torch.zeros_like(logprobs), None,
        ),
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        importance_sampling_level=case["level"], loss_type=case["kind"], beta=case["beta"],
        epsilon_low=case["low"], epsilon_high=case["high"], _entropy_bonus_enabled=False,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        current_gradient_accumulation_steps=1, max_completion_length=case["longest"],
    )  # fmt: skip
    nothing = torch.zeros(len(mask), 0, dtype=torch.long)
    inputs = {
        "prompt_ids": nothing, "prompt_mask": nothing, "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask, "advantages": _floats(case["advantages"]),
        "old_per_token_logps": old, "ref_per_token_logps": _floats(case["reference"]),
        "num_items_in_batch": mask.sum(), "old_logps": (old * mask).sum(1),
    }  # fmt: skip
    kind = RLOOTrainer if case["kind"] == "rloo" else GRPOTrainer
    return _answer(kind._compute_loss(trainer, None, inputs), logprobs)


def advantages(case: dict[str, Any]) -> list[float]:
    """Advantages (B,) of given rewards, G in a row of each prompt."""
    rewards, samples = case["rewards"], case["samples"]
    config, trainer = (
        (RLOOConfig, RLOOTrainer) if case["kind"] == "rloo" else (GRPOConfig, GRPOTrainer)
    )
    own = {} if case["kind"] == "rloo" else {"scale_rewards": case["scale"]}

    def reward(completions: list[str], **_: object) -> list[float]:
        return rewards

    tokenizer = AutoTokenizer.from_pretrained(case["model"], padding_side="left")
    prompts = [{"prompt": case["prompt"]}] * len(rewards)
    with tempfile.TemporaryDirectory() as scratch:
        settings = config(
            output_dir=scratch, use_cpu=True, report_to=[], save_strategy="no", bf16=False,
            gradient_checkpointing=False, per_device_train_batch_size=len(rewards),
            num_generations=samples, max_completion_length=4, beta=0.0, **own,
        )  # fmt: skip
        made = trainer(
            model=AutoModelForCausalLM.from_pretrained(case["model"]), reward_funcs=reward,
            args=settings, train_dataset=Dataset.from_list(prompts), processing_class=tokenizer,
        )  # fmt: skip
        found = made._generate_and_score_completions(prompts)
    return found["advantages"].tolist()


KINDS = {"preference": preference, "simpo": simpo, "policy": policy, "advantages": advantages}


def main() -> None:
    cases, numbers = map(Path, sys.argv[1:])
    told = json.loads(cases.read_text(encoding="utf-8"))
    found = {name: KINDS[case["of"]](case) for name, case in told.items()}
    numbers.write_text(json.dumps({"version": trl.__version__} | found), encoding="utf-8")


if __name__ == "__main__":
    main()
