"""Fork servers: copies of a process that has done its imports, and what a copy has of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.cluster import start_worker
from orchestrator.cluster.fork_servers import ForkServers, Preload, preloads
from orchestrator.config.cluster import Accelerator, RoleName
from orchestrator.config.schema import Config
from workers.errors import DataError, DeadlineError, RoleDiedError
from workers.process.child_processes import module_environment

MARK = "colorsys"  # a module that nothing else imports
REPORT = f"""
import json, os, signal, sys, threading
print(json.dumps({{
    "pid": os.getpid(), "arguments": sys.argv, "folder": os.getcwd(), "name": __name__,
    "mark": "{MARK}" in sys.modules, "hidden": "wave" in sys.modules,
    "there": os.environ.get("THERE"), "server": os.environ.get("OF_SERVER"),
    "threads": threading.active_count(), "child": signal.getsignal(signal.SIGCHLD).name,
    "blocked": sorted(each.name for each in signal.pthread_sigmask(signal.SIG_BLOCK, [])),
}}))
sys.exit(3)
"""


@pytest.fixture
def servers() -> Iterator[ForkServers]:
    environment = {"OF_SERVER": "yes", "OMP_NUM_THREADS": "1"}
    role = RoleName.policy
    with ForkServers([Preload("s", (role,), ("-wave", MARK, "not_there"), environment)]) as made:
        yield made


def start(server: str, script: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """As Ray's node starts a worker, by the command of its own script."""
    context = {"env_vars": {start_worker.SERVER: server, "THERE": "yes", **more}}
    command = [
        sys.executable, start_worker.__file__, str(script), *arguments,
        "--language=PYTHON", f"--serialized-runtime-env-context={json.dumps(context)}",
    ]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=script.parent, env=module_environment()
    )


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "worker.py"
    path.write_text(REPORT)
    return path


def test_a_copy_runs_the_script_as_a_new_python_would(servers: ForkServers, script: Path):
    found = {}
    for how, address in (("copied", servers.address(RoleName.policy)), ("new", "")):
        process = start(address, script, "--a=1", "b c")
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 3
        found[how] = json.loads(said)
    copied, new = found["copied"], found["new"]
    assert copied.pop("mark")
    assert not new.pop("mark")
    assert copied.pop("pid") != new.pop("pid")
    # SIGINT and the stop signals are for the driver, as in what Ray's own servers start
    assert {"SIGINT", "SIGTERM", "SIGHUP"} <= set(copied.pop("blocked"))
    new.pop("blocked")
    assert copied == new
    assert copied["arguments"] == [str(script), "--a=1", "b c"]
    assert copied["there"] == "yes"
    assert copied["server"] is None
    assert not copied["hidden"]
    assert copied["threads"] == 1
    assert copied["child"] == "SIG_DFL"


def test_a_worker_without_its_server_is_a_new_python(servers: ForkServers, script: Path):
    address = servers.address(RoleName.policy)
    for process in servers.processes():
        process.kill()
    for server in (address, str(script.parent / "no socket")):
        process = start(server, script)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 3
        assert json.loads(said)["there"] == "yes"


def test_the_starter_ends_with_its_killed_worker(servers: ForkServers, tmp_path: Path):
    script = tmp_path / "worker.py"
    script.write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    process = start(servers.address(RoleName.policy), script)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert pid != process.pid
    os.kill(pid, signal.SIGKILL)
    assert process.wait(30) == (-signal.SIGKILL) % 256
    assert not psutil.pid_exists(pid)  # the server has reaped it


