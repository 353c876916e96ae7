"""Collectives of eight ranks, kind by kind, against numbers derived by hand from ZeRO's design."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import collective_ranks
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

PASSES = 2  # micro-batches of the step, on every rank
GATE, Q, K = 96 * 64, 64 * 64, 32 * 64  # one head of keys for two of queries
TABLE = 256 * 64  # embedding and output layer, the two weights above ZeRO-3's threshold
LAYER = 3 * GATE + 2 * Q + 2 * K
NORMS = 5 * 64
ALL = 2 * TABLE + 2 * LAYER + NORMS

SUM, GATHER, SCATTER = "allreduce_", "_allgather_base_", "_reduce_scatter_base_"
ROWS = Counter({("allgather_", 6): 1})  # our own: loss and statistics of the step, one per rank
# Each optimizer group's updated weights: matrices with weight decay, vectors without.
UPDATED = Counter({(GATHER, ALL - NORMS): 1, (GATHER, NORMS): 1})
# ZeRO-3 keeps weights below the threshold whole, and gathers each of them after the step.
SMALL = Counter({(GATHER, GATE): 6, (GATHER, Q): 4, (GATHER, K): 4, (GATHER, 64): 5})


def scalars(count: int) -> Counter:
    """Sums of one number: has any rank overflowed, and the gradient's norm."""
    return Counter({(SUM, 1): count})


STEPS = {
    # Gradients add up on each rank, and are summed once, at the step.
    "1 float32": ROWS + UPDATED + Counter({(SUM, ALL): 1}) + scalars(2),
    # In bf16 each rank holds the whole summed gradient, so its norm needs no collective.
    "1 bfloat16": ROWS + UPDATED + Counter({(SUM, ALL): 1}),
    # A rank keeps only its part of the gradient, so each pass sums.
    "2 float32": ROWS + UPDATED + Counter({(SUM, ALL): PASSES}) + scalars(2),
    "2 bfloat16": ROWS + UPDATED + Counter({(SUM, ALL): PASSES}) + scalars(3),
    # Each pass gathers the two large weights at once (both stay until its backward pass has used
    # them), and leaves each rank its part of the gradient.
    **{
        f"3 {dtype}": ROWS + SMALL + scalars(2)
        + Counter({(GATHER, 2 * TABLE): PASSES, (SCATTER, ALL): PASSES})
        for dtype in ("float32", "bfloat16")
    },
}  # fmt: skip
SYNCS = {1: Counter(), 2: Counter(), 3: Counter({(GATHER, TABLE): 2})}


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[tuple[str, int]]]]:
    folder = tmp_path_factory.mktemp("collectives")
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False,
        )
    ).save_pretrained(folder / "model")  # fmt: skip
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, collective_ranks.__file__, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "calls.json").read_text())


def counted(calls: list[tuple[str, int]]) -> Counter:
    return Counter((name, size) for name, size in calls)


def test_every_rank_of_the_plan_makes_as_many_passes() -> None:
    passes = [
        [len(ids) for ids in step.ppo.work.micro_batches] for step in collective_ranks.planned()
    ]
    assert [len(each) for each in passes] == [PASSES] * 8
    assert passes[collective_ranks.SHARES["dummy"]] == [1, 0]
    assert passes[collective_ranks.SHARES["full"]] == [1, 1]


@pytest.mark.parametrize("setting", STEPS)
def test_collectives_of_a_step(calls, setting: str) -> None:
    assert counted(calls[setting]["full"]) == STEPS[setting]


@pytest.mark.parametrize("setting", STEPS)
def test_a_rank_short_of_work_makes_the_same_collectives_in_the_same_order(calls, setting) -> None:
    assert calls[setting]["dummy"] == calls[setting]["full"]


@pytest.mark.parametrize("setting", STEPS)
def test_a_weight_sync_gathers_only_what_is_divided(calls, setting: str) -> None:
    assert counted(calls[setting]["sync"]) == SYNCS[int(setting[0])]
