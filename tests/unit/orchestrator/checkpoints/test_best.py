"""Which checkpoint is the best, and that it stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes.session import Run, small_config

from orchestrator.checkpoints.best import Scores
from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.run import Best
from orchestrator.config.schema import Config
from orchestrator.stages.ppo.loop import ppo
from workers.errors import StoppedError


def test_gold_is_of_the_weights_of_its_own_step() -> None:
    scores = Scores("g")
    said = [
        scores.measured("ppo", n, {"g": v}) for n, v in ((2, 1.0), (4, 3.0), (6, 2.0), (8, 3.0))
    ]
    assert said == [True, True, False, False]  # of equals the first
    assert not scores.measured("ppo", 10, {"other": 9.0})
    assert not scores.measured("ppo", 12, {"g": float("nan")})
    assert scores.best("ppo", [2, 4, 6, 8]) == 4
    assert scores.best("ppo", [6, 2]) == 6
    assert scores.best("ppo", [3, 5]) is None
    assert scores.best("ppo_ptx", [2]) is None
    assert scores.open("ppo", [9]) == set()


def test_samples_are_of_earlier_weights() -> None:
    scores = Scores("s", lowest=True, delay=2)
    said = [
        scores.measured("ppo", n, {"s": v}) for n, v in ((1, 5.0), (2, 4.0), (3, 1.0), (4, 2.0))
    ]
    assert said == [False] * 4  # those weights are gone unless they were saved
    assert scores.values == {"ppo": {-1: 5.0, 0: 4.0, 1: 1.0, 2: 2.0}}
    assert scores.best("ppo", [1, 2, 3, 4]) == 1
    assert scores.open("ppo", [1, 2, 3, 4]) == {3, 4}
    scores.forget("ppo", [1, 4])
    assert scores.values == {"ppo": {1: 1.0}}


def test_another_metric_starts_anew() -> None:
    scores, again, other = Scores("g"), Scores("g"), Scores("s", delay=1)
    scores.measured("ppo", 1, {"g": 2.0})
    state = json.loads(json.dumps(scores.state()))
    again.restore(state)
    other.restore(state)
    assert (again.values, other.values) == ({"ppo": {1: 2.0}}, {})
    again.restore({})
    assert again.values == {}


def test_what_is_measured_after_the_last_checkpoint_is_remembered() -> None:
    scores = Scores("g")
    for step in range(1, 6):
        scores.measured("ppo", step, {"g": float(step)})
    scores.forget("ppo", [2, 3])
    assert scores.values == {"ppo": {2: 2.0, 3: 3.0, 4: 4.0, 5: 5.0}}


def run_ppo(path: Path, config: Config, *, stop_after: int = 0) -> Run:
    run = Run(path, config)
    run.hub.position.stage = "ppo"
    if stop_after:
        run = Run(path, config, _interrupted(run, stop_after))
        run.hub.position.stage = "ppo"
    ppo(run.session)
    run.session.finish("ppo", last=True)
    return run


def _interrupted(run: Run, step: int):
    start = run.session.saves.start

    def start_and_stop(*given) -> None:
        start(*given)
        if given[0]["step"] >= step:
            run.stop.requested = True

    run.session.saves.start = start_and_stop  # type: ignore[method-assign]
    with pytest.raises(StoppedError):
        ppo(run.session)
    saved, _ = SavedRuns(run.folder).newest()
    return saved


def comparing(metric: str, best: Best, every: int) -> Config:
    config = small_config()
    config.run.checkpoint.keep_last, config.run.checkpoint.every_steps = 1, every
    config.run.checkpoint.keep_best, config.run.checkpoint.best_is = metric, best
    config.algorithm.iterations = 7
    config.algorithm.evaluate_every = 2
    return config


def kept(run: Run) -> list[str]:
    return [path.name.partition("-")[2] for path in SavedRuns(run.folder).whole()]


def test_where_there_is_no_gold_labeler_the_held_out_reward_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = comparing("ppo/heldout_score_mean", Best.highest, 0)
    run = Run(tmp_path, config)
    monkeypatch.setattr(run.source, "gold", lambda prompts, texts: None)
    run.hub.position.stage = "ppo"
    ppo(run.session)
    run.session.finish("ppo", last=True)
    scores = {r.step: r.value for r in run.metrics() if r.name == "ppo/heldout_score_mean"}
    del scores[0]
    step = max(scores, key=lambda n: scores[n])
    assert sorted(scores) == [2, 4, 6]
    assert kept(run) == [f"ppo-{step}", "ppo-7"]


@pytest.mark.parametrize("stop_after", [0, 3])
@pytest.mark.parametrize(("best", "pick"), [(Best.highest, max), (Best.lowest, min)])
def test_the_checkpoint_of_the_best_gold_score_is_made_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], best: Best, pick, stop_after: int
) -> None:
    every = 3 if stop_after else 0  # measured in steps 2, 4 and 6: never where a save is due
    run = run_ppo(tmp_path, comparing("ppo/gold_mean", best, every), stop_after=stop_after)
    golds = {r.step: r.value for r in run.metrics() if r.name == "ppo/gold_mean" and r.step}
    assert sorted(golds) == [2, 4, 6]
    step = pick(golds, key=lambda n: golds[n])
    assert kept(run) == [f"ppo-{step}", "ppo-7"]
    said = f"checkpoints: {golds[step]:.4g} after step {step}, kept as"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("stop_after", [0, 3])
@pytest.mark.parametrize(("best", "pick"), [(Best.highest, max), (Best.lowest, min)])
def test_of_the_regular_checkpoints_that_which_sampled_best_is_kept(
    tmp_path: Path, best: Best, pick, stop_after: int
) -> None:
    run = run_ppo(tmp_path, comparing("ppo/score_mean", best, 1), stop_after=stop_after)
    scores = {r.step - 1: r.value for r in run.metrics() if r.name == "ppo/score_mean"}
    step = pick(range(1, 7), key=lambda n: scores[n])
    assert kept(run) == [f"ppo-{step}", "ppo-7"]


def test_what_never_shows_any_more_does_not_stay(tmp_path: Path) -> None:
    config = comparing("ppo/score_mean", Best.highest, 1)
    config.algorithm.staleness = 1
    run = run_ppo(tmp_path, config)
    *best, last = kept(run)
    assert (len(best), last) == (1, "ppo-7")
    run.session.finish("evaluate", last=True)
    assert kept(run) == [*best, "evaluate-7"]


@pytest.mark.parametrize(
    ("every", "evaluate_every", "says"),
    [
        (0, 7, "after step 7, published as ppo"),  # the last weights may be the best
        (1, 0, "ppo/gold_mean was not measured of any checkpoint of ppo"),
    ],
)
def test_where_no_checkpoint_is_kept_for_it_the_note_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], every: int, evaluate_every: int, says: str
) -> None:
    config = comparing("ppo/gold_mean", Best.highest, every)
    config.algorithm.evaluate_every = evaluate_every
    assert kept(run_ppo(tmp_path, config)) == ["ppo-7"]
    assert says in capsys.readouterr().out