def test_close_ends_copies_and_their_children(servers: ForkServers, tmp_path: Path):
    script = tmp_path / "worker.py"
    script.write_text(
        "import subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    process = start(servers.address(RoleName.policy), script)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    everyone = servers.processes()
    assert len(everyone) == 3
    assert child in {each.pid for each in everyone}
    servers.close()
    assert not any(each.is_running() and each.status() != "zombie" for each in everyone)
    assert process.wait(30)
    servers.close()


def test_a_server_ends_with_its_owner(tmp_path: Path):
    owner = subprocess.Popen(
        [
            sys.executable, "-c",
            "import time\n"
            "from orchestrator.cluster.fork_servers import *\n"
            "servers = ForkServers([Preload('s', (RoleName.policy,), (), {})])\n"
            "print(servers.processes()[0].pid, flush=True); time.sleep(600)",
        ],
        stdout=subprocess.PIPE, env=module_environment(),
    )  # fmt: skip
    assert owner.stdout is not None
    server = psutil.Process(int(owner.stdout.readline()))
    owner.kill()
    owner.wait()
    server.wait(30)


def test_what_no_client_should_send_is_no_end_of_the_server(servers: ForkServers, script: Path):
    address = servers.address(RoleName.policy)
    for line in (b"", b"\n", b"[1]\n", b"{}\n", b"no json\n", b"\xff\n", b'{"arguments": 1}\n'):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address)
            client.sendall(line)
    process = start(address, script)
    assert json.loads(process.communicate(timeout=60)[0])["mark"]


def refuse(what: str) -> None:
    raise DataError(what, where="there", fix="this")


def leave() -> None:
    os.write(1, b"the last words\n")
    os._exit(7)


def whose(number: int, *, name: str) -> tuple[int, int, str, bool]:
    return os.getpid(), number, name, MARK in sys.modules


HERE = "unit.orchestrator.cluster.test_fork_servers"


@pytest.fixture
def called(servers: ForkServers, monkeypatch: pytest.MonkeyPatch) -> ForkServers:
    """Servers whose copies can import the functions above."""
    tests = str(Path(__file__).resolve().parents[3])
    monkeypatch.setenv("PYTHONPATH", tests)
    preload = Preload("s", (RoleName.policy,), (MARK,), {"PYTHONPATH": f"{tests}:{ROOT}"})
    with ForkServers([preload]) as made:
        yield made


ROOT = str(Path(__file__).resolve().parents[4])


def test_a_call_is_made_in_a_copy_and_its_value_and_errors_come_back(called: ForkServers):
    value = called.call(f"{HERE}:whose", 4, seconds=60.0, name="a")
    refused = called.call(f"{HERE}:refuse", "no such thing", seconds=60.0)
    gone = called.call(f"{HERE}:leave", seconds=60.0)
    pid, *rest = value()
    assert pid != os.getpid()
    assert rest == [4, "a", True]
    with pytest.raises(DataError, match="no such thing") as error:
        refused()
    assert (error.value.where, error.value.fix) == ("there", "this")
    with pytest.raises(RoleDiedError, match=r"leave ended with exit code 7: the last words"):
        gone()


def test_a_call_that_takes_too_long_is_a_typed_error(called: ForkServers):
    began = time.monotonic()
    value = called.call("time:sleep", 600.0, seconds=0.5)
    with pytest.raises(DeadlineError, match="time:sleep did not end within"):
        value()
    assert time.monotonic() - began < 60.0


def test_without_a_server_a_call_is_made_here():
    assert ForkServers([]).call(f"{HERE}:whose", 4, seconds=1.0, name="a")()[0] == os.getpid()


def test_engines_and_models_are_imported_apart_and_only_on_this_machine_without_gpus():
    config = Config()
    engines, models = preloads(config, list(RoleName))
    assert engines.roles == (RoleName.rollout,)
    assert "workers.generation.vllm_engine" in engines.modules
    assert engines.environment["TORCHDYNAMO_DISABLE"] == "1"
    assert set(models.roles) == {*RoleName} - {RoleName.rollout}
    assert "workers.training.deepspeed_engine" in models.modules
    assert "TORCHDYNAMO_DISABLE" not in models.environment
    (frozen,) = preloads(config, [RoleName.reference])
    assert frozen.modules == ("-ray", "workers.roles.reference")
    config.cluster.address = "auto"
    assert preloads(config, list(RoleName)) == []
    config.cluster.address = "local"
    config.cluster.accelerator = Accelerator.cuda
    assert preloads(config, list(RoleName)) == []


def test_the_driver_imports_no_library_of_models() -> None:
    seen = "[name for name in ('torch', 'transformers.modeling_utils', 'vllm', 'deepspeed', "
    seen += "'matplotlib.figure', 'pandas') if name in sys.modules]"
    code = f"import sys, orchestrator.run, orchestrator.recipe; print({seen})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=module_environment(), timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
