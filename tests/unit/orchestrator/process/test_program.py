"""Suggested commands can be typed in the shell that started the process."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from orchestrator.process import program
from orchestrator.process.program import begin_verb, invocation


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def begun_by(monkeypatch: pytest.MonkeyPatch, python: str) -> str:
    monkeypatch.setattr(program, "_verb", "")
    monkeypatch.setattr(sys, "orig_argv", [python, "-m", "orchestrator.run"])
    return invocation("serve", "orchestrator.serve")


@pytest.mark.parametrize("typed", ["python", "python3", "python3.11", ".venv/bin/python"])
def test_the_interpreter_is_named_as_it_was_typed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, typed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    executable(tmp_path / ".venv" / "bin" / "python")
    assert begun_by(monkeypatch, typed) == f"{typed} -m orchestrator.serve"


def test_a_path_below_the_working_folder_is_shortened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = executable(tmp_path / "my env" / "python")
    assert shlex.split(begun_by(monkeypatch, str(mine)))[0] == "my env/python"
    monkeypatch.setenv("PATH", str(mine.parent))
    assert begun_by(monkeypatch, str(mine)) == "python -m orchestrator.serve"


def test_a_path_elsewhere_stays_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = executable(tmp_path / "env" / "python")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert begun_by(monkeypatch, str(there)) == f"{there} -m orchestrator.serve"


def test_a_verb_names_the_script_that_ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, "_verb", "")
    monkeypatch.setattr(program, "_script", "")
    script = executable(tmp_path / "bin" / "rehearsal")
    monkeypatch.setattr(sys, "argv", [str(script), "run"])
    begin_verb("run")
    assert invocation("serve", "orchestrator.serve") == "bin/rehearsal serve"
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    assert invocation("serve", "orchestrator.serve") == "rehearsal serve"
    monkeypatch.setattr(sys, "argv", ["rehearsal run"])  # as a program that calls verbs itself
    begin_verb("run")
    assert invocation("serve", "orchestrator.serve") == "rehearsal serve"


def test_a_program_that_is_no_python_names_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert begun_by(monkeypatch, "pytest") == "python -m orchestrator.serve"
