"""What is measured on held-out prompts while PPO learns: by whom, how often, and going on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from composing import composed
from fakes.session import Run, small_config

from orchestrator.checkpoints.best import check_keep_best
from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.evaluation import JudgeKind
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.plan import make_plan, render_plan
from orchestrator.preflight.dry_run import _check_heldout
from orchestrator.preflight.user_functions import _named
from orchestrator.run_files.folder import RunFolder
from orchestrator.stages.ppo.loop import ppo
from workers.errors import ConfigError, JudgeError

JUDGED = ("evaluate.judge=function", "evaluate.judge_function=own_judges:longer")
FILES = (
    "+experiment=ppo", "model.checkpoints.sft=S", "model.checkpoints.reward_model=R",
    "data.files.prompts=P",
)  # fmt: skip


def config() -> Config:
    config = small_config()
    config.stages = [StageName.ppo]
    config.evaluate.judge = JudgeKind.function
    config.evaluate.judge_function = "own_judges:longer"
    return config


def test_a_function_compares_answers_with_the_first_ones(tmp_path: Path) -> None:
    run = Run(tmp_path, config())
    ppo(run.session)
    steps = [r.step for r in run.metrics() if r.name == "ppo/heldout_preferred"]
    assert steps == [1, 2]  # there is nothing to compare before the first update
    # The function prefers 6 of 8 answers, and calls 2 a tie.
    assert run.series("ppo/heldout_preferred") == [7 / 8, 7 / 8]
    for low, high in zip(
        run.series("ppo/heldout_preferred_low"),
        run.series("ppo/heldout_preferred_high"),
        strict=True,
    ):
        assert 0 < low < 7 / 8 < high <= 1


def test_answers_are_compared_with_those_of_the_same_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[int], list[str], list[str]]] = []

    def judge(session, kind, prompts, mine, others):
        asked.append(([p.id for p in prompts], list(mine), list(others)))

    monkeypatch.setattr("orchestrator.stages.selection.heldout.preferred", judge)
    run = Run(tmp_path, config())
    sampled: list[list[str]] = []
    sample = run.session.__class__.sample_texts

    def spy(session, *given):
        texts, batch = sample(session, *given)
        sampled.append(texts)
        return texts, batch

    monkeypatch.setattr(run.session.__class__, "sample_texts", spy)
    ppo(run.session)
    first, *later = sampled
    assert [(mine, others) for _, mine, others in asked] == [(each, first) for each in later]
    assert asked[0][0] == asked[1][0] == [p.id for p in run.source.prompts("heldout", 0, 8)]
    assert run.series("ppo/heldout_preferred") == []  # no pair had a verdict


def test_a_resumed_run_compares_with_the_same_answers(tmp_path: Path) -> None:
    settings = config()
    settings.run.checkpoint.every_steps = 1
    whole = Run(tmp_path / "whole", settings)
    ppo(whole.session)
    saved = SavedRuns(whole.folder).steps()["ppo"][1]
    folder = RunFolder(shutil.copytree(whole.folder.path, tmp_path / "again" / "run"))
    again = Run(tmp_path / "again", settings, SavedRuns(folder).read(folder.state / saved.name))
    ppo(again.session)
    assert len(again.series("ppo/heldout_preferred")) == 2
    assert again.repeatable() == whole.repeatable()


def test_a_judge_that_fails_is_noted_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def judge(*_):
        raise JudgeError("it returned nothing", where="x", fix="y")

    monkeypatch.setattr("orchestrator.stages.selection.heldout.preferred", judge)
    run = Run(tmp_path, config())
    ppo(run.session)
    assert run.series("ppo/heldout_preferred") == []
    assert len(run.series("ppo/gold_mean")) == 3
    assert capsys.readouterr().out.count("no verdicts on held-out answers: it returned") == 2


def test_the_scores_before_the_first_update_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    ppo(run.session)
    first = run.series("ppo/gold_mean")[0]
    assert f"before the first update: gold score {first:.3g}"[:40] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "judge"),
    [
        ((), None),
        (JUDGED, JudgeKind.function),
        ((*JUDGED, "algorithm.evaluation_judge=none"), None),
        ((*JUDGED, "algorithm.evaluate_every=0"), None),
        ((*JUDGED, "algorithm.evaluation_judge=endpoint"), JudgeKind.function),
        (("judge=endpoint",), None),
        (("judge=endpoint", "algorithm.evaluation_judge=endpoint"), JudgeKind.endpoint),
        (("judge=none",), None),
    ],
)
def test_an_endpoint_is_asked_only_if_the_key_says_so(
    overrides: tuple[str, ...], judge: JudgeKind | None
) -> None:
    assert composed(*FILES, *overrides).training_judge is judge


def test_a_judge_of_training_is_checked_as_that_of_the_evaluation() -> None:
    assert "own_judges:longer" in [path for _, path, _ in _named(composed(*FILES, *JUDGED))]
    assert not list(_named(composed(*FILES)))
    asking = ("judge=endpoint", "algorithm.evaluation_judge=endpoint")
    with pytest.raises(ConfigError, match="no address"):
        make_plan(composed(*FILES, *asking))
    make_plan(composed(*FILES, "judge=endpoint"))


def test_the_plan_says_who_scores_held_out_prompts() -> None:
    def told(*overrides: str) -> str:
        return render_plan(make_plan(composed(*overrides)))

    every = "every 8 iteration(s) the reward (model) scores answers to 128 held-out prompts"
    assert f"{every}\n" in told(*FILES)
    assert "the judge (function) compares them with the first" in told(*FILES, *JUDGED)
    assert "the judge" not in told(*FILES)
    off = "nothing is measured on held-out prompts (algorithm.evaluate_every=0)"
    assert off in told(*FILES, "algorithm.evaluate_every=0")
    assert "the gold labeler scores answers to" in told("+experiment=pocket")


def test_fewer_held_out_prompts_than_configured_are_noted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    settings = composed(*FILES)
    three = run.source.prompts("heldout", 0, 3)
    run.source.prompts = lambda split, start, count: three[:count]  # type: ignore[method-assign]
    (note,) = _check_heldout(settings, run.source)
    assert note.startswith("only 3 prompts are held out")
    settings.algorithm.evaluation_prompts = 3
    assert list(_check_heldout(settings, run.source)) == []
    settings.algorithm.evaluation_prompts, settings.algorithm.evaluate_every = 8, 0
    assert list(_check_heldout(settings, run.source)) == []


def test_checkpoints_can_be_compared_by_the_judge() -> None:
    best = "run.checkpoint.keep_best=ppo/heldout_preferred"
    check_keep_best(composed(*FILES, *JUDGED, best))
    with pytest.raises(ConfigError, match="not measured") as caught:
        check_keep_best(composed(*FILES, best))
    assert "evaluation_judge" in caught.value.fix
