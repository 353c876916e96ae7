"""The experiment small_gsm8k_verifier: its plan, with and without the public file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from composing import composed
from data_files import byte_tokenizer
from real_data import real_data

from orchestrator.planning.plan import make_plan
from orchestrator.preflight.dry_run import CHECKS
from orchestrator.session.sources import make_source
from workers.errors import DataError
from workers.verifiers.number_verifier import VERIFIER
from workers.verifiers.verifier import Options

RUN = ("+experiment=small_gsm8k_verifier", "model.checkpoints.sft=SFT")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = byte_tokenizer(tmp_path / "sft")
    (folder / "config.json").write_text(json.dumps({"vocab_size": 300, "model_type": "llama"}))
    return folder


def test_the_plan_needs_no_reward_model() -> None:
    config = composed(*RUN)
    assert not config.reward.needs.model
    assert config.reward.needs.columns == ("answer",)
    assert [str(stage.name) for stage in make_plan(config).stages] == ["ppo", "evaluate"]


def test_a_missing_file_says_where_to_fetch_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file") as caught:
        make_source(composed(*RUN), {"sft": str(checkpoint)})
    assert caught.value.where == "data.files.prompts: gsm8k_train.jsonl"
    assert "github.com/openai/grade-school-math" in caught.value.fix


def test_every_answer_of_the_public_file_can_be_verified(checkpoint: Path) -> None:
    path = real_data("gsm8k_train.jsonl")
    given = (*RUN, f"data.files.prompts={path}", "data.files.max_prompt_tokens=2000")
    config = composed(*given, "data.cache_mib=0")
    source = make_source(config, {"sft": str(checkpoint)})
    assert [*CHECKS["answers"](config, source)] == []
    check = VERIFIER.make(Options())
    with path.open() as file:
        rows = [json.loads(line) for line in file]
    assert all(check(row["answer"], row["answer"]) for row in rows)
    plain = [row["answer"].rpartition("####")[2].strip().replace(",", "") for row in rows]
    assert all(check(f"it is {a}.", row["answer"]) for a, row in zip(plain, rows, strict=True))
    assert not any(check(f"{a}1", row["answer"]) for a, row in zip(plain, rows, strict=True))
