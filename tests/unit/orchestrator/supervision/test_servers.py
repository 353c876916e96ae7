"""Ray's own servers: who is one, what counts as lost, and how the run hears of it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from orchestrator.cluster import private_ray
from orchestrator.process import forced_exit
from orchestrator.process.forced_exit import LastResort, within
from orchestrator.supervision.heartbeats import Watch
from orchestrator.supervision.ray_servers import DistantServers, LocalServers, answers, server_name
from orchestrator.supervision.server_guard import Guard
from orchestrator.supervision.worker_life import Rules
from workers.errors import CheckpointError, ClusterLostError, RehearsalError, RoleDiedError

RULES = Rules(probe_seconds=10.0, probes_to_condemn=3, max_restarts=1, window_seconds=1e6)


class Played(psutil.Process):
    """A process that is as the test says."""

    def __init__(self, pid: int, *words: str) -> None:
        self.words, self.state, self.there, self._pid = list(words), "sleeping", True, pid

    def cmdline(self) -> list[str]:
        return self.words

    def is_running(self) -> bool:
        return self.there

    def status(self) -> str:
        return self.state


@pytest.fixture
def machine() -> dict[str, Played]:
    far = 2**22  # above every pid
    return {
        "gcs_server": Played(far + 1, "/site/ray/core/src/ray/gcs/gcs_server", "--port=0"),
        "monitor": Played(far + 2, "python", "-u", "/site/ray/autoscaler/_private/monitor.py"),
        "raylet": Played(far + 3, "/site/ray/core/src/ray/raylet/raylet", "--store=x"),
        "dashboard_agent": Played(far + 4, "ray::DashboardAgent", ""),
        "runtime_env_agent": Played(far + 5, "ray::RuntimeEnvAgent", ""),
        "worker": Played(far + 6, "ray::PolicyActor.update"),
    }


@pytest.fixture
def servers(machine: dict[str, Played]) -> LocalServers:
    found = LocalServers(3, machine.values)
    assert found.look() == ""
    return found


def test_servers_are_known_by_their_command_lines(machine: dict[str, Played]) -> None:
    known = {name: server_name(process.cmdline()) for name, process in machine.items()}
    assert known == {name: name for name in known} | {"monitor": "", "worker": ""}
    early = ["python", "-u", "/site/ray/dashboard/agent.py", "--node-ip-address=127.0.0.1"]
    assert server_name(early) == "dashboard_agent"  # before it has given itself a title
    assert server_name(["bash", "-c", "tail raylet.out"]) == ""
    assert server_name([]) == ""


@pytest.mark.parametrize("name", ["gcs_server", "raylet", "dashboard_agent", "runtime_env_agent"])
def test_a_server_that_ended_is_named_at_once(
    machine: dict[str, Played], servers: LocalServers, name: str
) -> None:
    machine[name].state = psutil.STATUS_ZOMBIE
    assert servers.ended() == f"{name} (pid {machine[name].pid}) ended"
    machine[name].there = False  # its pid may be another's by now
    machine[name].state = "running"
    assert servers.look() == f"{name} (pid {machine[name].pid}) ended"
    assert not servers.well()


@pytest.mark.parametrize("name", ["gcs_server", "raylet", "runtime_env_agent"])
def test_a_server_that_is_stopped_is_lost_after_some_looks_in_a_row(
    machine: dict[str, Played], servers: LocalServers, name: str
) -> None:
    machine[name].state = psutil.STATUS_STOPPED
    assert [servers.look(), servers.look()] == ["", ""]
    machine[name].state = "sleeping"  # a whole job that was stopped, and goes on
    assert servers.look() == ""
    machine[name].state = psutil.STATUS_STOPPED
    assert [servers.look(), servers.look()] == ["", ""]
    assert servers.look() == f"{name} (pid {machine[name].pid}) is stopped (SIGSTOP)"
    assert servers.ended() == ""
    assert not servers.well()


@pytest.mark.parametrize("name", ["dashboard_agent", "monitor", "worker"])
def test_nothing_waits_for_other_processes_that_are_stopped(
    machine: dict[str, Played], servers: LocalServers, name: str
) -> None:
    machine[name].state = psutil.STATUS_STOPPED
    assert [servers.look() for _ in range(9)] == [""] * 9


def test_a_raylet_that_ends_for_a_stopped_agent_is_named_with_it(
    machine: dict[str, Played], servers: LocalServers
) -> None:
    machine["dashboard_agent"].state = psutil.STATUS_STOPPED
    machine["raylet"].there = False
    raylet, agent = machine["raylet"].pid, machine["dashboard_agent"].pid
    expected = f"raylet (pid {raylet}) ended; dashboard_agent (pid {agent}) is stopped (SIGSTOP)"
    assert servers.look() == servers.ended() == expected


def test_processes_that_serve_people_may_end(
    machine: dict[str, Played], servers: LocalServers
) -> None:
    machine["monitor"].there = machine["worker"].there = False
    assert servers.look() == ""
    assert servers.well()


def test_the_signal_that_ended_a_child_is_named() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    played = Played(child.pid, "raylet")
    servers = LocalServers(3, lambda: [played])
    assert servers.look() == ""
    child.kill()
    played.state = psutil.STATUS_ZOMBIE
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.001)
    assert servers.look() == f"raylet (pid {child.pid}) ended by SIGKILL"
    child.wait()


def test_a_distant_server_is_lost_after_seconds_without_an_answer() -> None:
    now, silent = [0.0], set[str]()
    addresses = {"gcs_server": "head:6379", "raylet": "here:9"}
    servers = DistantServers(addresses, 30.0, lambda a: a not in silent, clock=lambda: now[0])
    assert servers.look() == ""
    silent.add("head:6379")
    for now[0] in (100.0, 110.0, 129.0):
        assert servers.look() == ""
    silent.clear()  # another head took its place
    assert servers.look() == ""
    silent.add("head:6379")
    for now[0] in (130.0, 159.0):
        assert servers.look() == ""
    now[0] = 160.0
    assert servers.look() == "gcs_server at head:6379 has not answered for 30 s"


def test_questions_keep_their_distance() -> None:
    now, asked = [0.0], list[str]()
    ask = lambda address: not asked.append(address)  # noqa: E731
    servers = DistantServers({"raylet": "here:9"}, 30.0, ask, 3.0, lambda: now[0])
    for now[0] in (0.0, 1.0, 2.9, 3.0, 5.9, 6.5):
        servers.look()
    assert asked == ["here:9"] * 3


def test_a_server_that_runs_and_does_not_answer_is_lost_too(
    machine: dict[str, Played], servers: LocalServers
) -> None:
    now = [0.0]
    servers.asked = DistantServers({"raylet": "here:9"}, 30.0, bool, clock=lambda: now[0])
    servers.asked.ask = lambda _: False
    assert servers.look() == ""
    machine["raylet"].state = psutil.STATUS_STOPPED
    now[0] = 31.0
    assert servers.look() == ""  # nobody waits for what cannot answer
    machine["raylet"].state = "sleeping"
    assert servers.look() == "raylet at here:9 has not answered for 30 s"


@pytest.fixture
def port() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def _address(listening: socket.socket) -> str:
    return f"127.0.0.1:{listening.getsockname()[1]}"


def test_who_accepts_and_says_nothing_is_as_good_as_gone(port: socket.socket) -> None:
    assert not answers(_address(port), 0.05)  # as the kernel does for a stopped process
    port.close()
    assert not answers("127.0.0.1:1", 0.05)


@pytest.mark.parametrize("reply", [b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", b""])
def test_who_answers_or_hangs_up_runs(port: socket.socket, reply: bytes) -> None:
    heard: list[bytes] = []

    def serve() -> None:
        line, _ = port.accept()
        with line:
            heard.append(line.recv(100))
            line.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    assert answers(_address(port), 5.0)
    thread.join()
    assert heard[0].startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")


class Told:
    """Servers that are lost when the test says so."""

    def __init__(self) -> None:
        self.seen = self.shown = ""

    def look(self) -> str:
        return self.seen

    def ended(self) -> str:
        return self.shown


class Resort(LastResort):
    """Notes what would end the process."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[RehearsalError] = []
        self.called = threading.Event()

    def fail(self, error: RehearsalError) -> None:  # type: ignore[override]
        self.errors.append(error)
        self.called.set()


