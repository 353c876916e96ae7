"""`rehearsal VERB`: the modules' own commands, with their arguments as typed."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator import cli
from orchestrator.process import program
from orchestrator.process.program import begin_verb


@pytest.fixture(autouse=True)
def _no_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_verb", "")
    monkeypatch.setattr(sys, "path", sys.path.copy())


def _run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rehearsal", *words])
    monkeypatch.setattr(cli, "exit_process", sys.exit)  # that one ignores signals from now on
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def _put(monkeypatch: pytest.MonkeyPatch, verb: str, main: object) -> None:
    monkeypatch.setitem(sys.modules, cli.VERBS[verb].module, SimpleNamespace(main=main))


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_is_a_module_with_a_main(verb: str) -> None:
    assert callable(importlib.import_module(cli.VERBS[verb].module).main)


@pytest.mark.parametrize(
    "words", [["--help"], ["-n", "3", "a b", "--", "--flag=x"], ["+experiment=ppo", "x=[a,b]"], []]
)
def test_a_verb_gets_its_arguments_as_typed_and_its_code_ends_the_process(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def main(arguments: list[str]) -> int:
        seen.append(arguments)
        return 4

    _put(monkeypatch, "export", main)
    assert _run(monkeypatch, "export", *words) == 4
    assert seen == [words]


def test_a_run_reads_its_arguments_from_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    _put(monkeypatch, "run", lambda: seen.append(sys.argv.copy()) or 0)
    assert _run(monkeypatch, "run", "+experiment=pocket", "-m", "seed=0,1") == 0
    assert seen == [["rehearsal run", "+experiment=pocket", "-m", "seed=0,1"]]


def test_functions_in_the_working_folder_are_found_as_under_python_m(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    _put(monkeypatch, "chat", lambda _: 0)
    cli.call("chat", [])
    cli.call("chat", [])
    assert sys.path[0] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


def test_usage_names_the_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "report", "--help") == 0
    assert "usage: rehearsal report [-h] RUN_FOLDER" in capsys.readouterr().out
    assert program.program("orchestrator.report") == "rehearsal report"


def test_outside_of_a_verb_usage_names_the_module() -> None:
    assert program.program("orchestrator.report") == "python -m orchestrator.report"
    begin_verb("bench startup")
    assert program.program("benchmarks.command") == "rehearsal bench startup"


def test_an_unknown_verb_is_refused_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "epxort") == 2
    assert "'export'" in capsys.readouterr().err


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"rehearsal {version('rehearsal')}\n"


def test_help_lists_every_verb_with_its_sentence_and_needs_no_engine() -> None:
    code = (
        "import sys; sys.argv = ['rehearsal', '--help']; from orchestrator import cli\n"
        "try: cli.main()\n"
        "except SystemExit: print(sorted({'torch', 'ray', 'vllm', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    for name, verb in cli.VERBS.items():
        assert f"{name} " in done.stdout
        assert verb.help in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
