import io
import os
import pty
import re
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.telemetry.live import (
    LiveView,
    RunState,
    StageState,
    duration,
    number,
    render,
    sparkline,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def lines(stream: io.StringIO) -> list[str]:
    return [line.partition(" ")[2] for line in stream.getvalue().splitlines()]


def test_plain_lines_come_at_tenths_of_a_stage() -> None:
    stream, clock = io.StringIO(), Clock()
    with LiveView("run", ["sft"], stream=stream, clock=clock) as view:
        view.stage("sft", 100)
        for step in range(1, 101):
            clock.now += 0.01
            view.advance(step, loss=1.0 / step)
        view.finish_stage()
    shown = lines(stream)
    assert shown[0] == "sft: start, 100 steps"
    assert [line.split(" | ")[0] for line in shown[1:-1]] == [
        f"sft {step}/100" for step in range(10, 100, 10)
    ]
    assert shown[5] == "sft 50/100 | loss 0.020 | 100.0 steps/s | 0.5 s left"
    assert shown[-1] == "sft: done, 100 steps in 1.0 s | loss 0.010"


def test_plain_lines_of_slow_stages_come_every_five_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    with LiveView("run", stream=stream, clock=clock) as view:
        view.stage("ppo", 1000)
        for step in range(1, 21):
            clock.now += 2.0
            view.advance(step, kl_sequence=2.0)
    assert [line.split(" | ")[0] for line in lines(stream)[1:]] == [
        f"ppo {step}/1000" for step in (3, 6, 9, 12, 15, 18)
    ]
    ends = "KL to reference 2.000 nats/sequence | 2.0 s/step | 33:14 left"
    assert lines(stream)[1].endswith(ends)


def test_the_number_of_steps_is_corrected_once_the_data_is_read() -> None:
    stream = io.StringIO()
    with LiveView("run", stream=stream) as view:
        view.stage("reward_model", 0)
        view.expect(3)
        view.expect(3)
        view.advance(3)
        view.finish_stage()
    assert lines(stream)[:2] == ["reward_model: start", "reward_model: 3 steps"]
    assert lines(stream)[2].startswith("reward_model: done, 3 steps")


def test_a_log_gets_the_plain_lines_with_their_date_and_is_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    for n in range(2):
        with LiveView("run", ["sft"], stream=io.StringIO(), log=log) as view:
            view.stage("sft", 3)
            view.note(f"a note {n}\x1b[2J")
            view.finish_stage()
    lines = log.read_text().splitlines()
    assert [line[20:].split(" in ")[0] for line in lines[:3]] == [
        "sft: start, 3 steps", "note: a note 0\\x1b[2J", "sft: done, 0 steps",
    ]  # fmt: skip
    assert len(lines) == 6
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)


def test_a_log_that_cannot_be_written_is_left_out_with_one_note(tmp_path: Path) -> None:
    stream = io.StringIO()
    for log in (tmp_path / "nowhere" / "run.log", Path("/dev/full")):
        with LiveView("run", ["sft"], stream=stream, log=log) as view:
            view.note("first")
            view.note("second")
        said = stream.getvalue()
        assert said.count("no log of this run is kept") == 1
        assert said.count("second") == 1
        stream.truncate(0)


def test_notes_appear_and_a_step_without_a_stage_is_a_bug() -> None:
    stream = io.StringIO()
    with LiveView("run", stream=stream) as view:
        view.note("a sink is dropped")
        with pytest.raises(AssertionError, match="no stage is running"):
            view.advance(1)
    assert lines(stream) == ["note: a sink is dropped"]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_view_fits_its_width_and_shows_all_stages(width: int) -> None:
    ppo = StageState("ppo", total=40, step=10, started=70.0, first=(0, 70.0))
    done = StageState("reward_model", total=5, step=5, started=50.0, ended=60.0)
    ppo.values = {"score_mean": deque([1.0]), "kl_sequence": deque([2.0, 1.0])}
    state = RunState("pocket", 40.0, [done, ppo, StageState("evaluate")], current=ppo)
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(render(state, now=100.0))
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert max(map(len, text.splitlines())) == width
    for wanted in (
        "reward_model",
        "evaluate",
        "10/40",
        "3.0 s/step",
        "1:30 left",
        "reward",
        "1:00",
    ):
        assert wanted in text


def test_sparkline_ends_at_the_extremes_and_shrinks_by_averaging() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([0, 0, 9, 9], width=2) == "▁█"
    assert sparkline([0, float("nan"), 1]) == "▁ █"
    assert sparkline([]) == sparkline([float("inf")]) == ""
    assert sparkline([0, 1], ascii_only=True) == "_#"


def test_numbers_and_durations_are_short() -> None:
    shown = [number(x) for x in (0.0, 0.1234, -2.5, 12.345, 4321.0, 3e-6, float("nan"))]
    assert shown == ["0", "0.123", "-2.500", "12.35", "4,321", "3.0e-06", "nan"]
    assert [duration(x) for x in (0.04, 9.96, 59.6, 125, 3725)] == [
        "0.0 s", "10 s", "1:00", "2:05", "1:02:05",
    ]  # fmt: skip


_CRASH = """
from orchestrator.telemetry.live import LiveView
with LiveView("run", ["sft"]) as view:
    view.stage("sft", 2)
    view.advance(1, loss=1.0)
    raise RuntimeError("boom")
"""


def test_a_crash_gives_the_terminal_back() -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _CRASH], stdout=follower, stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "30"},
    )  # fmt: skip
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # Linux reports the closed other end so
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert process.wait(timeout=60) == 1
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") == 1  # cursor hidden, shown again
    assert shown.index(b"\x1b[?25h") < shown.index(b"boom")
