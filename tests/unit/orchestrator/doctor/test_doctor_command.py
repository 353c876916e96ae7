"""The command: numbered lines, JSON, exit codes; neither hangs nor tracebacks."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.doctor import children, command
from orchestrator.doctor.children import Child
from orchestrator.doctor.findings import (
    Check,
    Finding,
    State,
    failure,
    good,
    run_checks,
    skipped,
    warning,
)
from orchestrator.doctor.subject import Subject
from workers.errors import ConfigError, DeadlineError, RoleError

Subjects = Callable[..., Subject]
STEPS = """
import os, time
from workers.errors import ConfigError

def hang(given, folder):
    time.sleep(60)

def refuse(given, folder):
    raise ConfigError("no", where="there", fix="do")

def end(given, folder):
    print("last words", flush=True)
    os._exit(9)

KINDS = {
    "well": {"first": lambda given, folder: given, "second": refuse, "third": lambda *_: 3},
    "ends": {"first": lambda *_: 1, "second": end},
    "hangs": {"first": hang},
    "broken": {"first": refuse, "second": lambda *_: 2},
}

def main(arguments):
    from orchestrator.doctor import child
    child._steps = KINDS.__getitem__
    return child.main(arguments)

if __name__ == "__main__":
    import sys
    main(sys.argv[1:])
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Child]]:
    """Starts a child with steps of this test."""
    (tmp_path / "doctor_steps.py").write_text(STEPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(children, "MODULE", "doctor_steps")
    started: list[Child] = []

    def start(kind: str, seconds: float = 60.0, given: object = None) -> Child:
        folder = tmp_path / kind
        folder.mkdir()
        started.append(Child(kind, folder, seconds, given))
        return started[-1]

    yield start
    for each in started:
        each.end()


def test_a_child_answers_by_step_and_raises_the_errors_of_its_steps(
    child: Callable[..., Child],
) -> None:
    well = child("well", given=[1, "x"])
    assert well.of("third") == 3
    assert well.of("first") == [1, "x"]
    with pytest.raises(RoleError) as caught:
        well.of("second")
    assert (caught.value.what, caught.value.where, caught.value.fix) == ("no", "there", "do")


def test_a_child_that_ends_is_told_with_its_step_code_and_last_line(
    child: Callable[..., Child],
) -> None:
    ends = child("ends")
    assert ends.of("first") == 1
    with pytest.raises(RoleError, match=r"exit code 9 in its step second: last words"):
        ends.of("second")


def test_steps_after_a_first_one_that_failed_have_its_error(child: Callable[..., Child]) -> None:
    broken = child("broken")
    with pytest.raises(RoleError, match="no"):
        broken.of("second")


def test_a_child_that_hangs_is_killed_at_its_deadline_for_all_who_wait(
    child: Callable[..., Child],
) -> None:
    hangs = child("hangs", seconds=1.0)
    for _ in range(2):
        with pytest.raises(DeadlineError, match=r"within 1 s in its step first|within 1 s"):
            hangs.of("first")


def test_checks_run_side_by_side_and_are_numbered_in_order(subject: Subjects) -> None:
    gate = threading.Event()

    def waits(_: Subject) -> Finding:
        assert gate.wait(20)
        return good("first")

    def opens(_: Subject) -> Finding:
        gate.set()
        return warning("second", "fix it")

    found = list(run_checks([Check("a", waits, 30), Check("b", opens, 30)], subject()))
    assert [(each.number, each.name, each.finding.what) for each in found] == [
        (1, "a", "first"),
        (2, "b", "second"),
    ]


def test_a_check_that_hangs_or_raises_fails_and_the_others_go_on(subject: Subjects) -> None:
    def hangs(_: Subject) -> Finding:
        time.sleep(30)
        return good("")

    def raises(_: Subject) -> Finding:
        raise KeyError("free")

    def refuses(_: Subject) -> Finding:
        raise ConfigError("two of them", where="there", fix="take one")

    listed = [Check("a", hangs, 0.05), Check("b", raises), Check("c", refuses)]
    late, error, typed = [each.finding for each in run_checks(listed, subject())]
    assert {late.state, error.state, typed.state} == {State.fail}
    assert "no answer within 0.05 s" in late.what
    assert "KeyError: 'free'" in error.what
    assert (typed.what, typed.fix) == ("two of them (there)", "take one")


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the list of checks, and the process of torch."""

    class NoChild:
        def __init__(self, *_: object) -> None: ...
        def end(self) -> None: ...

    def put(*findings: Finding) -> None:
        checks = [Check(f"check {n}", lambda _, f=f: f) for n, f in enumerate(findings)]
        monkeypatch.setattr(command, "all_checks", lambda *, engine: checks)
        monkeypatch.setattr(command, "Child", NoChild)

    return put


def test_a_failure_is_code_2_and_a_warning_is_none(
    listed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    listed(good("all well"), warning("slow", "hurry"), skipped("no GPU"))
    assert command.main([]) == 0
    assert capsys.readouterr().out == (
        " 1 ok   check 0         all well\n"
        " 2 warn check 1         slow\n"
        "                        fix: hurry\n"
        " 3 skip check 2         no GPU\n"
        "3 checks: 1 ok, 1 warned, 0 failed, 1 skipped\n"
    )
    listed(good("well"), failure("\x1b]2;gone\x07", "bring it"))
    assert command.main(["--json", "+experiment=pocket"]) == 2
    rows = json.loads(capsys.readouterr().out)["checks"]
    assert [row["state"] for row in rows] == ["ok", "fail"]
    assert rows[1]["fix"] == "bring it"
    assert rows[1]["number"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["+experiment=nope"], 2, "there is no experiment/nope"),
        (["cluster.nodes=0"], 2, "cluster.nodes=0 is out of range"),
        (["cluster.adress=x"], 2, "unknown key cluster.adress"),
        (["rerun=/nowhere"], 2, "cannot be read"),
    ],
)
def test_a_command_line_that_means_nothing_is_one_message(
    listed: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    listed(good("well"))
    assert command.main(arguments) == code
    taken = capsys.readouterr()
    assert words in taken.err
    assert "Traceback" not in taken.err
    assert taken.out == ""
