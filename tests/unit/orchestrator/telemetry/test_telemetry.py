import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.config.cluster import RoleName
from orchestrator.config.run import LoggerConfig, StageName
from orchestrator.roles.fleet import GROUPS
from orchestrator.run_files.folder import RunFolder
from orchestrator.telemetry import trace
from orchestrator.telemetry.metrics import (
    METRICS,
    PPO_PHASES,
    MetricRecord,
    comparable,
    read_metrics,
    series,
)
from orchestrator.telemetry.recorder import CALLS, Telemetry, UnknownMetricError
from orchestrator.telemetry.sinks import BackgroundSink, Sink, TensorBoardSink
from workers.errors import CheckpointError, DataLineError
from workers.process.call_timing import CallSpan, clock_name


class FakeSink:
    """Does what it is told on the first write."""

    def __init__(self, on_write: str = "keep", on_open: str = "keep") -> None:
        self.name, self.note = "fake", ""
        self.on = {"open": on_open, "write": on_write}
        self.written: list[MetricRecord] = []
        self.closed = False
        self.released = threading.Event()

    def _act(self, what: str) -> None:
        if self.on[what] == "raise":
            raise ConnectionError("the network is gone")
        if self.on[what] == "block":
            self.released.wait(60)

    def open(self) -> None:
        self._act("open")

    def write(self, records: Sequence[MetricRecord]) -> None:
        self._act("write")
        self.written.extend(records)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path).create()


def make(folder: RunFolder, sinks: list[Sink], warnings: list[str]) -> Telemetry:
    logger = LoggerConfig(sink_seconds=0.5)
    return Telemetry(folder, logger, {}, warn=warnings.append, sinks=sinks)


def test_records_are_on_disk_when_record_returns(folder: RunFolder) -> None:
    telemetry = make(folder, [], [])
    telemetry.record("ppo_ptx", 3, {"ppo/score_mean": 1.5, "ppo/sync_seconds": 0.25})
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert lines == [
        {"stage": "ppo_ptx", "step": 3, "name": "ppo/score_mean", "value": 1.5, "unit": "reward"},
        {"stage": "ppo_ptx", "step": 3, "name": "ppo/sync_seconds", "value": 0.25, "unit": "s",
         "timing": True},
    ]  # fmt: skip
    telemetry.close()
    records = read_metrics(folder.metrics)
    assert [r.name for r in comparable(records)] == ["ppo/score_mean"]
    assert series(records, "ppo_ptx", "ppo/score_mean") == [(3, 1.5)]
    assert series(records, "ppo", "ppo/score_mean") == []


@pytest.mark.parametrize("replaced", [False, True])
def test_a_run_folder_that_vanishes_ends_the_run_with_4(folder: RunFolder, replaced: bool) -> None:
    telemetry = Telemetry(folder, LoggerConfig(), {}, sinks=[])
    telemetry.record("ppo", 1, {"ppo/score_mean": 0.5})
    folder.metrics.rename(folder.path / "elsewhere")
    if replaced:
        folder.metrics.touch()
    with pytest.raises(CheckpointError, match="has vanished from the run folder") as gone:
        telemetry.record("ppo", 2, {"ppo/score_mean": 0.6})
    assert gone.value.exit_code == 4
    assert "put the folder back" in gone.value.fix


def test_a_full_disk_is_said_and_ends_the_run_with_4(folder: RunFolder) -> None:
    folder.metrics.symlink_to("/dev/full")
    sink = FakeSink()
    telemetry = Telemetry(folder, LoggerConfig(), {}, sinks=[sink])
    with pytest.raises(CheckpointError, match="a metric cannot be written: No space left") as full:
        telemetry.record("ppo", 0, {"ppo/score_mean": 1.0})
    assert full.value.exit_code == 4
    assert "free space" in full.value.fix
    with pytest.raises(CheckpointError):
        telemetry.close()
    assert sink.closed


def test_an_unknown_name_writes_nothing(folder: RunFolder) -> None:
    telemetry = make(folder, [], [])
    with pytest.raises(UnknownMetricError, match="ppo/scroe_mean"):
        telemetry.record("ppo", 1, {"ppo/score_mean": 1.0, "ppo/scroe_mean": 1.0})
    with pytest.raises(AssertionError, match="unknown stage"):
        telemetry.record("pop", 1, {"ppo/score_mean": 1.0})
    assert folder.metrics.read_text() == ""


