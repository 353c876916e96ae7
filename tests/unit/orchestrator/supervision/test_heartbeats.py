"""Signs of life, with the processes played by a table and the clock by hand."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.session import Run
from fakes.toy import ToyPolicy

from orchestrator.checkpoints import model_folder
from orchestrator.config.schema import Config
from orchestrator.roles.fleet import Fleet
from orchestrator.supervision import heartbeats as watching
from orchestrator.supervision.heartbeats import Watch, kernel_kills
from orchestrator.supervision.pending import Position
from orchestrator.supervision.ray_servers import DistantServers
from orchestrator.supervision.server_guard import Guard
from orchestrator.supervision.worker_life import Rules, Status
from orchestrator.telemetry.role_time import Account
from workers.errors import ClusterLostError, RoleDiedError, RoleHungError
from workers.process.disk import side_by_side
from workers.process.heartbeat import Pulse, beat, pulse, shown, stacks

RULES = Rules(probe_seconds=10.0, probes_to_condemn=3, max_restarts=1, window_seconds=1e6)


class Process:
    """Answers with what the test says it does."""

    def __init__(self) -> None:
        self.doing: Pulse | None = Pulse("", 0, 0.0, ())  # None: stopped
        self.gone = False
        self.asked = 0

    def ask(self) -> None:
        self.asked += 1

    def answer(self) -> Pulse | None:
        if self.gone:
            raise RoleDiedError("signal 9")
        return self.doing

    def stacks(self, seconds: float) -> str:
        return "" if self.doing is None else "thread MainThread:\n  in update"


class Night:
    """Two workers under watch, and time that passes only when it is told to."""

    def __init__(self, logs: Path | None = None) -> None:
        self.now = 0.0
        self.watch = Watch(RULES, 60.0, lambda: self.now, logs)
        self.names = ["policy rank 0", "policy rank 1"]
        self.processes = {name: Process() for name in self.names}
        for name, process in self.processes.items():
            self.watch.add(name, process)
        self.watch.starting(self.names)
        self.watch.started(self.names, well=True)

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + 0.5)
            self.watch.tick()

    def status(self, name: str) -> Status:
        return self.watch.life(name).status


def test_a_stopped_process_is_condemned_within_three_intervals() -> None:
    night = Night()
    night.pass_time(25.0)
    night.processes["policy rank 1"].doing = None
    night.pass_time(31.0)  # and a tick
    assert night.status("policy rank 1") is Status.dead
    assert night.status("policy rank 0") is Status.healthy
    with pytest.raises(RoleHungError, match="policy rank 1 is lost: it gave no sign of life"):
        night.watch.check(night.names, "policy: update (stage ppo, step 7)")


def test_long_work_that_gets_on_is_left_alone_and_a_standstill_is_not() -> None:
    night = Night()
    for minute in range(60):
        for process in night.processes.values():
            process.doing = Pulse("generate_shard", minute * 100, 0.5, ())
        night.pass_time(60.0)
    night.watch.check(night.names, "")
    night.processes["policy rank 0"].doing = Pulse("update_on", 6000, 61.0, ("load 2.00 s",))
    night.pass_time(11.0)
    with pytest.raises(RoleHungError, match=r"hangs: update_on, without progress for 61\.0 s"):
        night.watch.check(night.names, "")


def test_a_dead_process_is_noticed_by_its_probe() -> None:
    night = Night()
    night.processes["policy rank 0"].gone = True
    night.pass_time(11.0)
    assert night.watch.life("policy rank 0").reason == "signal 9"


def test_nobody_is_asked_before_it_stands_or_while_it_loads() -> None:
    night = Night()
    night.watch.add("critic rank 0", starting := Process())
    starting.doing = None
    night.pass_time(1000.0)
    assert starting.asked == 0
    night.watch.starting(["policy rank 0"])
    night.processes["policy rank 0"].doing = None
    night.pass_time(1000.0)
    assert night.status("policy rank 0") is Status.healthy
    night.watch.started(["policy rank 0"], well=True)
    night.pass_time(40.0)
    assert night.status("policy rank 0") is Status.dead


def test_a_driver_that_was_busy_takes_answers_before_it_counts_seconds() -> None:
    night = Night()
    night.pass_time(10.0)
    night.now += 1e4  # a long computation of the driver's own
    night.pass_time(5.0)
    assert night.status("policy rank 0") is Status.healthy


def test_stacks_of_the_hung_and_its_peers_are_kept(tmp_path: Path) -> None:
    night = Night(tmp_path / "logs")
    night.processes["policy rank 0"].doing = Pulse("update_on", 3, 100.0, ())
    night.pass_time(11.0)
    with pytest.raises(RoleHungError) as caught:
        night.watch.check(night.names, "policy: update")
    kept = sorted(p.name for p in (tmp_path / "logs").iterdir())
    assert kept == ["stacks-policy-rank-0.txt", "stacks-policy-rank-1.txt"]
    assert str(tmp_path / "logs" / kept[0]) in caught.value.fix


def test_restarts_run_out() -> None:
    night = Night()
    night.watch.require_restart("policy rank 0", "signal 9")
    for _ in range(2):  # also where it is asked once more
        with pytest.raises(RoleDiedError, match="restarted 1 times before"):
            night.watch.require_restart("policy rank 0", "signal 9")


def test_the_lost_are_found_by_asking_all(monkeypatch: pytest.MonkeyPatch) -> None:
    night = Night()

    def sleep(seconds: float) -> None:
        night.now += seconds

    monkeypatch.setattr(watching.time, "sleep", sleep)
    assert night.watch.lost(night.names) == []
    night.processes["policy rank 0"].gone = True
    night.processes["policy rank 1"].doing = None
    assert night.watch.lost(night.names) == night.names


def test_a_pulse_shows_the_verb_and_its_passes() -> None:
    seen = []

    def work() -> None:
        before = pulse().beats
        beat()
        seen.append((pulse().verb, pulse().beats - before, pulse().quiet_seconds < 60))

    with shown("update_on"):
        work()
    assert seen == [("update_on", 1, True)]
    assert pulse().verb == ""
    assert pulse().spans[-1].startswith("update_on ")


def test_stacks_name_threads_and_calls() -> None:
    import threading

    go, stand = threading.Event(), threading.Event()

    def waits_for_godot() -> None:
        stand.set()
        go.wait()

    thread = threading.Thread(target=waits_for_godot, name="work")
    thread.start()
    stand.wait()
    text = stacks()
    go.set()
    thread.join()
    assert "thread work:" in text
    assert "waits_for_godot" in text


def test_a_worker_that_is_lost_again_and_again_comes_back_later_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    night = Night()
    rules = replace(RULES, max_restarts=9)
    night.watch = Watch(rules, 60.0, lambda: night.now)
    night.watch.add("reward rank 0", Process())
    monkeypatch.setattr(watching.time, "sleep", lambda seconds: night.pass_time(seconds))
    rests: list[int] = []
    for _ in range(8):
        night.watch.require_restart("reward rank 0", "signal 9")
        lost = night.now
        night.watch.rest("reward rank 0")
        rests.append(round(night.now - lost))
        night.watch.add("reward rank 0", Process())
        night.watch.starting(["reward rank 0"])
        night.watch.started(["reward rank 0"], well=True)
    assert rests == [0, 2, 4, 8, 16, 32, 60, 60]
    night.watch.rest("policy rank 0")  # was never there: nothing to wait for


def test_a_rest_ends_when_ray_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    night = Night()
    monkeypatch.setattr(watching.time, "sleep", lambda seconds: night.pass_time(seconds))
    rules = replace(RULES, max_restarts=9)
    guard = Guard(DistantServers({}, 1.0, bool), 60.0)
    night.watch = Watch(rules, 60.0, lambda: night.now, guard=guard)
    night.watch.add("reward rank 0", Process())
    for _ in range(2):
        night.watch.require_restart("reward rank 0", "signal 9")
    guard._why = "raylet (pid 7) ended by SIGKILL"
    with pytest.raises(ClusterLostError):
        night.watch.rest("reward rank 0")


def test_what_the_kernel_killed_meanwhile_is_told_with_the_death(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counters = tmp_path / "vmstat"
    counters.write_text("nr_free_pages 5\noom_kill 2\noom_kill_other 9\n")
    monkeypatch.setattr(watching, "kernel_kills", lambda: kernel_kills(counters))
    night = Night()
    assert night.watch.died("policy rank 0", "signal 9") == "signal 9"
    counters.write_text("oom_kill 3\n")
    told = "signal 9; the kernel has ended a process of this machine for want of memory"
    assert night.watch.died("policy rank 1", "signal 9") == told
    assert night.watch.life("policy rank 1").reason == told
    assert kernel_kills(tmp_path / "absent") == 0


def test_workers_are_asked_for_signs_of_life_while_the_driver_hashes_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, night = Run(tmp_path), Night()
    asked, hashed = threading.Event(), model_folder.sha256_of
    process = night.processes["policy rank 0"]
    waited = list[bool]()

    def look_after() -> None:
        night.pass_time(11.0)
        if process.asked > before:
            asked.set()

    def slow(path: Path) -> str:
        """A disk that is done with a file only after a worker was asked."""
        waited.append(asked.wait(60.0))
        return hashed(path)

    run.roles.look_after = look_after
    monkeypatch.setattr(model_folder, "sha256_of", slow)
    before = process.asked
    run.session.publish("ppo", ToyPolicy.create(200, 1).save, "ppo")
    published = len(waited)
    assert published
    asked.clear()
    before = process.asked
    run.session.need("ppo")
    assert len(waited) > published
    assert all(waited)
    assert night.status("policy rank 0") is Status.healthy


def test_a_loss_that_is_seen_while_weights_are_hashed_ends_the_hashing() -> None:
    seen = threading.Event()

    def lost() -> None:
        seen.set()
        raise ClusterLostError("the raylet ended")

    with pytest.raises(ClusterLostError, match="the raylet ended"):
        side_by_side(lambda _: seen.wait(60.0), range(100), lost)


def test_a_fleet_looks_after_the_workers_by_its_watch() -> None:
    fleet = Fleet(Config(), object(), Position(), Account())  # type: ignore[arg-type]
    night = Night()
    fleet.watch = night.watch
    night.now = 20.0
    fleet.look_after()
    assert night.processes["policy rank 0"].asked == 1
