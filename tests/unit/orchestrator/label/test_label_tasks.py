"""Tasks from files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.label.records import Task
from orchestrator.label.tasks import Making, read_tasks
from workers.errors import ConfigError, DataLineError, EmptyDatasetError, RehearsalError

ROW = {"id": 7, "prompt": "Why?", "completions": ["a", "b", ""]}
AB = {"id": 1, "prompt": "Why?", "answers": {"sft": "s", "ppo": "p", "base": "b"}}


PLAIN = Making()


def read(folder: Path, *rows: Any, making: Making = PLAIN, gold: Any = None) -> list[Task]:
    path, known = folder / "tasks.jsonl", folder / "gold.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if gold is not None:
        known.write_text(json.dumps(gold) + "\n")
    return read_tasks(str(path), making, str(known) if gold is not None else "")


def test_a_row_becomes_a_task_with_its_tokens_and_models(tmp_path: Path) -> None:
    row = ROW | {"completion_tokens": [[4], [5, 6], []], "models": ["sft", "sft", "base"]}
    (task,) = read(tmp_path, row)
    assert [(a.text, a.model, a.tokens) for a in task.answers] == [
        ("a", "sft", (4,)), ("b", "sft", (5, 6)), ("", "base", ()),
    ]  # fmt: skip
    assert (task.id, task.name, task.prompt, task.kind) == (1, "7", "Why?", "rank")


def test_a_dialogue_stays_a_dialogue(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be"}, {"role": "user", "content": "Hi"}]
    (task,) = read(tmp_path, {"messages": messages, "completions": ["a", "b"]})
    assert task.prompt == messages
    assert task.name == "tasks.jsonl:1"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (ROW | {"completions": ["a"]}, "has 1 texts; a task has 2 to 9"),
        (ROW | {"completions": list("abcdefghij")}, "has 10 texts"),
        (ROW | {"completions": "ab"}, "must be a list"),
        (ROW | {"completions": [1, 2]}, "must be a string"),
        (ROW | {"completions": ["\ud800", "b"]}, "unpaired surrogate"),
        (ROW | {"completions": ["x" * 1_000_001, "b"]}, "1,000,001 characters"),
        (ROW | {"models": ["sft"]}, '"models" has 1 entries for 3 answers'),
        (ROW | {"completion_tokens": [[1], [2]]}, "has 2 entries for 3"),
        (ROW | {"completion_tokens": [[1], [2], [-3]]}, "must be a list of token ids"),
        (ROW | {"completion_tokens": [[1], [2], [True]]}, "must be a list of token ids"),
        (ROW | {"scores": [1.0, 2.0]}, '"scores" has 2 entries'),
        ({"id": 1, "completions": ["a", "b"]}, '"prompt" is missing'),
        (AB, "compared and not ranked"),
        ([1], "must be a JSON object"),
    ],
)
def test_a_bad_line_is_refused_with_its_place(tmp_path: Path, row: Any, said: str) -> None:
    with pytest.raises(DataLineError, match=said) as caught:
        read(tmp_path, ROW | {"id": 8}, row)
    assert caught.value.where.endswith("tasks.jsonl:2")


def test_equal_ids_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataLineError, match=r'"7" is also that of .*:1'):
        read(tmp_path, ROW, ROW)
    with pytest.raises(DataLineError, match='"7" is also'):
        read(tmp_path, ROW, gold=ROW | {"ranks": [1, 2, 3]})
    with pytest.raises(EmptyDatasetError):
        read(tmp_path)


def test_known_ranks_become_gold_without_gaps(tmp_path: Path) -> None:
    tasks = read(tmp_path, ROW, gold=ROW | {"id": "g", "ranks": [5, 1, 5]})
    assert [task.gold for task in tasks] == [None, (2, 1, 2)]
    with pytest.raises(DataLineError, match='"ranks" is missing'):
        read(tmp_path, ROW, gold=ROW | {"id": "g"})


def test_a_share_of_the_tasks_needs_several_judgments(tmp_path: Path) -> None:
    rows = [ROW | {"id": i} for i in range(40)]
    tasks = read(tmp_path, *rows, making=Making(overlap=0.15, judgments=3))
    assert sorted(task.needed for task in tasks) == [1] * 34 + [3] * 6


def test_the_most_uncertain_comes_first_and_needs_scores(tmp_path: Path) -> None:
    rows = [ROW | {"id": 1, "scores": [9, 0, -9]}, ROW | {"id": 2, "scores": [0, 0, 0]}]
    tasks = read(tmp_path, *rows, making=Making(order="uncertain"))
    assert tasks[1].priority == pytest.approx(1)
    assert tasks[0].priority < 0.01
    with pytest.raises(RehearsalError, match="without scores"):
        read(tmp_path, ROW, making=Making(order="uncertain"))


def test_models_are_compared_with_each_other_or_with_one(tmp_path: Path) -> None:
    (both,) = read(tmp_path, AB, making=Making(compare=("ppo", "sft")))
    assert (both.kind, [a.model for a in both.answers]) == ("compare", ["ppo", "sft"])
    every = read(tmp_path, AB, making=Making(compare=("ppo", "sft", "base"), baseline="base"))
    assert [[a.model for a in t.answers] for t in every] == [["ppo", "base"], ["sft", "base"]]
    assert [t.name for t in every] == ["1 ppo", "1 sft"]
    with pytest.raises(ConfigError, match="no answer of 'large'; there are those of sft, ppo"):
        read(tmp_path, AB, making=Making(compare=("ppo", "large")))
