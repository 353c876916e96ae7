"""What is told of the output of a worker whose process ended."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.supervision import worker_output
from orchestrator.supervision.backend import WorkerGoneError
from orchestrator.supervision.heartbeats import Watch
from orchestrator.supervision.pending import fetch
from orchestrator.supervision.worker_life import Rules
from orchestrator.supervision.worker_output import last_line, output_of
from workers.errors import RoleDiedError

ERROR = """The actor died unexpectedly before finishing this task.
\tclass_name: RolloutWorker
\tactor_id: 28769852
\tpid: 123
\tnamespace: x
\tip: 10.0.0.7
The actor is dead because its worker process has died."""
ABORTED = """:job_id:01000000
:actor_name:RolloutWorker
torch.AcceleratorError: CUDA error: an illegal memory access
*** SIGABRT received at time=1795933434 on cpu 0 ***
PC: @     0x7f3d3d2a8eec  (unknown)  (unknown)
    @     0x7f3d3d25a050  160786576  (unknown)
[2026-11-29 06:23:54,451 E 12363 12363] logging.cc:474: PC: @
Stack (most recent call first):
  File "engine.py", line 9 in step

Extension modules: msgpack._cmsgpack
"""


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    node = SimpleNamespace(get_logs_dir_path=lambda: str(tmp_path), node_ip_address="10.0.0.7")
    monkeypatch.setattr(worker_output.worker, "_global_node", node)
    return tmp_path


def test_the_file_is_named_with_its_last_line(logs: Path) -> None:
    (logs / "worker-ab-01-123.err").write_text(ABORTED)
    (logs / "worker-ab-01-123.out").write_text("out\n")
    (logs / "worker-cd-01-1234.err").write_text("another's\n")
    assert output_of(ERROR) == (
        f"its output is in {logs}/worker-ab-01-123.err, which ends in "
        '"torch.AcceleratorError: CUDA error: an illegal memory access"'
    )


def test_where_one_stream_is_empty_the_other_one_speaks(logs: Path) -> None:
    (logs / "worker-ab-01-123.err").write_text(":job_id:01000000\n")
    (logs / "worker-ab-01-123.out").write_text(":actor_name:A\nlast\n")
    assert output_of(ERROR) == (
        f'its output is in {logs}/worker-ab-01-123.err, which ends in "last"'
    )
    (logs / "worker-ab-01-123.out").write_text("")
    assert output_of(ERROR) == f"its output is in {logs}/worker-ab-01-123.err"


def test_a_worker_of_another_node_is_found_there(logs: Path) -> None:
    told = output_of(ERROR.replace("10.0.0.7", "10.0.0.8"))
    assert told == (f"its output is in worker-*-123.err and .out of the folder {logs} on 10.0.0.8")


def test_nothing_is_told_that_is_not_known(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert output_of(ERROR) == ""  # no such file
    assert output_of("The actor died because of an unknown reason.") == ""
    monkeypatch.setattr(worker_output.worker, "_global_node", None)
    assert output_of(ERROR) == ""


def test_the_last_line_of_hostile_output_is_bounded_and_printable(tmp_path: Path) -> None:
    file = tmp_path / "x.err"
    assert last_line(file) == ""
    file.write_bytes(b"\xff" * (1 << 20) + b"\n\x1b[2Jend" + b"x" * 1000 + b"\n  \n")
    assert last_line(file) == "[2Jend" + "x" * 193
    file.write_text('Traceback (most recent call last):\n  File "a.py", line 1\nValueError: 3\n')
    assert last_line(file) == "ValueError: 3"


@pytest.mark.parametrize("kept", [True, False])
def test_the_error_of_a_lost_worker_says_where_its_output_is(tmp_path: Path, kept: bool) -> None:
    rules = Rules(probe_seconds=1, probes_to_condemn=3, max_restarts=1, window_seconds=9)
    watch = Watch(rules, 60.0, logs=tmp_path / "logs") if kept else None

    class Gone:
        def get(self, ref: object, seconds: float) -> object:
            raise WorkerGoneError("signal 6.", "its output is in FILE")

    backend: Any = Gone()
    with pytest.raises(RoleDiedError) as caught:
        fetch(backend, None, "rollout rank 1", "rollout: generate", 9.0, watch)
    assert caught.value.what == (
        "the process of rollout rank 1 ended: rollout: generate; signal 6; its output is in FILE"
    )
    place = f" (a local run that ends in an error keeps it in {tmp_path}/logs)"
    assert caught.value.fix == "its output says why" + (place if kept else "")