def test_the_driver_hears_of_a_lost_server_at_its_next_wait() -> None:
    told, resort = Told(), Resort()
    guard = Guard(told, 0.001, resort, notice_seconds=60.0)
    guard.fix = lambda: "resume it with resume=RUN"
    watch = Watch(RULES, 60.0, guard=guard)
    guard.start()
    watch.tick()
    told.seen = "raylet (pid 7) is stopped (SIGSTOP)"
    while not guard.lost:
        time.sleep(0.001)
    with pytest.raises(ClusterLostError, match=r"raylet [(]pid 7[)] is stopped") as caught:
        watch.tick()
    assert caught.value.fix == "resume it with resume=RUN"
    assert caught.value.exit_code == 7
    guard.stand_down()
    guard._thread.join(5)
    assert resort.errors == []


def test_a_worker_that_ends_with_a_server_is_no_loss_of_its_own() -> None:
    told = Told()
    watch = Watch(RULES, 60.0, guard=Guard(told, 60.0))
    told.shown = "raylet (pid 7) ended by SIGKILL"
    with pytest.raises(ClusterLostError, match="ended by SIGKILL"):
        watch.died("policy rank 0", "its process ended")


def test_what_ray_raises_for_want_of_a_server_is_told_as_that() -> None:
    told = Told()
    guard = Guard(told, 60.0)
    with pytest.raises(ConnectionError), guard.explaining():
        raise ConnectionError("GCS is gone")  # all servers are well: it must be something else
    told.shown = "gcs_server (pid 8) ended by SIGKILL"
    with pytest.raises(CheckpointError), guard.explaining():
        raise CheckpointError("the disk is full")  # a reason of its own
    for error in (ConnectionError("GCS is gone"), RoleDiedError("the process ended")):
        with pytest.raises(ClusterLostError, match="gcs_server"), guard.explaining():
            raise error


