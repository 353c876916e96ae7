"""Rejection sampling over fake roles: what is chosen and trained, the ledger, and going on."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from composing import composed
from fakes import ToyPolicy
from fakes.session import Run, small_config

from orchestrator.checkpoints.best import check_keep_best
from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.cluster import RoleName
from orchestrator.config.engines import OptimizerConfig, Schedule
from orchestrator.config.rejection import Keep, RejectionConfig, Start
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.plan import make_plan, render_plan
from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.samples import read_rollouts
from orchestrator.stages.selection.pool import Pool, Samples
from orchestrator.stages.selection.rejection_sampling import rejection_sampling
from workers.errors import BrokenCheckpointError, ConfigError, EmptyDatasetError, RewardError
from workers.records.arrays import Ragged

GIVEN = (
    "+experiment=rejection_sampling", "model.checkpoints.sft=S", "model.checkpoints.reward_model=R",
    "data.files.prompts=P",
)  # fmt: skip


def config(**changed: object) -> Config:
    config = small_config()
    config.stages = [StageName.rejection_sampling]
    config.rejection = RejectionConfig(
        **{"iterations": 3, "prompts_per_iteration": 6, "samples": 4, "sequences_per_step": 4}
        | changed,
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule=Schedule.constant, warmup_steps=0),
    )
    return config


def trained(run: Run) -> list[set[tuple[int, ...]]]:
    """Token rows of each optimizer step."""
    return [
        {
            tuple(row.tolist())
            for share in facts["steps"]
            for batch in share.micro_batches
            for row in batch.tokens.rows()
        }
        for facts in run.hub.facts("policy.train_supervised")
    ]


def scored(run: Run) -> list[dict[int, tuple[int, float, tuple[int, ...]]]]:
    """Per iteration: id -> prompt, score and tokens of each sample, from the spied calls."""
    return run.seen  # type: ignore[attr-defined]


def spied(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Record what the reward said of which sequences."""
    run.seen = []  # type: ignore[attr-defined]
    score = run.roles.reward.score

    def spy(rollouts, asked=()):
        answer = score(rollouts, asked)
        found = answer.result()
        batch = run.roles.rollout.fetch(rollouts).result()
        if len(batch) > run.config.algorithm.evaluation_prompts:
            value = dict(zip(found.ids.tolist(), found.values.tolist(), strict=True))
            run.seen.append(  # type: ignore[attr-defined]
                {
                    int(i): (int(p), value[int(i)], tuple(row.tolist()))
                    for i, p, row in zip(
                        batch.ids, batch.prompt_ids, batch.tokens.rows(), strict=True
                    )
                }
            )
        return answer

    monkeypatch.setattr(run.roles.reward, "score", spy)
    return run


def test_the_best_of_each_prompt_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(from_all_iterations=False)
    settings.algorithm.missing_eos_penalty = 0.0
    run = spied(Run(tmp_path, settings), monkeypatch)
    rejection_sampling(run.session)
    steps = trained(run)
    assert len(steps) == 3 * 2  # 6 prompts in steps of 4
    for iteration, samples in enumerate(scored(run)):
        assert len(samples) == 24
        best: dict[int, tuple[float, int]] = {}
        for i, (prompt, value, _) in sorted(samples.items()):
            if prompt not in best or value > best[prompt][0]:
                best[prompt] = (value, i)
        assert len(best) == 6
        both = steps[2 * iteration] | steps[2 * iteration + 1]
        assert both == {samples[i][2] for _, i in best.values()}
        mean = float(np.mean([value for value, _ in best.values()]))
        assert run.series("rejection/best_score_mean")[iteration] == pytest.approx(mean, rel=1e-6)
        assert run.series("rejection/kept_score_mean")[iteration] == pytest.approx(mean, rel=1e-6)


