"""The environment role: ids in, ids out; what is repeated for a new process must be the same."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from workers.data.rows.asked import Asked
from workers.errors import ConfigError, RoleError
from workers.pocket.tokenizer import build_tokenizer
from workers.records.arrays import Ragged
from workers.records.environment import Ask
from workers.records.generation import Finish, RolloutBatch
from workers.records.specs import EnvironmentSpec, RewardSpec, TermSpec
from workers.roles.environment import _CHANGED, EnvironmentWorker
from workers.roles.reward import RewardWorker, _texts
from workers.scorers.source import ENVIRONMENT

MODULE = """
import os
from workers.environments.turn import Turn
PIDS = os.path.join(os.path.dirname(__file__), "pids")
class Repeating:
    def __init__(self, row, seed):
        self.row, self.texts = row, []
        with open(PIDS, "a") as pids:
            pids.write(f"{os.getpid()}\\n")
    def step(self, text):
        self.texts.append(text)
        if text == "who":
            return Turn("<eos>")
        if text == "red":
            return Turn("fox", 2.0, True)
        if self.row.get("changes") and len(self.texts) == 1:
            return Turn("owl" if os.path.getsize(PIDS) < 10 else "seal")
        return Turn(f"{self.row['prompt']} {text}")
def make(row, seed):
    return Repeating(row, seed)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("worker")
    (made / "repeating.py").write_text(MODULE)
    build_tokenizer().save_pretrained(made)
    (made / "config.json").write_text('{"model_type": "llama"}')
    return made


@pytest.fixture
def spec(folder: Path) -> EnvironmentSpec:
    (folder / "pids").write_text("")
    return EnvironmentSpec(
        kind="function", factory="repeating:make", tools=(), call="json", folder=str(folder),
        step_seconds=20.0, slice_seconds=1e9, rewarded=True, tokenizer=str(folder),
        chat_template="auto", add_bos_token="auto", date="", role="user", turn_text="",
    )  # fmt: skip


WORDS = build_tokenizer()
EOS = WORDS.eos_token_id


def ids(text: str) -> tuple[int, ...]:
    return tuple(WORDS.encode(text, add_special_tokens=False))


def ask(number: int, *texts: str, observations: tuple[str, ...] = (), **row: object) -> Ask:
    turns = tuple((*ids(text), EOS) for text in texts)
    said = tuple(ids(f"user : {each} reply :") for each in observations)
    return Ask(number, json.dumps({"prompt": "bear", **row}), number, turns, said)


def loaded(spec: EnvironmentSpec, **changes: object) -> EnvironmentWorker:
    from dataclasses import replace

    worker = EnvironmentWorker(0)
    worker.load(replace(spec, **changes))  # type: ignore[arg-type]
    return worker


def processes(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "pids").read_text().split()]


def test_a_worker_that_is_not_loaded_says_so() -> None:
    with pytest.raises(RoleError, match="no environment is loaded"):
        EnvironmentWorker(0).step([])


def test_ids_in_and_ids_out(spec: EnvironmentSpec) -> None:
    first, second = loaded(spec).step([ask(1, "green"), ask(2, "red")])
    assert first.observation == ids("user : bear green reply :")
    assert (first.done, first.reward, first.failure) == (False, 0.0, "")
    assert (second.observation, second.done, second.reward) == ((), True, 2.0)


def test_a_killed_process_loses_no_sequence(spec: EnvironmentSpec, folder: Path) -> None:
    worker = loaded(spec)
    worker.step([ask(1, "green"), ask(2, "blue")])
    for pid in {*processes(folder)}:
        os.kill(pid, signal.SIGKILL)
    again = [
        ask(1, "green", "gray", observations=("bear green",)),
        ask(2, "blue", "black", observations=("bear blue",)),
    ]
    for pid in {*processes(folder)}:  # a zombie whose threads still end has no exit code yet
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    first, second = worker.step(again)
    assert first.observation == ids("user : bear gray reply :")
    assert second.observation == ids("user : bear black reply :")
    assert len({*processes(folder)}) == 2


def test_an_environment_that_changes_its_mind_is_lost(spec: EnvironmentSpec) -> None:
    worker = loaded(spec)
    (first,) = worker.step([ask(1, "green", changes=True)])
    worker.forget()  # as if its process had been lost
    seen = "owl" if first.observation == ids("user : owl reply :") else "seal"
    (again,) = worker.step([ask(1, "green", "gray", observations=(seen,), changes=True)])
    assert again.failure == _CHANGED


def test_an_observation_with_a_control_token_is_lost(spec: EnvironmentSpec) -> None:
    (told,) = loaded(spec).step([ask(1, "who")])
    assert told.failure == "the observation holds a control token"


def test_a_reward_that_nobody_takes_ends_the_run(spec: EnvironmentSpec) -> None:
    with pytest.raises(ConfigError, match="no reward of the run takes it") as caught:
        loaded(spec, rewarded=False).step([ask(1, "red")])
    assert caught.value.where == "reward.kind"


def test_a_call_is_cut_into_slices(spec: EnvironmentSpec) -> None:
    worker = loaded(spec, slice_seconds=0.0)
    assert [told.id for told in worker.step([ask(n, "green") for n in (1, 2, 3)])] == [1]


def conversation() -> RolloutBatch:
    response = [*ids("green"), EOS, *ids("user : owl reply :"), *ids("red ."), EOS]
    mask = [True, True, False, False, False, False, False, True, True, True]
    return RolloutBatch(
        np.array([1]), np.array([7]), Ragged.from_rows([[1, *response]], np.int32), np.array([1]),
        Ragged.from_rows([[-1.0] * 5], np.float32), np.array([Finish.STOP]),
        np.zeros((1, 2), np.int64), Ragged.from_rows([mask], np.bool_), np.array([2.5], np.float32),
    )  # fmt: skip


def test_rewards_read_the_answer_and_the_turns() -> None:
    (exchange,) = _texts(WORDS, conversation(), {7: Asked(7, "bear", "bear")})
    assert exchange.response == "red ."
    assert exchange.dialogue == [
        {"role": "assistant", "content": "green"},
        {"role": "environment", "content": "user : owl reply :"},
        {"role": "assistant", "content": "red ."},
    ]


def test_the_reward_of_the_environment_is_a_source(folder: Path) -> None:
    worker = RewardWorker(0)
    worker.load(RewardSpec((TermSpec(ENVIRONMENT, {}),), str(folder), str(folder)))
    assert worker.score(np.array([1]), [conversation()]).values.tolist() == [2.5]
