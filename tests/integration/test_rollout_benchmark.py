"""The rollout benchmark end to end, on the smallest model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.rollout_throughput.__main__ import main


@pytest.mark.slow  # 40 s
def test_sequences_have_the_fixed_length_and_the_figures_of_both_sides_are_written(tmp_path: Path):
    code = main(
        ["+experiment=pocket_tiny", "algorithm.samples_per_prompt=2", "--concurrency", "4,8",
         "--output-tokens", "6", "--repetitions", "2", "--sync", "--out", str(tmp_path)]
    )  # fmt: skip
    assert code == 0
    (path,) = tmp_path.glob("*_rollout_throughput.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert [point["concurrency"] for point in found["points"]] == [4, 8]
    for point in found["points"]:
        for side in point["sides"].values():
            assert [turn["tokens"] for turn in side["turns"]] == [6 * point["concurrency"]] * 2
            assert 0 < side["latency_seconds"]["p50"] <= side["latency_seconds"]["p95"]
        assert sum(point["time_shares"].values()) == pytest.approx(1)
    assert len(found["weight_sync"]["seconds"]) == 3
    assert found["weight_sync"]["parity_max_nats"] < 1e-4
    assert found["versions"]["ray"]
    assert found["settings"]["rollout"]["max_response_tokens"] == 6