def test_the_ledger_accounts_for_every_sequence(tmp_path: Path) -> None:
    run = Run(tmp_path, config())
    run.hub.faults.failed_rewards = lambda i: "no answer" if i % 5 == 0 else ""
    rejection_sampling(run.session)
    totals, drops = run.session.findings.ledger, run.session.findings.drops
    assert totals.generated == 3 * 24 == totals.trained + totals.dropped
    assert totals.open == 0
    assert set(drops) == {"no answer", "not the best of its prompt"}
    assert sum(drops.values()) == totals.dropped
    for step in range(3):
        parts = [run.series(f"rejection/{n}")[step] for n in ("generated", "trained", "dropped")]
        assert parts[0] == parts[1] + parts[2] == 24
    failed, others = (run.series(f"rejection/dropped/{n}") for n in ("no_reward", "not_chosen"))
    assert [a + b for a, b in zip(failed, others, strict=True)] == run.series("rejection/dropped")


def test_samples_of_earlier_iterations_are_trained_on_again_and_counted_once(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, config())
    rejection_sampling(run.session)
    # The prompts of the pocket world differ from iteration to iteration.
    assert run.series("rejection/trained") == [6, 6, 6]
    assert run.series("rejection/reused") == [0, 6, 12]
    assert run.series("rejection/optimizer_steps") == [2, 3, 5]
    highest = run.series("rejection/kept_score_max")
    assert highest == sorted(highest)
    assert run.session.findings.ledger.trained == 18


def test_targets_are_the_responses(tmp_path: Path) -> None:
    run = Run(tmp_path, config(iterations=1))
    rejection_sampling(run.session)
    prompts = {p.tokens for p in run.source.prompts("ppo", 0, 6)}
    for facts in run.hub.facts("policy.train_supervised"):
        for share in facts["steps"]:
            for batch in share.micro_batches:
                for tokens, targets in zip(batch.tokens.rows(), batch.targets.rows(), strict=True):
                    asked = int(np.argmax(targets))
                    assert tuple(tokens[:asked].tolist()) in prompts
                    assert targets[asked:].all()


def test_training_raises_the_reward(tmp_path: Path) -> None:
    settings = config(iterations=6, prompts_per_iteration=24, epochs=2)
    run = Run(tmp_path, settings)
    rejection_sampling(run.session)
    scores = run.series("rejection/score_mean")
    assert np.mean(scores[-2:]) > scores[0]
    before, after = (
        ToyPolicy.load(run.session.checkpoints[name]).weights
        for name in ("sft", "rejection_sampling")
    )
    assert not before.equal(after)


def test_each_iteration_can_start_from_the_sft_model(tmp_path: Path) -> None:
    run = Run(tmp_path, config(start=Start.sft))
    rejection_sampling(run.session)
    specs = [f["spec"] for f in run.hub.facts("policy.load")]
    assert {spec.checkpoint for spec in specs} == {run.session.need("sft")}
    assert [spec.optimizer.total_steps for spec in specs] == [2, 3, 5]
    (spec,) = (f["spec"] for f in _run(tmp_path / "b", config()).hub.facts("policy.load"))
    assert spec.optimizer.total_steps == 10


def _run(path: Path, settings: Config) -> Run:
    run = Run(path, settings)
    rejection_sampling(run.session)
    return run


def test_samples_are_divided_among_temperatures_with_seeds_of_their_own(tmp_path: Path) -> None:
    settings = config(iterations=2, temperatures=[0.7, 1.3])
    settings.algorithm.evaluate_every = 0
    run = _run(tmp_path, settings)
    calls = run.hub.facts("rollout.generate")
    assert [f["sampling"].temperature for f in calls] == [0.7, 1.3, 0.7, 1.3]
    assert {len(r.ids) for f in calls for r in f["requests"]} == {2}
    seeds = [seed for f in calls for r in f["requests"] for seed in r.seeds]
    assert len(seeds) == len(set(seeds)) == 2 * 24


def test_all_above_a_threshold_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(keep=Keep.above, threshold=0.01, from_all_iterations=False)
    settings.algorithm.missing_eos_penalty = 0.0
    run = spied(Run(tmp_path, settings), monkeypatch)
    rejection_sampling(run.session)
    above = [sum(value > 0.01 for _, value, _ in each.values()) for each in scored(run)]
    assert run.series("rejection/trained") == above
    assert set(run.session.findings.drops) == {"its score is not above the threshold"}


def test_a_threshold_that_nothing_exceeds_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, config(keep=Keep.above, threshold=1e6))
    with pytest.raises(
        EmptyDatasetError, match=r"none of 24 samples scores above 1e\+06"
    ) as caught:
        rejection_sampling(run.session)
    assert caught.value.where == "rejection.threshold"


