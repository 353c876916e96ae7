"""What the chaos benchmark reads from the records of a run that several processes worked on."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from benchmarks.chaos import (
    committed_seconds,
    step_seconds,
    steps_on_record,
    ways_to_end,
)


def write_trace(file: Path, ends: dict[int, float], torn: str = "") -> None:
    """Spans of one process: step -> when its record was written, by the clock of that process."""
    file.parent.mkdir(exist_ok=True)
    spans = [
        {"name": "record", "ph": "X", "ts": 1e6 * (end - 0.25), "dur": 250_000, "args": {"step": s}}
        for s, end in ends.items()
    ]
    other = {"name": "generate", "ph": "X", "ts": 0, "dur": 9e9, "args": {"step": 2}}
    text = ",\n".join(json.dumps(each) for each in [other, *spans])
    file.write_text(f"[\n{text}{torn}")


def test_steps_take_as_long_as_the_last_process_that_did_them(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    write_trace(trace / "spans.json", {1: 10.0, 2: 12.0, 3: 15.0})
    torn = ',\n{"name": "record", "ph": "X", "ts": 1'
    write_trace(trace / "spans-2.json", {2: 100.0, 3: 101.0, 4: 105.0}, torn)
    write_trace(trace / "spans-10.json", {4: 1000.0, 5: 1007.0})
    assert step_seconds(tmp_path) == pytest.approx({2: 2.0, 3: 1.0, 4: 4.0, 5: 7.0})


def test_a_step_that_waited_counts_as_those_around_it() -> None:
    took = {2: 1.0, 3: 2.0, 4: 90.0, 6: 3.0}
    # of 1, 2, 90 and 3 the median is 2.5; step 5 was the first of its process
    assert committed_seconds(took, 1, 6) == pytest.approx(1.0 + 2.0 + 2.5 + 2.5 + 2.5)
    assert committed_seconds({}, 1, 3) == 0.0


def test_a_step_counts_once_its_line_is_whole(tmp_path: Path) -> None:
    assert steps_on_record(tmp_path) == 0
    line = '{{"stage": "ppo", "step": {}, "name": "ppo/score_mean", "value": 0.5}}\n'
    other = '{"stage": "ppo", "step": 9, "name": "ppo/eos_rate", "value": 0.5}\n'
    file = tmp_path / "metrics.jsonl"
    file.write_text(line.format(7) + other * 3000 + line.format(8) + other + line.format(9)[:-1])
    assert steps_on_record(tmp_path) == 8


def test_only_what_a_strike_explains_is_a_known_end() -> None:
    assert ways_to_end({"policy SIGKILL", "raylet SIGSTOP"}) == {7}
    assert ways_to_end({"driver SIGKILL"}) == {7, -signal.SIGKILL}
    assert ways_to_end({"driver SIGTERM"}) == {7, 8, 143, -signal.SIGTERM}
