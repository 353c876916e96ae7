"""Scratch folders go with their owner, however it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import scratch


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scratch, "home", lambda: tmp_path)
    return tmp_path


def test_close_deletes(home: Path):
    first, second = scratch.Scratch("a"), scratch.Scratch("a")
    assert first.path != second.path
    first.close()
    first.close()
    assert not first.path.exists()
    assert second.path.exists()
    second.close()


def test_a_killed_owner_is_swept_and_a_living_one_is_not(home: Path):
    living = scratch.Scratch("living")
    killed = subprocess.run(
        [sys.executable, "-c",
         "import os, sys, pathlib; from orchestrator import scratch;"
         "scratch.home = lambda: pathlib.Path(sys.argv[1]);"
         "print(scratch.Scratch('killed').path, flush=True); os.kill(os.getpid(), 9)",
         str(home)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    abandoned = Path(killed.stdout.strip())
    assert killed.returncode == -9
    assert abandoned.is_dir()
    assert scratch.sweep(home) == [abandoned]
    assert not abandoned.exists()
    assert living.path.is_dir()
    living.close()


def test_a_folder_that_others_can_write_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Path("/tmp") / f"r{os.getpid()}"  # longer paths are replaced
    short.mkdir()
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(short))
    try:
        own = scratch.home()
        assert own == short / f"rehearsal-{os.getuid()}"
        assert own.stat().st_mode & 0o777 == 0o700
        own.chmod(0o777)
        other = scratch.home()
        assert other != own
        assert other.stat().st_mode & 0o777 == 0o700
    finally:
        shutil.rmtree(short)
