"""The command line of the live view."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from fakes.watched import folder_at, sample, write_metrics, write_samples

from orchestrator.run_files.folder import RunFolder
from orchestrator.watch.command import main, require_run
from workers.errors import DataError


def test_the_command_loads_no_framework() -> None:
    code = (
        "import sys, orchestrator.watch.command\n"
        "print([m for m in ('torch', 'ray', 'vllm', 'transformers', 'hydra', 'matplotlib', "
        "'numpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": "."},
                         capture_output=True, text=True, check=True)  # fmt: skip
    assert run.stdout.strip() == "[]"


def test_a_folder_without_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("nothing", "empty", "file", "x" * 5000):
        assert main([str(tmp_path / name)]) == 3
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert "Traceback" not in said
    with pytest.raises(DataError, match="not the folder of a run"):
        require_run(RunFolder(tmp_path / "empty"))


def test_other_machines_need_a_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_at(tmp_path / "run")
    assert main([str(folder.path), "--host", "0.0.0.0"]) == 2
    assert "without encryption" in capsys.readouterr().err
    assert main([str(folder.path), "--port", "70000"]) == 2


def test_a_server_starts_shows_the_run_and_ends(tmp_path: Path) -> None:
    folder = folder_at(tmp_path / "run")
    write_metrics(folder, {"ppo/score_mean": [1.0]})
    write_samples(folder, [sample(n) for n in range(3)])
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.watch", str(folder.path), "--port", "0"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 60)[0]
        address = process.stdout.readline().split()[0]
        assert address.startswith("http://127.0.0.1:")
        end = time.monotonic() + 30
        while "3 of 3 recorded" not in httpx.get(f"{address}/rollouts").text:
            assert time.monotonic() < end
        with folder.locked():
            pass  # a run can take the folder while it is watched
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
