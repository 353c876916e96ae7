"""Sampled answers become tasks for people, and what people say of them trains as it was sampled."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from composing import composed
from fakes import ToyScalar
from fakes.session import Run

from orchestrator.label.tasks import Making, read_tasks
from orchestrator.planning.checks.stages import check_stages
from orchestrator.stages.labels.collect import collect
from workers.errors import ConfigError


def collected(folder: Path, **settings: object) -> tuple[Run, list[dict]]:
    run = Run(folder)
    for name, value in {"prompts": 16, **settings}.items():
        setattr(run.config.collect, name, value)
    collect(run.session)
    path = run.folder.samples / "tasks.jsonl"
    return run, [json.loads(line) for line in path.read_text().splitlines()]


def test_tasks_hold_what_was_sampled_each_text_once(tmp_path: Path) -> None:
    run, rows = collected(tmp_path, min_completions=4, max_completions=6)
    prompts = {p.id: p for p in run.source.prompts("reward_model", 0, 16)}
    assert rows
    for row in rows:
        assert row["prompt"] == prompts[row["id"]].context
        assert 2 <= len(row["completions"]) <= 6
        assert len(set(row["completions"])) == len(row["completions"])
        decoded = [run.source.detokenize(tokens) for tokens in row["completion_tokens"]]
        assert decoded == row["completions"]
        assert row["models"] == ["sft"] * len(decoded)
    asked = [r for facts in run.hub.facts("rollout.generate") for r in facts["requests"]]
    assert all(4 <= len(request.ids) <= 6 for request in asked)
    assert len({i for request in asked for i in request.ids}) == sum(len(r.ids) for r in asked)
    tasks = read_tasks(str(run.folder.samples / "tasks.jsonl"), Making())
    assert [list(a.tokens or ()) for a in tasks[0].answers] == rows[0]["completion_tokens"]


def test_models_share_the_answers_as_told(tmp_path: Path) -> None:
    run, _ = collected(
        tmp_path, models=["sft", "base"], shares=[3.0, 1.0], min_completions=8, max_completions=8
    )
    asked = [
        sum(len(request.ids) for request in facts["requests"])
        for facts in run.hub.facts("rollout.generate")
    ]
    assert asked == [6 * 16, 2 * 16]


def test_a_reward_model_scores_every_answer_that_is_kept(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.config.collect.prompts, run.config.collect.temperature = 8, 1.5
    run.config.model.checkpoints.reward_model = run.session.checkpoints["reward_model"]
    collect(run.session)
    (facts,) = run.hub.facts("rollout.generate")
    assert facts["sampling"].temperature == 1.5
    path = run.folder.samples / "tasks.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    model = ToyScalar.load(run.session.checkpoints["reward_model"], "keep")
    prompts = {p.id: p for p in run.source.prompts("reward_model", 0, 8)}
    for row in rows:
        for tokens, score in zip(row["completion_tokens"], row["scores"], strict=True):
            whole = [*prompts[row["id"]].tokens, *tokens]
            assert score == pytest.approx(float(model.prefix_values(whole)[-1]), abs=1e-5)
    assert len(read_tasks(str(path), Making(order="uncertain"))) == len(rows)


def test_what_does_not_divide_is_drawn(tmp_path: Path) -> None:
    run, _ = collected(
        tmp_path, models=["sft", "base"], prompts=60, min_completions=5, max_completions=5
    )
    counts = [
        Counter(len(request.ids) for request in facts["requests"])
        for facts in run.hub.facts("rollout.generate")
    ]
    assert counts[0].keys() == counts[1].keys() == {2, 3}
    assert counts[0][2] == counts[1][3]
    assert 15 < counts[0][2] < 45


def test_the_same_seed_gives_the_same_tasks(tmp_path: Path) -> None:
    assert collected(tmp_path / "a")[1] == collected(tmp_path / "b")[1]


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["collect.models=[sft,nobody]"], "collect.models"),
        (["collect.models=[]"], "collect.models"),
        (["collect.models=[sft,sft]"], "collect.models"),
        (["collect.shares=[1,2]"], "collect.shares"),
        (["collect.shares=[-1]"], "collect.shares"),
        (["collect.min_completions=7", "collect.max_completions=5"], "collect.min_completions"),
    ],
)
def test_settings_that_make_no_sense_are_refused(words: list[str], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed("+experiment=collect", "model.checkpoints.sft=S", "data.files.prompts=P", *words)
    assert caught.value.where == where


def test_a_model_that_is_not_given_and_prompts_that_are_missing_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs the checkpoint 'ppo'"):
        check_stages(composed(
            "+experiment=collect", "model.checkpoints.sft=S", "data.files.prompts=P",
            "collect.models=[sft,ppo]",
        ))  # fmt: skip
    with pytest.raises(ConfigError, match="reads prompts"):
        check_stages(composed("+experiment=collect", "model.checkpoints.sft=S"))