def test_a_driver_that_does_not_answer_is_ended() -> None:
    told, resort = Told(), Resort()
    guard = Guard(told, 0.001, resort, notice_seconds=0.01)
    told.seen = "gcs_server (pid 8) ended by SIGKILL"
    guard.start()
    assert resort.called.wait(5)
    assert [error.what for error in resort.errors] == [
        "Ray cannot continue: gcs_server (pid 8) ended by SIGKILL"
    ]


def test_what_ends_once_ray_is_not_needed_is_no_fault() -> None:
    told, resort = Told(), Resort()
    guard = Guard(told, 0.001, resort, notice_seconds=0.01)
    guard.start()
    guard.stand_down()
    told.seen = "raylet (pid 7) ended by SIGKILL"
    guard._thread.join(5)
    assert not guard.lost
    assert resort.errors == []


def test_the_last_resort_does_all_that_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []

    def leave(code: int) -> None:
        done.append(code)
        raise SystemExit(code)

    def broken() -> None:
        done.append("broken")
        raise OSError("disk full")

    def hanging() -> None:
        done.append("hanging")
        threading.Event().wait(60)

    monkeypatch.setattr(forced_exit.os, "_exit", leave)
    monkeypatch.setattr(forced_exit, "_STEP_SECONDS", 0.05)
    resort = LastResort()
    resort.report = lambda error: done.append(error.what)
    resort.steps += [lambda: done.append("processes"), hanging, broken]
    error = ClusterLostError("Ray cannot continue", where="cluster")
    with suppress(SystemExit):
        resort.fail(error)
    assert done == ["broken", "hanging", "processes", "Ray cannot continue", 7]
    assert any("test_the_last_resort" in note for note in error.__notes__)


def test_who_is_still_inside_ray_is_not_waited_for_at_the_end() -> None:
    code = (
        "import threading; from orchestrator.process.forced_exit import LEAVING;"
        "from orchestrator.process.stop_signals import exit_process;"
        "print('said', end=''); import atexit; atexit.register(print, 'unwound');"
        "hold = threading.Event().wait;"
        "threading.Thread(target=hold, name=LEAVING, daemon=True).start() if {} else None;"
        "exit_process(7)"
    )
    for stuck, said in ((True, "said"), (False, "saidunwound\n")):
        run = subprocess.run([sys.executable, "-c", code.format(stuck)], stdout=subprocess.PIPE)
        assert (run.returncode, run.stdout.decode()) == (7, said)


def test_a_step_is_waited_for_only_so_long() -> None:
    assert within(5.0, lambda: None)
    assert not within(0.01, lambda: threading.Event().wait(60))


def test_who_reads_a_log_of_ray_is_not_ended_with_it(tmp_path: Path) -> None:
    code = "import sys, time\nf = open(sys.argv[1], sys.argv[2])\nprint(flush=True)\ntime.sleep(60)"
    (tmp_path / "log").touch()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "log"), mode], stdout=subprocess.PIPE
        )
        for mode in ("r", "a")
    ]
    try:
        for each in started:
            assert each.stdout is not None
            each.stdout.readline()
        assert [process.pid for process in private_ray._writers(tmp_path)] == [started[1].pid]
    finally:
        for each in started:
            each.kill()
            each.communicate()
