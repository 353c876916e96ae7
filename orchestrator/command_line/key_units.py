"""The unit of each key that is a number.

Most names end in their unit (`call_seconds`, `row_tokens`, `prompts_per_step`); a table has the
others. A number that neither gives a unit is an error, so that no key is without one.
"""

from __future__ import annotations

import types
import typing
from typing import Any

NONE = "none"  # a plain number, such as a factor

# Last word of a name, after what follows `_per_` is taken off.
_WORDS = {
    "seconds": "seconds", "mib": "MiB", "gib": "GiB", "tokens": "tokens",
    "characters": "characters",
    "steps": "optimizer steps", "iterations": "iterations", "epochs": "passes", "rows": "rows",
    "prompts": "prompts", "completions": "completions", "documents": "documents",
    "demonstrations": "demonstrations", "rankings": "rankings", "sequences": "sequences",
    "samples": "samples", "batches": "batches", "retries": "retries", "restarts": "restarts",
    "tasks": "tasks", "fraction": "fraction", "ratio": "fraction", "dropout": "probability",
    "smoothing": "probability", "workers": "processes", "threads": "threads", "cpus": "cores",
    "cores": "cores", "gpus": "GPUs", "layers": "layers", "heads": "heads", "nodes": "nodes",
}  # fmt: skip
# Names, or ends of dotted names where a name alone has several meanings.
_NAMES = {
    "iterate.rounds": "rounds", "max_turns": "turns", "constitution.revisions": "rounds",
    "critic_temperature": NONE,
    "stage_steps.ppo": "iterations", "stage_steps.ppo_ptx": "iterations",
    "stage_steps.online_dpo": "iterations", "stage_steps.rejection_sampling": "iterations",
    "stage_steps.pretrain": "optimizer steps", "stage_steps.pretrain_large": "optimizer steps",
    "stage_steps.sft": "optimizer steps", "stage_steps.reward_model": "optimizer steps",
    "stage_steps.dpo": "optimizer steps",
    "every_steps": "steps or iterations", "keep_last": "checkpoints",
    "keep_every": "steps or iterations", "probes_to_condemn": "probes",
    "hidden_size": "features", "intermediate_size": "features", "max_position_embeddings": "tokens",
    "lora.rank": "dimensions", "lora.alpha": NONE,
    "label_noise": "gold score", "tie_width": "gold score", "seed": NONE, "heldout_fold": NONE,
    "zero_stage": NONE, "temperature": NONE, "temperatures": NONE,
    "tensor_parallel_size": "GPUs", "overprovision": "fraction", "parity_tolerance": "nats",
    "missing_eos_penalty": "standard deviations", "function_missing_eos_penalty": "reward",
    "learning_rate": NONE, "beta1": NONE, "beta2": NONE, "eps": NONE, "weight_decay": NONE,
    "max_grad_norm": NONE, "keep_best_every": "optimizer steps",
    "preference.beta": "reward per nat", "margin": "reward", "sft_coefficient": NONE,
    "threshold": "reward", "staleness": "updates", "gamma": NONE, "lam": NONE, "clip": NONE,
    "clip_high": NONE, "dual_clip": NONE, "value_clip": "reward", "importance_cap": NONE,
    "importance_floor": NONE, "overlong.penalty": "reward", "kl.coefficient": "reward per nat",
    "kl.target": "nats per sequence", "kl.horizon": "sequences", "kl.limit": "nats per sequence",
    "ptx.coefficient": NONE, "ema_decay": NONE, "evaluate_every": "iterations",
    "samples.per_iteration": "texts", "shares": NONE, "best_of": "samples",
    "samples_shown": "prompts",
    "resamples": "bootstrap samples",
    "concurrency": "requests", "lm_eval.limit": "examples", "fewshot": "examples",
    "few_shot": "demonstrations",
    "batch_size": "sequences", "prometheus_port": NONE, "weight": NONE,
}  # fmt: skip


def named_units() -> dict[str, str]:
    """The names whose unit is listed, rather than a part of the name."""
    return dict(_NAMES)


def unit_of(key: str, kind: Any) -> str:
    """The unit of a key of this type; "" if it is no number.

    Raises:
        LookupError: A number whose name neither ends in a unit nor is listed here.
    """
    if not _is_number(kind):
        return ""
    if (listed := _listed(key)) is not None:
        return _NAMES[listed]
    name = key.rpartition(".")[2].partition("_per_")[0]
    word = name.rpartition("_")[2]
    if word not in _WORDS:
        raise LookupError(f"{key} is a number without a unit: list it in {__name__}")
    return _WORDS[word]


def _listed(key: str) -> str | None:
    """The longest end of a dotted name that is listed."""
    parts = key.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts)))
    return next((end for end in ends if end in _NAMES), None)


def _is_number(kind: Any) -> bool:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is list:
        return any(_is_number(each) for each in typing.get_args(kind))
    return kind is int or kind is float
