"""lm-evaluation-harness in its own process, on a task and a model that are made here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from fakes.chat import byte_tokenizer

from orchestrator.config.evaluation import EvaluateConfig, LmEvalConfig
from orchestrator.config.schema import Config
from orchestrator.stages import lm_eval
from orchestrator.stages.lm_eval import check_harness_ready, harness_scores
from workers.errors import ConfigError, DataError, DeadlineError, RoleError
from workers.pocket.tokenizer import build_tokenizer
from workers.scorers.lm_eval import model_arguments, read_metrics

ANIMALS = ["fox", "owl", "bear", "crab", "wolf", "frog"]
FOODS = ["honey", "fish", "grass"]

TASK = """
task: pocket_food
dataset_path: json
dataset_kwargs:
  data_files:
    test: food.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def config(**settings: object) -> Config:
    return Config(evaluate=EvaluateConfig(lm_eval=LmEvalConfig(**settings)))  # type: ignore[arg-type]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "food.yaml").write_text(TASK)
    rows = [
        {"question": f"the {animal} eats", "choices": FOODS, "answer": n % 3}
        for n, animal in enumerate(ANIMALS)
    ]
    (folder / "food.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    made = LlamaForCausalLM(shape)
    with torch.no_grad():  # far from uniform, so that no two choices come out alike
        for weight in made.parameters():
            weight.mul_(8.0)
    folder = tmp_path / "model"
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_local_task_runs_offline_and_counts_what_the_model_finds_likely(
    tasks: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    settings = config(tasks=["pocket_food"], task_folder=str(tasks), deadline_seconds=240.0)
    check_harness_ready(settings)
    found = harness_scores(settings, {"sft": str(model)}, tmp_path / "logs" / "lm_eval.log")
    score = found["sft"]["pocket_food"]["acc"]

    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    right = 0
    for n, animal in enumerate(ANIMALS):
        ids = tokenizer(f"the {animal} eats", return_tensors="pt").input_ids
        with torch.no_grad():
            logits = network(input_ids=ids).logits[0, -1]
        likely = [float(logits[tokenizer.convert_tokens_to_ids(food)]) for food in FOODS]
        right += likely.index(max(likely)) == n % 3
    assert score.value == right / len(ANIMALS)
    # sample deviation of 0s and 1s over sqrt(n): sqrt(p (1 - p) / (n - 1))
    spread = math.sqrt(score.value * (1 - score.value) / (len(ANIMALS) - 1))
    assert score.stderr == pytest.approx(spread)

    with pytest.raises(ConfigError, match="no task 'pocket_fod'") as caught:
        harness_scores(config(tasks=["pocket_fod"], task_folder=str(tasks)), {}, tmp_path / "log")
    assert "pocket_food" in caught.value.fix


@pytest.mark.parametrize("writes", [True, False])
def test_texts_begin_in_the_harness_as_the_tokenizer_begins_them(
    writes: bool, tmp_path: Path
) -> None:
    byte_tokenizer(bos="<s>", writes_bos=writes).save_pretrained(tmp_path)
    told = model_arguments(str(tmp_path), "float32")
    assert told == {"pretrained": str(tmp_path), "dtype": "float32", "add_bos_token": writes}


def test_a_late_harness_is_ended(tasks: Path, tmp_path: Path) -> None:
    settings = config(tasks=["pocket_food"], task_folder=str(tasks), deadline_seconds=0.01)
    with pytest.raises(DeadlineError, match=r"within 0.01 s"):
        harness_scores(settings, {}, tmp_path / "log")


def test_a_harness_that_crashes_leaves_its_last_words(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))  # the process cannot even start
    with pytest.raises(RoleError, match="ended with code 1") as caught:
        harness_scores(config(tasks=["pocket_food"], task_folder=str(tasks)), {}, tmp_path / "log")
    assert str(tmp_path / "log") in str(caught.value)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_eval, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        check_harness_ready(config(tasks=["hellaswag"]))
    assert "extra lm-eval" in caught.value.fix
    check_harness_ready(config())  # nothing is asked of it


def test_a_folder_without_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lm_eval, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match="no YAML"):
        check_harness_ready(config(tasks=["mine"], task_folder=str(tmp_path)))


def test_metrics_keep_their_filter_and_groups_stand_for_their_tasks() -> None:
    table = {
        "mmlu": {"alias": "mmlu", "acc,none": 0.5, "acc_stderr,none": 0.01},
        "mmlu_law": {"acc,none": 0.25, "acc_stderr,none": "N/A"},
        "gsm8k": {"exact_match,strict-match": 0.1, "exact_match_stderr,strict-match": "N/A"},
    }
    assert read_metrics(table, ["mmlu", "gsm8k"]) == {
        "mmlu": {"acc": (0.5, 0.01)},
        "gsm8k": {"exact_match,strict-match": (0.1, None)},
    }
    assert read_metrics({"mmlu_law": table["mmlu_law"]}, ["a_tag"]) == {
        "mmlu_law": {"acc": (0.25, None)}
    }
    with pytest.raises(DataError, match="is nan"):
        read_metrics({"t": {"acc,none": math.nan}}, ["t"])
