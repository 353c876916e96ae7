"""The best of n answers in the evaluation, over fake roles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from composing import composed
from fakes.session import Run, small_config

from orchestrator.config.cluster import RoleName
from orchestrator.config.evaluation import JudgeKind
from orchestrator.planning.plan import make_plan, render_plan
from orchestrator.results.summary import Summary, read_summary, write_summary
from orchestrator.stages.evaluate import evaluate
from workers.errors import ConfigError, RewardError

FILES = (
    "+experiment=evaluate", "model.checkpoints.sft=S", "data.files.evaluation_prompts=E",
    "evaluate.best_of=[4,16]",
)  # fmt: skip


def evaluated(path: Path, *numbers: int) -> Run:
    config = small_config()
    config.evaluate.best_of = list(numbers)
    run = Run(path, config)
    evaluate(run.session)
    return run


def test_one_set_of_samples_serves_every_n(tmp_path: Path) -> None:
    run = evaluated(tmp_path, 1, 2, 4)
    calls = [f for f in run.hub.facts("rollout.generate") if len(f["requests"][0].ids) > 1]
    (asked,) = calls
    assert {len(r.ids) for r in asked["requests"]} == {4}
    assert len(asked["requests"]) == run.config.evaluate.prompts
    rows = run.session.findings.models
    assert list(rows) == ["base", "sft", "sft@1", "sft@2", "sft@4"]
    rewards = [rows[f"sft@{n}"].reward_mean for n in (1, 2, 4)]
    assert rewards == sorted(rewards)
    assert rewards[0] < rewards[2]
    assert [rows[f"sft@{n}"].kl_bound for n in (1, 2)] == pytest.approx([0, 0.1931472], abs=1e-6)
    assert rows["sft"].reward_mean is None


def test_the_figures_are_those_of_the_best_by_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple] = []

    def spied(run: Run) -> None:
        score = run.roles.reward.score_batch

        def spy(batch, asked):
            answer = score(batch, asked)
            seen.append((batch, answer.result().values))
            return answer

        monkeypatch.setattr(run.roles.reward, "score_batch", spy)

    config = small_config()
    config.evaluate.best_of = [4]
    run = Run(tmp_path, config)
    spied(run)
    evaluate(run.session)
    ((batch, values),) = seen
    prompts = run.source.prompts("heldout", 0, config.evaluate.prompts)
    best = values.reshape(-1, 4).argmax(1) + 4 * np.arange(len(prompts))
    texts = [run.source.detokenize(batch.response(int(i))) for i in best]
    golds = run.source.gold(prompts, texts) or []
    row = run.session.findings.models["sft@4"]
    assert row.gold_mean == pytest.approx(np.mean([g.score for g in golds]))
    assert row.rude_rate == pytest.approx(np.mean([g.rude for g in golds]))
    assert row.length_mean == pytest.approx(batch.response_lengths[best].mean())
    assert row.reward_mean == pytest.approx(values[best].astype(np.float64).mean())
    own = run.source.gold(prompts, _answers(run, "sft")) or []
    outcomes = [
        0.5 if a.score == b.score else float(a.score > b.score)
        for a, b in zip(golds, own, strict=True)
    ]
    (over,) = [p for p in run.session.findings.preferred if p.model == "sft@4"]
    assert (over.over, over.n) == ("sft", len(prompts))
    assert over.rate == pytest.approx(np.mean(outcomes))


def _answers(run: Run, model: str) -> list[str]:
    import json

    lines = (run.folder.samples / "answers.jsonl").read_text().splitlines()
    return [json.loads(line)["answers"][model] for line in lines]


def test_the_best_of_one_prefers_as_often_as_it_is_preferred_to(tmp_path: Path) -> None:
    (found,) = [p for p in evaluated(tmp_path, 1).session.findings.preferred if "@" in p.model]
    assert 0.2 < found.rate < 0.8
    assert found.low < found.rate < found.high


def test_figures_are_in_the_summary_and_come_back(tmp_path: Path) -> None:
    run = evaluated(tmp_path, 2)
    found = run.session.findings
    summary = Summary(models=found.models, preferred=tuple(found.preferred))
    write_summary(run.folder, summary)
    again = read_summary(run.folder.summary)
    assert again.models["sft@2"] == found.models["sft@2"]
    assert again.ordered_models() == ["base", "sft", "sft@2"]


def test_another_judge_leaves_the_win_rate_out(tmp_path: Path) -> None:
    config = small_config()
    config.evaluate.best_of, config.evaluate.judge = [2], JudgeKind.none
    run = Run(tmp_path, config)
    evaluate(run.session)
    assert run.session.findings.models["sft@2"].gold_mean is not None
    assert run.session.findings.preferred == []


def test_an_answer_without_a_score_ends_the_evaluation(tmp_path: Path) -> None:
    config = small_config()
    config.evaluate.best_of = [2]
    run = Run(tmp_path, config)
    run.hub.faults.failed_rewards = lambda i: "no answer" if i % 7 == 0 else ""
    with pytest.raises(RewardError, match="answers got no score: no answer"):
        evaluate(run.session)


def test_without_the_key_nothing_is_sampled_again(tmp_path: Path) -> None:
    run = evaluated(tmp_path)
    assert list(run.session.findings.models) == ["base", "sft"]
    assert "reward.load" not in run.hub.names()


def test_the_plan_needs_the_reward_and_the_sft_model() -> None:
    with pytest.raises(ConfigError, match="'reward_model'"):
        make_plan(composed(*FILES))
    given = (*FILES, "model.checkpoints.reward_model=R")
    with pytest.raises(ConfigError, match="'sft'"):
        make_plan(composed(*(g for g in given if "sft=S" not in g), "model.checkpoints.ppo=O"))
    plan = make_plan(composed(*given, "judge=none"))
    assert RoleName.reward in plan.stages[0].roles
    assert "1,024 x 16 answers of the SFT model, for the best of 4, 16 by the reward" in (
        render_plan(plan)
    )
    for wrong in ("[0]", "[4,4]", "[5000]"):
        with pytest.raises(ConfigError, match="best_of"):
            composed(*given, f"evaluate.best_of={wrong}")
