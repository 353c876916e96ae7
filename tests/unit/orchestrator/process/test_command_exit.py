"""The end of every command: one message, one exit code, whatever is raised."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.table import Table

from orchestrator import export, new_model
from orchestrator.data import command as data
from orchestrator.doctor import command as doctor
from orchestrator.process import command_exit
from orchestrator.process.home_folder import leave_home_alone
from orchestrator.process.printing import rendered
from orchestrator.report import build as report
from workers.errors import DataError

ROOT = Path(__file__).resolve().parents[4]


class Mute(Exception):
    """An exception whose message cannot be made."""

    def __str__(self) -> str:
        raise ValueError


def _raise(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def _recurse() -> None:
    _recurse()


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(command_exit.tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (_raise(KeyError("model")), "KeyError: 'model'"),
        (_raise(OSError(28, "No space left on device")), "OSError: [Errno 28] No space left"),
        (_raise(MemoryError()), "MemoryError"),
        (_raise(RuntimeError("first\nsecond")), "RuntimeError: first second"),
        (_raise(RuntimeError("x" * 10_000)), "xxx ..."),
        (_raise(Mute()), "Mute"),
        (_raise(AssertionError("\udcff")), "AssertionError: "),
        (_recurse, "RecursionError"),
    ],
)
def test_what_nobody_expected_ends_in_one_line_and_a_file(
    work: Callable[[], None], words: str, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_exit.exit_code(work) == 70
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: unexpected ")
    assert words in first
    assert len(first) < 600
    [log] = temporary.iterdir()
    assert second == f"  traceback: {log}"
    assert log.read_text(encoding="utf-8").startswith("Traceback")


def test_the_line_names_the_innermost_place_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        data.parse_columns([None])  # type: ignore[list-item]

    assert command_exit.exit_code(work) == 70
    assert ", at orchestrator/data/command.py:" in capsys.readouterr().err
    assert "in parse_columns" not in Path("orchestrator/process/command_exit.py").name


def test_a_traceback_that_no_folder_takes_is_said_to_be_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_exit.tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert command_exit.unexpected(ValueError("no"), tmp_path / "gone" / "error.log") == 70
    assert "no traceback is kept" in capsys.readouterr().err


def test_a_log_in_the_run_folder_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command_exit.unexpected(ValueError("no"), tmp_path / "error.log")
    assert [path.name for path in tmp_path.iterdir()] == ["error.log"]
    assert f"traceback: {tmp_path / 'error.log'}" in capsys.readouterr().err


def test_expected_errors_signals_and_exits_keep_their_meaning(
    temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_exit.exit_code(_raise(DataError("no rows", where="f:1"))) == 3
    assert capsys.readouterr().err == "error: no rows\n  where: f:1\n"
    assert command_exit.exit_code(_raise(KeyboardInterrupt())) == 130
    with pytest.raises(SystemExit) as left:
        command_exit.exit_code(_raise(SystemExit(5)))
    assert left.value.code == 5
    assert list(temporary.iterdir()) == []


def test_streams_that_are_closed_or_ascii_take_everything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    narrow = (tmp_path / "out").open("w", encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    monkeypatch.setattr(sys, "stderr", None)

    def work() -> None:
        sys.stdout.write("é\udcff")
        sys.stderr.write("é")

    assert command_exit.exit_code(work) == 0
    assert (tmp_path / "out").read_text() == "\\xe9\\udcff"


def test_tables_for_an_ascii_terminal_hold_ascii_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table("length", "█⟦trained⟧")
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        text = rendered(table, stream)
    assert text.isascii()
    assert "#{trained}" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["orchestrator.report", "{run}"],
        ["orchestrator.data", "inspect", "{run}/rows.jsonl"],
        ["orchestrator.run", "+experiment=pocket_tiny", "run.plan_only=true"],
    ],
)
@pytest.mark.parametrize("output", ["/dev/full", "closed"])
@pytest.mark.slow
def test_output_that_nobody_takes_is_no_traceback(
    tmp_path: Path, arguments: list[str], output: str
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "metrics.jsonl").write_text(
        '{"stage": "sft", "step": 0, "name": "sft/loss", "value": 1.0, "unit": "nats/token"}\n'
    )
    line = " ".join(part.format(run=tmp_path) for part in arguments)
    shell = f"{sys.executable} -m {line} " + (">&-" if output == "closed" else f"> {output}")
    done = subprocess.run(
        ["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HOME": "/dev/null"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode in ((70, 0) if output == "/dev/full" else (0,))


def test_a_package_that_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "orchestrator.run"], cwd=tmp_path, capture_output=True,
        text=True, check=False, env={"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: the installation is not complete: ModuleNotFoundError")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["random", "typing", "torch", "numpy", "workers"])
def test_a_file_of_the_working_folder_hides_no_module(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('imported in place of another')\n")
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.run", "--help", "seed"], cwd=tmp_path,
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("seed=0 ")


@pytest.mark.parametrize("module", [data, doctor, export, new_model, report])
def test_every_command_explains_itself(module: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        module.main(["--help"])  # type: ignore[attr-defined]
    assert left.value.code == 0
    assert "usage: python -m orchestrator." in capsys.readouterr().out


def test_a_home_that_cannot_be_written_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "HF_HOME", "TRITON_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setenv("TRITON_HOME", "mine")
    before = dict(os.environ)
    leave_home_alone()
    new = {name: value for name, value in os.environ.items() if before.get(name) != value}
    for name in new:
        monkeypatch.delenv(name)
    assert {"XDG_CACHE_HOME", "XDG_CONFIG_HOME"} <= set(new)
    assert "TRITON_HOME" not in new  # the user's choice stays
    assert all(Path(folder).is_dir() for folder in new.values())


EVERY_RUN = ("MPLCONFIGDIR", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT")


def test_a_home_that_can_be_written_loses_only_what_every_run_would_leave_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", *EVERY_RUN):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    before = dict(os.environ)
    leave_home_alone()
    new = {name: value for name, value in os.environ.items() if before.get(name) != value}
    assert sorted(new) == sorted(EVERY_RUN)
    assert not any(Path(folder).is_relative_to(tmp_path) for folder in new.values())
    assert list(tmp_path.iterdir()) == []


def test_a_users_own_place_for_settings_and_caches_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in EVERY_RUN:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    before = dict(os.environ)
    leave_home_alone()
    assert dict(os.environ) == before


_PRINTS = """
import logging, sys, time
from pathlib import Path
from orchestrator.process.command_exit import exit_code
from orchestrator.telemetry.live import LiveView

