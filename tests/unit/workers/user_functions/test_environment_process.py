"""Environments in a process of their own: one that raises, hangs or ends it costs itself alone."""

from __future__ import annotations

import time

import pytest

from workers.errors import ConfigError
from workers.user_functions.environment_function import try_factory
from workers.user_functions.environment_process import LATE, EnvironmentProcess

MODULE = """
import os, time
from workers.environments.turn import Turn

class Counting:
    def __init__(self, row, seed):
        self.said, self.row, self.seed = [], row, seed
        if row.get("make") == "raise":
            raise LookupError("no such row")
    def step(self, text):
        self.said.append(text)
        if text == "raise":
            raise ValueError("a bad turn")
        if text == "exit":
            os._exit(3)
        if text == "hang":
            time.sleep(1000)
        if text == "system":
            raise SystemExit(2)
        if text == "number":
            return 7
        if text == "nan":
            return Turn("", float("nan"))
        if text == "dict":
            return {"observation": "", "reward": 0, "done": True}
        return Turn(f"{self.row.get('name')} {self.seed} {' '.join(self.said)} {os.getpid()}",
                    1.0, text == "bye")

def make(row, seed):
    return Counting(row, seed)
def one(row):
    return Counting(row, 0)
def nothing(row, seed):
    return None
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("environment")
    (made / "my_environment.py").write_text(MODULE)
    return str(made)


@pytest.fixture
def process(folder: str) -> EnvironmentProcess:
    return EnvironmentProcess("my_environment:make", folder, 5.0)


def said(played: object) -> list[str]:
    """The observations of what was played, without the number of the process."""
    return [each[0].rpartition(" ")[0] for each in played.turns]  # type: ignore[attr-defined]


def test_each_sequence_has_an_environment_of_its_own(process: EnvironmentProcess) -> None:
    assert said(process.play(1, {"name": "a"}, 5, ["x"])) == ["a 5 x"]
    assert said(process.play(2, {"name": "b"}, 6, ["y"])) == ["b 6 y"]
    assert said(process.play(1, {"name": "a"}, 5, ["x", "z"])) == ["a 5 x z"]  # not made again
    last = process.play(1, {"name": "a"}, 5, ["x", "z", "bye"])
    assert last.turns[-1][1:] == (1.0, True)


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        ("raise", "environment raised ValueError", "a bad turn"),
        ("system", "environment raised SystemExit", "2"),
        ("number", "environment raised TypeError", "step returned int"),
        ("dict", "environment raised TypeError", "step returned dict"),
        ("nan", "environment raised ValueError", "the reward of a turn is nan"),
        ("exit", "environment ended its process: exit code 3", ""),
    ],
)
def test_a_fault_costs_its_own_sequence(
    process: EnvironmentProcess, text: str, reason: str, words: str
) -> None:
    process.play(1, {"name": "a"}, 5, ["x"])
    process.play(2, {"name": "b"}, 6, ["y"])
    lost = process.play(1, {"name": "a"}, 5, ["x", text])
    assert (lost.reason, lost.turns) == (reason, ())
    assert words in lost.words
    again = process.play(2, {"name": "b"}, 6, ["y", "z"])  # made anew where the process is gone
    assert said(again)[-1] == "b 6 y z"
    assert said(again) == (["b 6 y", "b 6 y z"] if text == "exit" else ["b 6 y z"])


def test_one_that_hangs_is_ended_at_its_deadline(folder: str) -> None:
    process = EnvironmentProcess("my_environment:make", folder, 0.5)
    process.play(1, {"name": "a"}, 5, ["x"])
    process.play(2, {"name": "b"}, 6, ["y"])
    began = time.monotonic()
    assert process.play(1, {"name": "a"}, 5, ["x", "hang"]).reason == LATE
    assert time.monotonic() - began < 60.0  # not the 1000 s of the environment
    assert said(process.play(2, {"name": "b"}, 6, ["y", "z"])) == ["b 6 y", "b 6 y z"]


def test_one_that_cannot_be_made_is_lost(process: EnvironmentProcess) -> None:
    lost = process.play(1, {"make": "raise"}, 5, ["x"])
    assert (lost.reason, "no such row" in lost.words) == ("environment raised LookupError", True)


def test_forgotten_ones_are_made_anew(process: EnvironmentProcess) -> None:
    process.play(1, {"name": "a"}, 5, ["x"])
    process.forget()
    assert said(process.play(1, {"name": "a"}, 5, ["x", "z"])) == ["a 5 x", "a 5 x z"]


@pytest.mark.parametrize("path", ["my_environment:none", "no_module:make"])
def test_a_factory_that_is_not_there_is_a_typed_error(path: str, folder: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EnvironmentProcess(path, folder, 5.0)
    assert caught.value.where == "environment.factory"


def test_a_factory_is_tried_before_a_run(folder: str) -> None:
    try_factory("my_environment:make", folder)
    with pytest.raises(ConfigError, match=r"cannot be called as \(row, seed\)"):
        try_factory("my_environment:one", folder)


def test_what_is_no_environment_is_a_fault(folder: str) -> None:
    process = EnvironmentProcess("my_environment:nothing", folder, 5.0)
    lost = process.play(1, {}, 5, ["x"])
    assert (lost.reason, "no step(text)" in lost.words) == ("environment raised TypeError", True)
