"""Paths that do not exist are refused before anything is imported, hashed or loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from composing import composed

from orchestrator.config.schema import Config
from orchestrator.preflight.input_paths import check_paths
from workers.errors import RehearsalError


def given(folder: Path, *arguments: str) -> Config:
    """A run from files, all of which exist but those of `arguments`."""
    (folder / "sft").mkdir()
    (folder / "prompts.jsonl").write_text('{"prompt": "Hello"}\n', encoding="utf-8")
    return composed(
        "+experiment=ppo", "data=files", f"model.checkpoints.sft={folder}/sft",
        f"model.checkpoints.reward_model={folder}/sft",
        f"data.files.prompts={folder}/prompts.jsonl", *arguments,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "where", "fix"),
    [
        ("data.files.prompts=DIR/none.jsonl", "data.files.prompts: DIR/none.jsonl", "correct"),
        ("data.files.rankings=DIR/sft/x.jsonl", "data.files.rankings: DIR/sft/x.jsonl", "correct"),
        ("data.sets.mine={kind: prompts, path: DIR/none.json}", "data.sets.mine", "correct"),
        ("data.sets.mine={kind: prompts, path: none, format: jsonl}", "data.sets.mine", "correct"),
        ("data.chat_template=DIR/none.jinja", "DIR/none.jinja", "data.chat_template is"),
        ("model.checkpoints.reward_model=DIR/none", "DIR/none", "model.checkpoints.reward_model="),
        ("model.checkpoints.sft=DIR/prompts.jsonl", "prompts.jsonl", "model.checkpoints.sft=PATH"),
        ("evaluate.judge_checkpoint=DIR/none", "DIR/none", "; evaluate.judge_checkpoint=PATH"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(
    tmp_path: Path, argument: str, where: str, fix: str
) -> None:
    judging = ["evaluate.judge=reward_model"] if "judge" in argument else []
    config = given(tmp_path, argument.replace("DIR", str(tmp_path)), *judging)
    with pytest.raises(RehearsalError) as caught:
        check_paths(config)
    assert where.replace("DIR", str(tmp_path)) in caught.value.where
    assert fix in caught.value.fix


def test_paths_that_exist_pass_whatever_they_hold(tmp_path: Path) -> None:
    check_paths(given(tmp_path))
    check_paths(given(tmp_path / "sft", f"data.files.rankings={tmp_path}"))  # a folder of files


def test_a_data_set_of_the_hub_is_not_looked_up(tmp_path: Path) -> None:
    check_paths(given(tmp_path, "data.files.rankings=Anthropic/hh-rlhf"))


def test_the_path_of_a_format_of_your_own_is_left_to_its_reader(tmp_path: Path) -> None:
    mine = "{kind: prompts, path: 'table of a database', format: 'package.readers:ROWS'}"
    check_paths(given(tmp_path, f"data.sets.mine={mine}"))


def test_a_model_that_only_an_unused_judge_reads_is_not_wanted(tmp_path: Path) -> None:
    config = given(tmp_path, "evaluate.judge=none", f"evaluate.judge_checkpoint={tmp_path}/none")
    check_paths(config)


def test_the_check_loads_no_library_of_models() -> None:
    look = (
        "import sys, orchestrator.preflight.input_paths;"
        "print(*{'torch', 'transformers', 'datasets', 'ray'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr
