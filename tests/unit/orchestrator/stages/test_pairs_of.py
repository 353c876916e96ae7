"""Which models are compared: as the recipes always did, and each variant with its predecessor."""

from __future__ import annotations

import pytest

from orchestrator.stages.judging import pairs_of


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (
            ["base", "large", "sft", "ppo", "ppo_ptx"],
            ["sft base", "ppo sft", "ppo_ptx sft", "ppo base", "ppo_ptx base", "ppo large",
             "ppo_ptx large", "ppo_ptx ppo"],
        ),
        (["base", "sft", "dpo"], ["sft base", "dpo sft", "dpo base"]),
        (
            ["sft", "ppo", "ppo_ptx", "dpo"],
            ["ppo sft", "ppo_ptx sft", "dpo sft", "ppo_ptx ppo", "dpo ppo", "dpo ppo_ptx"],
        ),
        (
            ["base", "sft", "ppo", "rloo", "b0"],
            ["sft base", "ppo sft", "rloo sft", "b0 sft", "ppo base", "rloo base", "b0 base",
             "rloo ppo", "b0 rloo"],
        ),
        (["base", "sft", "sft2"], ["sft base", "sft2 sft", "sft2 base"]),
        (["ppo"], []),
    ],
)  # fmt: skip
def test_pairs(names: list[str], pairs: list[str]) -> None:
    assert pairs_of(names) == [tuple(pair.split()) for pair in pairs]


def test_pairs_of_models_of_other_sizes() -> None:
    names = ["base", "base+2", "large", "sft", "sft_8x", "ppo"]
    found = pairs_of(names, bases=["base+2"], tuned=["sft_8x"])
    assert [f"{model} {over}" for model, over in found] == [
        "sft base", "sft large", "sft base+2", "sft_8x sft", "ppo sft", "sft_8x base", "ppo base",
        "sft_8x large", "ppo large", "sft_8x base+2", "ppo base+2", "ppo sft_8x",
    ]  # fmt: skip