def work():
    Path("ready").touch()
    while not Path("left").exists():
        time.sleep(0.01)
    logging.basicConfig(stream=sys.stdout)
    with LiveView("run", ["sft"]) as view:
        view.stage("sft", 2)
        view.advance(1, loss=1.0)
        logging.warning("a library's line")
        print("ours", flush=True)
        print("warned", file=sys.stderr)
        view.finish_stage()
    Path("done").write_text("whole")

sys.exit(exit_code(work, outlast_reader=True))
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_goes_on_when_the_reader_of_its_output_leaves(
    tmp_path: Path, *, terminal: bool
) -> None:
    reader, writer = os.openpty() if terminal else os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", _PRINTS], cwd=tmp_path, stdout=writer, stderr=writer,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"},
    )  # fmt: skip
    os.close(writer)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
    os.close(reader)
    (tmp_path / "left").touch()
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "done").read_text() == "whole"


def test_control_characters_of_texts_never_reach_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    evil = "\x1b]0;title\x07\x1b[2Ja\rb\x9b31m\tc\nd"
    seen = r"\x1b]0;title\x07\x1b[2Ja\rb\x9b31m" + "\tc\nd"
    assert command_exit.visible(evil) == seen
    assert command_exit.visible("\x1b[1;31mred\x1b[0m \u00e9\u2588\u200d") == (
        "\x1b[1;31mred\x1b[0m \u00e9\u2588\u200d"
    )
    command_exit.say(evil)
    assert capsys.readouterr().err == seen
    table = Table()
    table.add_row("x\x1b[2Jy\x9bz")
    assert not set("\x9b") & set(rendered(table))
    assert "\x1b[2J" not in rendered(table)
