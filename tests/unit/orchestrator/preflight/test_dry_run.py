"""`run.plan_only=true` looks at all that a run is given, and every run does so before it starts."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from orchestrator.config.schema import Config
from orchestrator.preflight import dry_run
from workers.data.source import DataSource
from workers.errors import ConfigError
from workers.pocket.model import create_model

Command = Callable[..., int]


@pytest.fixture
def sft(tmp_path: Path) -> list[str]:
    """Arguments of a run of fine-tuning on a model and a file of ten rows."""
    create_model(
        tmp_path / "base", hidden_size=32, layers=1, heads=1, kv_heads=1, intermediate_size=32,
        max_position_embeddings=64, tie_word_embeddings=False, seed=0,
    )  # fmt: skip
    rows = [{"prompt": f"the fox {i} ?", "completion": "the owl"} for i in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "+experiment=sft", f"model.checkpoints.base={tmp_path / 'base'}",
        f"data.files.demonstrations={tmp_path / 'rows.jsonl'}", "data.files.max_prompt_tokens=16",
        "data.files.max_completion_tokens=16", "sft.pack_tokens=0",
        "sft.demonstrations_per_step=2",
    ]  # fmt: skip


def test_a_plan_says_that_what_was_given_can_be_used(
    command: Command, sft: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*sft, "run.plan_only=true") == 0
    printed = capsys.readouterr().out
    assert "demonstrations: 10 rows" in printed
    assert printed.endswith("nothing in them stops this run\n")


def test_a_plan_tells_that_answers_will_be_shorter_than_most_demonstrations(
    command: Command, sft: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [{"prompt": f"the fox {i} ?", "completion": "the owl " * 5} for i in range(6)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    sft[2] = f"data.files.demonstrations={tmp_path / 'long.jsonl'}"
    for most in (10, 11):  # ten words and the end of the text
        assert command(*sft, f"rollout.max_response_tokens={most}", "run.plan_only=true") == 0
        said = capsys.readouterr().out
        told = "half of the demonstrations have 11 tokens or more, answers are cut after 10" in said
        assert told == (most == 10)
    assert command(*sft[:2], *sft[2:], "run.plan_only=true") == 0
    assert "half of the demonstrations" not in capsys.readouterr().out  # 24 are allowed


def test_a_plan_refuses_the_line_of_a_file_that_the_run_would_refuse(
    command: Command, sft: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"prompt": \n')
    assert command(*sft, "run.plan_only=true") == 3
    assert "rows.jsonl:11" in capsys.readouterr().err


def test_a_plan_refuses_a_checkpoint_that_is_not_there(
    command: Command, sft: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sft[1] += "x"
    assert command(*sft, "run.plan_only=true") == 4
    taken = capsys.readouterr()
    assert "the base checkpoint is not there" in taken.err
    assert taken.out.startswith("Plan of sft")  # which needs no checkpoint


@pytest.mark.parametrize("plan_only", ["true", "false"])
def test_every_listed_check_is_made_by_a_plan_and_by_a_run(
    command: Command,
    sft: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    plan_only: str,
) -> None:
    def refuse(config: Config, source: DataSource) -> Iterable[str]:
        raise ConfigError(f"refused {config.experiment} {len(source.tokenizer)}", where="mine")

    monkeypatch.setitem(dry_run.CHECKS, "mine", refuse)
    assert command(*sft, f"run.plan_only={plan_only}") == 2
    assert "refused sft " in capsys.readouterr().err


def test_models_that_exceed_the_machine_are_refused_and_narrow_ones_noted(
    command: Command,
    sft: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    memory = namedtuple("memory", "total available")
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory(1 << 40, 1 << 20))
    assert command(*sft, "run.plan_only=true") == 0
    assert "and this machine has 0.000977 free" in capsys.readouterr().out
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory(1 << 10, 1 << 10))
    assert command(*sft, "run.plan_only=true") == 2
    assert "the models of all roles need" in capsys.readouterr().err