def test_an_iteration_without_any_reward_changes_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, config())
    run.config.algorithm.evaluate_every = 0
    run.hub.faults.failed_rewards = lambda i: "no answer" if 24 <= i < 48 else ""
    rejection_sampling(run.session)
    assert run.series("rejection/trained") == [6, 0, 6]
    assert run.series("rejection/optimizer_steps") == [2, 3]
    assert [r.step for r in run.metrics() if r.name == "rejection/loss"] == [1, 3]


def test_rewards_that_never_come_end_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path, config())
    run.hub.faults.failed_rewards = lambda _: "no answer"
    with pytest.raises(RewardError, match="3 consecutive iterations"):
        rejection_sampling(run.session)


@pytest.mark.parametrize("changed", [{}, {"start": Start.sft}, {"from_all_iterations": False}])
@pytest.mark.parametrize("after", [1, 2])
def test_a_resumed_run_ends_in_the_same(tmp_path: Path, changed: dict, after: int) -> None:
    settings = config(**changed)
    whole = Run(tmp_path / "whole", settings)
    rejection_sampling(whole.session)
    saved = SavedRuns(whole.folder).steps()["rejection_sampling"][after]
    folder = RunFolder(shutil.copytree(whole.folder.path, tmp_path / "again" / "run"))
    again = Run(tmp_path / "again", settings, SavedRuns(folder).read(folder.state / saved.name))
    rejection_sampling(again.session)
    assert again.repeatable() == whole.repeatable()
    for each in (whole, again):
        each.weights = ToyPolicy.load(each.session.need("rejection_sampling")).weights  # type: ignore[attr-defined]
    assert whole.weights.equal(again.weights)  # type: ignore[attr-defined]
    assert whole.session.findings.ledger == again.session.findings.ledger


def test_held_out_prompts_are_scored_after_each_iteration(tmp_path: Path) -> None:
    run = _run(tmp_path, config())
    assert [r.step for r in run.metrics() if r.name == "rejection/gold_mean"] == [0, 1, 2, 3]
    settings = config()
    settings.algorithm.evaluate_every = 0
    assert _run(tmp_path / "b", settings).series("rejection/gold_mean") == []


def test_texts_that_were_trained_on_and_texts_that_were_dropped_are_kept(tmp_path: Path) -> None:
    run = _run(tmp_path, config())
    found = read_rollouts(run.folder)
    for dropped in (False, True):
        assert [(s.stage, s.step) for s in found if bool(s.dropped) is dropped] == [
            ("rejection_sampling", step) for step in (1, 2, 3) for _ in range(4)
        ]  # samples.per_iteration
    assert {s.dropped for s in found} == {"", "not the best of its prompt"}
    assert all(math.isnan(s.kl) and s.tokens for s in found)
    assert all(np.isfinite(s.score) for s in found)


def test_the_weights_that_answer_are_those_that_were_trained(tmp_path: Path) -> None:
    run = _run(tmp_path, config())
    assert run.session.findings.syncs == 4  # before the first iteration, and after each
    assert max(run.series("rejection/parity_max")) < 1e-4


def sample(ids: list[int], prompts: list[int], scores: list[float]) -> Samples:
    return Samples(
        np.array(ids), np.array(prompts), np.array(scores, np.float32),
        np.ones(len(ids), np.int64), Ragged.from_rows([[i, i + 1] for i in ids], np.int32),
    )  # fmt: skip


def test_a_prompt_that_comes_again_keeps_its_best_sample() -> None:
    pool = Pool(RejectionConfig())
    first = pool.take(sample([0, 1, 2, 3], [5, 5, 6, 6], [1.0, 2.0, 0.0, 4.0]))
    assert (first.kept.tolist(), first.dropped.tolist(), first.reused) == ([1, 3], [0, 2], 0)
    # prompt 5 gets a better one, prompt 6 an equal one: the earlier stays; prompt 7 is new
    second = pool.take(sample([4, 5, 6], [5, 6, 7], [3.0, 4.0, -1.0]))
    assert (second.kept.tolist(), second.dropped.tolist(), second.reused) == ([4, 6], [5], 1)
    assert sorted(pool.samples.ids.tolist()) == [3, 4, 6]
    assert [row.tolist() for row in pool.samples.select(np.array([0])).tokens.rows()] == [[3, 4]]
    alone = Pool(RejectionConfig(from_all_iterations=False))
    alone.take(sample([0], [5], [9.0]))
    assert alone.take(sample([4], [5], [1.0])).kept.tolist() == [4]
    assert alone.samples.ids.tolist() == [4]


