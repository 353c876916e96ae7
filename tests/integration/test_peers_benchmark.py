"""The peers' benchmark itself: TRL from the package index, the floor and ours on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.peers.__main__ import main
from benchmarks.peers.environments import ensure

pytestmark = [pytest.mark.registry, pytest.mark.slow, pytest.mark.timeout(1500)]


def test_all_sides_do_the_same_work_and_are_timed(tmp_path: Path) -> None:
    code = main(
        [
            "--shape", "tiny", "--peers", "trl,trl_without_collect,floor", "--repetitions", "1",
            "--steps", "2", "--passive-waits", "--cache", str(tmp_path / "cache"),
            "--out", str(tmp_path / "out"),
        ]
    )  # fmt: skip
    assert code == 0
    (path,) = (tmp_path / "out").glob("*_peers_tiny_fp32.json")
    found = json.loads(path.read_text())
    assert set(found["medians"]) == {"ours", "trl", "trl_without_collect", "floor"}
    for side, figures in found["medians"].items():
        assert all(value > 0 for value in figures.values()), side
        assert len(found["turns"][side][0]["step_seconds"]) == 2, side
    assert found["environments"]["trl"]["pins"].startswith("trl==")
    marker = tmp_path / "cache" / "trl" / "installed.json"
    made = marker.stat().st_mtime_ns
    ensure("trl", tmp_path / "cache")
    assert marker.stat().st_mtime_ns == made  # not installed again