def test_every_line_is_strict_json_even_for_values_that_json_lacks(folder: RunFolder) -> None:
    telemetry = make(folder, [], [])
    telemetry.record("sft", 1, {"sft/loss": math.nan, "sft/grad_norm": math.inf})

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    for line in folder.metrics.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    loss, norm = read_metrics(folder.metrics)
    assert math.isnan(loss.value)
    assert norm.value == math.inf


def test_a_torn_last_line_is_no_record_but_damage_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = MetricRecord.make("sft", 1, "sft/loss", 0.5)
    path.write_text(whole.to_line() + '{"stage": "sft", "st')
    assert read_metrics(path) == [whole]
    path.write_text(whole.to_line() + '{"stage": "sft"}\n')
    with pytest.raises(DataLineError) as caught:
        read_metrics(path)
    assert caught.value.where == f"{path}:2"


def test_timings_are_exactly_the_metrics_in_seconds_or_a_second() -> None:
    for name, metric in METRICS.items():
        # engines that serve: which are lost, and when, is a matter of time too
        timing = metric.unit in ("s", "s/s", "tokens/s") or name == "ppo/engines"
        assert metric.timing == timing, name
        assert metric.description


def test_spans_add_up_over_threads_and_steps(folder: RunFolder) -> None:
    telemetry = make(folder, [], [])

    def spend(step: int, phase: str) -> None:
        with telemetry.span("ppo", step, phase):
            time.sleep(0.05)

    threads = [threading.Thread(target=spend, args=(1, p)) for p in ("reward", "values")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with telemetry.stage_span("ppo"):
        spend(2, "reward")
        spend(2, "reward")
    assert set(telemetry.record_phases("ppo", 1)) == {"reward", "values"}
    second = telemetry.record_phases("ppo", 2)["reward"]
    totals = telemetry.phase_seconds("ppo")
    assert second >= 0.1
    assert totals["reward"] >= 0.15
    assert 0.05 <= totals["values"] < totals["reward"]
    assert telemetry.phase_seconds("ppo_ptx") == {}
    assert telemetry.stage_seconds()["ppo"] >= second
    telemetry.close()
    events = json.loads((folder.trace / "spans.json").read_text())
    assert sorted(e["name"] for e in events if e["ph"] == "X") == ["ppo", *["reward"] * 3, "values"]
    names = [r.name for r in read_metrics(folder.metrics)]
    assert names.count("ppo/seconds/reward") == 2


def test_memory_is_that_of_a_stage_alone_and_goes_on_after_a_resume(folder: RunFolder) -> None:
    def work(telemetry: Telemetry, role: str, peak: int) -> None:
        telemetry.account.told(role, 0, [CallSpan("step", 0.0, 1.0, 0.0, "", peak)])

    with make(folder, [], []) as telemetry:
        work(telemetry, "policy", 90)  # before any stage
        with telemetry.stage_span("sft"):
            work(telemetry, "policy", 10)
        with telemetry.stage_span("ppo"):
            work(telemetry, "policy", 30)
            work(telemetry, "critic", 20)
            saved = telemetry.state()
            work(telemetry, "policy", 25)
        expected = {"sft": {"policy": 10}, "ppo": {"policy": 30, "critic": 20}}
        assert telemetry.stage_memory() == saved["memory"] == expected
    with make(folder, [], []) as telemetry:
        telemetry.restore(json.loads(json.dumps(saved)))
        with telemetry.stage_span("ppo"):
            work(telemetry, "policy", 40)
            work(telemetry, "critic", 15)
        assert telemetry.stage_memory() == {
            "sft": {"policy": 10}, "ppo": {"policy": 40, "critic": 20},
        }  # fmt: skip


def test_a_phase_of_a_role_lasts_as_long_as_the_role_worked_not_as_the_driver_waited(
    folder: RunFolder,
) -> None:
    with make(folder, [], []) as telemetry:
        account = telemetry.account
        ends = [telemetry.begin("ppo", 1, phase) for phase in ("policy_update", "critic_update")]
        began = time.monotonic()
        time.sleep(0.03)
        for role, rank, seconds in (("policy", 0, 0.02), ("critic", 0, 0.004), ("critic", 1, 0.01)):
            call = account.sent(role, rank, began, lambda: None)
            span = CallSpan("update", began, began + seconds, 0.0, clock_name())
            account.answered(role, rank, call, [span])
        for end in ends:
            end()
        phases = telemetry.record_phases("ppo", 1)
        totals = telemetry.phase_seconds("ppo")
    assert phases["policy_update"] == pytest.approx(0.02)
    assert phases["critic_update"] == pytest.approx(0.01)  # of its slowest worker
    assert totals["critic_update"] == pytest.approx(0.01)


def test_the_phases_of_roles_are_named_by_verbs_that_roles_have() -> None:
    for phase, (role, verb) in CALLS.items():
        assert phase in PPO_PHASES
        assert callable(getattr(GROUPS[RoleName(role)].worker.load(), verb)), (role, verb)


def test_the_trace_has_a_track_for_each_worker_and_each_phase(folder: RunFolder) -> None:
    with make(folder, [], []) as telemetry:
        account = telemetry.account
        with telemetry.span("ppo", 1, "generate"):
            for rank in (0, 1):
                call = account.sent("rollout", rank, time.monotonic(), lambda: None)
                now = time.monotonic()
                span = CallSpan("generate_shard", now - 0.5, now, 0.125, clock_name())
                account.answered("rollout", rank, call, [span])
        telemetry.record_phases("ppo", 1)
    events = json.loads((folder.trace / "spans.json").read_text())
    names = {(e["pid"], e["tid"], e["name"]): e["args"]["name"] for e in events if e["ph"] == "M"}
    processes = {pid: name for (pid, _, kind), name in names.items() if kind == "process_name"}
    tracks = {(pid, tid): n for (pid, tid, kind), n in names.items() if kind == "thread_name"}
    spans = [e for e in events if e["ph"] == "X"]
    assert {(processes[e["pid"]], tracks[e["pid"], e["tid"]], e["name"]) for e in spans} == {
        ("driver", "generate", "generate"),
        ("roles", "rollout 0", "generate_shard"),
        ("roles", "rollout 1", "generate_shard"),
    }
    for event in events:
        assert set(event) >= {"name", "ph", "pid", "tid", "args"}
    for span in spans:
        assert isinstance(span["ts"], int)
        assert isinstance(span["dur"], int)
    shard = next(e for e in spans if e["name"] == "generate_shard")
    assert shard["dur"] == pytest.approx(500_000, abs=2)
    assert shard["args"] == {"transfer_ms": 125.0}
    records = {r.name: r for r in read_metrics(folder.metrics)}
    assert records["ppo/transfer_seconds/rollout"].value >= 0
    assert 0 <= records["ppo/idle_share/rollout"].value <= 1
    assert [r for r in comparable(records.values()) if "/rollout" in r.name] == []


def test_a_trace_that_cannot_be_written_is_one_warning_and_the_run_goes_on(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.trace / "spans.json").symlink_to("/dev/full")  # takes no byte: every write is ENOSPC
    monkeypatch.setattr(trace, "_number", lambda _: -1)  # the file is not seen beforehand
    warnings = list[str]()
    with make(folder, [], warnings) as telemetry:
        for step in (1, 2):
            with telemetry.span("ppo", step, "generate"):
                pass
            telemetry.record_phases("ppo", step)
    (warning,) = warnings
    assert warning.endswith(
        f"{folder.trace / 'spans.json'} cannot be written: No space left on device"
    )
    assert [r.step for r in read_metrics(folder.metrics) if "seconds/generate" in r.name] == [1, 2]


def test_a_long_trace_goes_on_in_another_file_and_the_newest_four_stay(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_MOST_BYTES", 2000)
    (folder.trace / "spans-mine.json").write_text("kept")
    with make(folder, [], []) as telemetry:
        for step in range(100):
            with telemetry.span("ppo", step, "generate"):
                pass
    numbers = sorted(int(p.stem[6:]) for p in folder.trace.glob("spans-[0-9]*.json"))
    assert numbers == list(range(numbers[0], numbers[0] + 4))
    assert numbers[0] > 2  # spans.json is gone, and others are
    steps: list[int] = []
    for number in numbers:  # each can be opened by itself
        text = (folder.trace / f"spans-{number}.json").read_text()
        assert len(text) < 3000
        events = json.loads(text)
        titles = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
        spans = [e for e in events if e["ph"] == "X"]
        assert {titles[e["tid"]] for e in spans} <= {"generate"}
        steps += [e["args"]["step"] for e in spans]
    assert steps == list(range(steps[0], 100))
    assert (folder.trace / "spans-mine.json").read_text() == "kept"


def test_a_trace_folder_that_takes_no_file_is_no_reason_to_end_either(folder: RunFolder) -> None:
    folder.trace.rmdir()
    warnings = list[str]()
    with make(folder, [], warnings) as telemetry:
        telemetry.record("sft", 1, {"sft/loss": 0.5})
    assert len(warnings) == 1
    assert "No such file or directory" in warnings[0]


def test_sinks_get_everything_before_close_returns(folder: RunFolder) -> None:
    sink, warnings = FakeSink(), list[str]()
    with make(folder, [sink], warnings) as telemetry:
        for step in range(100):
            telemetry.record("sft", step, {"sft/loss": float(step)})
    assert [r.step for r in sink.written] == list(range(100))
    assert sink.closed
    assert warnings == []


@pytest.mark.parametrize("sink", [
    FakeSink(on_write="raise"), FakeSink(on_write="block"), FakeSink(on_open="raise"),
], ids=["raises", "blocks forever", "does not open"])  # fmt: skip
def test_a_dead_sink_neither_stops_nor_delays_training(folder: RunFolder, sink: FakeSink) -> None:
    healthy, warnings = FakeSink(), list[str]()
    telemetry = make(folder, [sink, healthy], warnings)
    slowest = 0.0
    for step in range(80):
        begin = time.perf_counter()
        telemetry.record("sft", step, {"sft/loss": 1.0})
        slowest = max(slowest, time.perf_counter() - begin)
        time.sleep(0.01)
    begin = time.perf_counter()
    telemetry.close()
    assert time.perf_counter() - begin < 5
    assert slowest < 0.4  # less than one sink_seconds: nobody waited for the sink
    assert len(read_metrics(folder.metrics)) == 80
    assert len(healthy.written) == 80
    assert len(warnings) == 1
    assert "fake is dropped" in warnings[0]
    assert sink.written == []
    sink.released.set()


def test_a_sink_that_never_opens_delays_the_end_by_its_deadline_at_most() -> None:
    sink, warnings = FakeSink(on_open="block"), list[str]()
    background = BackgroundSink(sink, 0.1, warnings.append, open_seconds=0.3)
    background.write([MetricRecord.make("sft", 1, "sft/loss", 1.0)])
    begin = time.perf_counter()
    background.close()
    background.close()
    assert time.perf_counter() - begin < 2
    sink.released.set()
    assert background.dropped
    assert len(warnings) == 1


def test_a_sink_that_falls_behind_is_dropped() -> None:
    sink, warnings = FakeSink(on_write="block"), list[str]()
    background = BackgroundSink(sink, 30.0, warnings.append)
    for _ in range(1100):
        background.write([MetricRecord.make("sft", 1, "sft/loss", 1.0)])
    sink.released.set()
    assert warnings == ["fake is dropped: it cannot keep up. metrics.jsonl has everything."]


def test_every_stage_that_trains_has_metrics() -> None:
    families = {name.partition("/")[0] for name in METRICS}
    aliases = {
        "pretrain_large": "pretrain", "ppo_ptx": "ppo", "online_dpo": "dpo",
        "rejection_sampling": "rejection",
    }  # fmt: skip
    stages = {aliases.get(s.value, s.value) for s in StageName}
    assert stages - families == {"evaluate", "collect", "overoptimization"}


_REAL_SINKS = """
import sys
from pathlib import Path
from orchestrator.config.run import LoggerConfig
from orchestrator.run_files.folder import RunFolder
from orchestrator.telemetry.recorder import Telemetry
logger = LoggerConfig(wandb=True, tensorboard=True, sink_seconds=60)
folder = RunFolder(Path(sys.argv[1])).create()
with Telemetry(folder, logger, {"seed": 0}, warn=sys.exit) as telemetry:
    for step in (1, 2):
        telemetry.record("ppo", step, {"ppo/score_mean": step / 2})
    telemetry.record("ppo_ptx", 1, {"ppo/score_mean": 0.5})
"""


def test_wandb_offline_and_tensorboard_need_no_key_and_no_network(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _REAL_SINKS, str(tmp_path / "run")],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""  # nothing may tear the live view apart
    assert "wandb" not in done.stderr
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [e.value for e in events.Scalars("ppo/score_mean")] == [0.5, 1.0]
    assert [e.step for e in events.Scalars("ppo_ptx/score_mean")] == [1]


def test_a_tensorboard_folder_that_cannot_be_written_is_told_once(folder: RunFolder) -> None:
    (folder.path / "tensorboard").write_text("in its place")
    warnings: list[str] = []
    telemetry = make(folder, [TensorBoardSink(folder.path)], warnings)
    for step in range(5):
        telemetry.record("ppo", step, {"ppo/score_mean": 1.0})
    telemetry.close()
    (said,) = warnings
    assert said.startswith("TensorBoard is dropped")
    assert len(read_metrics(folder.metrics)) == 5