def test_a_pool_is_written_and_read_as_it_is(tmp_path: Path) -> None:
    pool, other = Pool(RejectionConfig()), Pool(RejectionConfig())
    pool.take(sample([0, 1, 2, 3], [5, 5, 6, 6], [1.0, 2.0, 0.0, 4.0]))
    pool.snapshot(str(tmp_path)).result()
    (record,) = pool.written().result()
    assert record.name == "pool.safetensors"
    other.restore(str(tmp_path))
    for field in dataclasses.fields(Samples):
        mine, theirs = (getattr(p.samples, field.name) for p in (pool, other))
        if isinstance(mine, Ragged):
            mine, theirs = mine.values, theirs.values
        assert np.array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    file = tmp_path / "pool.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(BrokenCheckpointError):
        other.restore(str(tmp_path))


def test_roles_and_arithmetic_are_in_the_plan() -> None:
    plan = make_plan(composed(*GIVEN))
    (stage,) = plan.stages
    assert set(stage.roles) == {RoleName.rollout, RoleName.reward, RoleName.policy}
    assert (stage.needs, stage.makes) == (("sft", "reward_model"), "rejection_sampling")
    # pools of 512, 1,024, 1,536 and 2,048 in steps of 32
    assert stage.optimizer_steps == 16 + 32 + 48 + 64
    text = render_plan(plan)
    assert "512 prompts x 16 samples = 8,192 sequences per iteration, at temperature 1" in text
    assert "the best of each prompt train the current weights for 1 pass(es)" in text
    assert "after each iteration the reward (model) scores answers to 128 held-out" in text
    above = render_plan(make_plan(composed(*GIVEN, "rejection.keep=above")))
    assert "those that score above 0 train" in above


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("rejection.samples=1", "rejection.samples"),
        ("rejection.temperatures=[]", "rejection.temperatures"),
        ("rejection.temperatures=[0.0]", "rejection.temperatures"),
        ("rejection.temperatures=[0.7,1.0,1.3]", "rejection.samples"),
        ("rejection.threshold=0.5", "rejection.threshold"),
    ],
)
def test_settings_that_do_not_fit_are_refused(override: str, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(*GIVEN, override)
    assert caught.value.where == where


def test_a_missing_model_or_file_is_refused() -> None:
    for left_out, says in ((1, "'sft'"), (2, "'reward_model'"), (3, "reads prompts")):
        with pytest.raises(ConfigError, match=says):
            make_plan(composed(*(g for n, g in enumerate(GIVEN) if n != left_out)))


def test_the_best_checkpoint_can_be_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(iterations=5)
    settings.run.checkpoint.keep_best, settings.run.checkpoint.keep_last = "rejection/gold_mean", 1
    run = Run(tmp_path, settings)
    run.hub.position.stage = "rejection_sampling"
    rejection_sampling(run.session)
    run.session.finish("rejection_sampling", last=True)
    golds = dict(enumerate(run.series("rejection/gold_mean")))
    del golds[0]
    best = max(golds, key=lambda step: golds[step])
    names = [path.name.partition("-")[2] for path in SavedRuns(run.folder).whole()]
    assert f"rejection_sampling-{best}" in names
    assert "best rejection/gold_mean of rejection_sampling's checkpoints" in capsys.readouterr().out


def test_what_compares_checkpoints_must_be_measured() -> None:
    best = "run.checkpoint.keep_best=rejection/heldout_score_mean"
    check_keep_best(composed(*GIVEN, best))
    with pytest.raises(ConfigError, match="not measured"):
        check_keep_best(composed(*GIVEN, best, "algorithm.evaluate_every=0"))
    with pytest.raises(ConfigError, match="not measured"):
        check_keep_best(composed(*GIVEN, "run.checkpoint.keep_best=rejection/gold_mean"))
