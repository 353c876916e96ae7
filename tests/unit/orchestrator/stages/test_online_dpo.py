"""Online DPO over fake roles: what is ranked and how, the weights that sample, and going on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from composing import composed
from fakes.session import Run, small_config
from fakes.toy import ToyPolicy, ToyScalar

from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.cluster import RoleName
from orchestrator.config.preference import PreferenceLoss
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.plan import Plan, make_plan, render_plan
from orchestrator.planning.runs.expand import expand
from orchestrator.run_files.folder import RunFolder
from orchestrator.stages.online_dpo import online_dpo, ranks_of
from workers.errors import BatchArithmeticError, ConfigError
from workers.records.training import Ranking

TIED = "all samples of the prompt have the same score"
LONE = "fewer than 2 sequences of the prompt have a reward"


def config() -> Config:
    config = small_config()
    config.algorithm.samples_per_prompt = 3
    config.algorithm.missing_eos_penalty = None
    config.preference.rankings_per_step = 4
    config.preference.optimizer.warmup_steps = 0
    config.preference.optimizer.learning_rate = 1e-2
    return config


def steps(run: Run) -> list[list[Ranking]]:
    """The rankings of each optimizer step."""
    return [
        [ranking for step in facts["steps"] for batch in step.micro_batches for ranking in batch]
        for facts in run.hub.facts("policy.train_preferences")
    ]


@pytest.mark.parametrize(
    ("scores", "ranks"),
    [
        ([2.0, 5.0, -1.0], [2, 1, 3]),
        ([1.0, 4.0, 1.0, 0.5], [2, 1, 2, 3]),
        ([7.0, 7.0], [1, 1]),
        ([1000.0, 1000.0001, 900.0], [1, 1, 2]),  # by rounding in float32
        ([-3.0], [1]),
    ],
)
def test_ranks_by_hand(scores: list[float], ranks: list[int]) -> None:
    assert ranks_of(np.array(scores, np.float32)).tolist() == ranks


def test_samples_are_ranked_by_their_rewards_against_the_sft_model(tmp_path: Path) -> None:
    run = Run(tmp_path, config(), policy=2, reference=2, reward=2)
    online_dpo(run.session)
    judge = ToyScalar.load(run.session.checkpoints["reward_model"], "keep")
    sft = ToyPolicy.load(run.session.checkpoints["sft"])
    for ranking in steps(run)[0]:
        rows = list(ranking.sequences.rows())
        scores = [float(judge.prefix_values(row)[-1].detach()) for row in rows]
        better = [(a, b) for a in range(3) for b in range(3) if ranking.ranks[a] < ranking.ranks[b]]
        assert better
        assert all(scores[a] > scores[b] for a, b in better)
        assert ranking.reference is not None
        for row, found in zip(rows, ranking.reference, strict=True):
            expected = sft.logprobs(row, ranking.prompt_length).sum().item()
            assert found == pytest.approx(expected, rel=1e-5)
    calls = {name.partition(".")[0] for name in run.hub.names()}
    assert calls == {"rollout", "reward", "reference", "policy"}
    assert "policy.build_experience" not in run.hub.names()


def test_the_first_step_has_a_loss_of_log_2_and_rewards_rise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fakes.engines.RATE", 4.0)
    settings = config()
    settings.preference.beta = 1.0
    settings.algorithm.iterations, settings.algorithm.evaluate_every = 30, 0
    settings.preference.rankings_per_step = 8
    run = Run(tmp_path, settings)
    online_dpo(run.session)
    assert run.series("dpo/loss")[0] == pytest.approx(0.6931472, abs=1e-6)
    assert run.series("ppo/kl_sequence")[0] == pytest.approx(0.0, abs=1e-5)
    scores = run.series("ppo/score_mean")
    assert np.mean(scores[-6:]) > np.mean(scores[:6]) + 0.05
    assert np.mean(run.series("ppo/kl_sequence")[-6:]) > 0.05


def test_each_iteration_samples_from_the_weights_of_the_one_before(tmp_path: Path) -> None:
    run = Run(tmp_path, config())
    online_dpo(run.session)
    sampled = [f for f in run.hub.facts("rollout.generate") if len(f["requests"][0].ids) == 3]
    first, second = (facts["version"] for facts in sampled)
    assert second == first + 1
    assert run.series("ppo/lag_max") == [0.0, 0.0]
    assert run.series("ppo/parity_max")[-1] < 1e-5


def test_every_sequence_is_trained_or_dropped_with_a_reason(tmp_path: Path) -> None:
    run = Run(tmp_path, config())
    run.hub.faults.failed_rewards = lambda i: "no answer" if i in (1, 3, 4) else ""
    run.config.algorithm.evaluate_every = 0
    online_dpo(run.session)
    ledger, drops = run.session.findings.ledger, run.session.findings.drops
    assert ledger.generated == 48
    assert (drops["no answer"], drops[LONE]) == (3, 1)  # 3 and 4 leave 5 alone
    assert ledger.trained == 48 - sum(drops.values())
    assert {*drops} <= {"no answer", LONE, TIED}  # a toy's responses are often the same
    trained = [i for step in steps(run) for ranking in step for i in ranking.ids.tolist()]
    assert len(trained) == len({*trained}) == ledger.trained
    assert {1, 3, 4, 5}.isdisjoint(trained)


def test_prompts_without_a_pair_are_dropped_and_an_iteration_without_any_changes_nothing(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, config())
    folder = run.session.checkpoints["reward_model"]
    ToyScalar(ToyScalar.load(folder, "keep").weights * 0.0).save(folder)
    online_dpo(run.session)
    assert "policy.train_preferences" not in run.hub.names()
    assert run.session.findings.drops == {TIED: 48}
    before, after = (
        ToyPolicy.load(run.session.checkpoints[n]).weights for n in ("sft", "online_dpo")
    )
    assert before.equal(after)


def test_simpo_has_no_reference_and_several_passes_see_every_ranking(tmp_path: Path) -> None:
    settings = config()
    settings.preference.loss, settings.preference.beta = PreferenceLoss.simpo, 2.0
    settings.preference.epochs, settings.algorithm.iterations = 2, 1
    run = Run(tmp_path, settings)
    online_dpo(run.session)
    assert "reference.load" not in run.hub.names()
    assert run.series("ppo/kl_sequence") == []
    seen = [[r.prompt_id for r in step] for step in steps(run)]
    assert len(seen) == 4
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3])


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_resumed_run_ends_in_the_same(tmp_path: Path, staleness: int) -> None:
    def started(place: Path, *resumed) -> Run:
        settings = config()
        settings.algorithm.iterations, settings.algorithm.staleness = 4, staleness
        settings.run.checkpoint.every_steps = 1
        return Run(place, settings, *resumed)

    whole = started(tmp_path / "whole")
    online_dpo(whole.session)
    saved = SavedRuns(whole.folder).steps()["online_dpo"][3]
    folder = RunFolder(shutil.copytree(whole.folder.path, tmp_path / "again" / "run"))
    again = started(tmp_path / "again", SavedRuns(folder).read(folder.state / saved.name))
    online_dpo(again.session)
    assert again.repeatable() == whole.repeatable()
    ends = [ToyPolicy.load(r.session.checkpoints["online_dpo"]).weights for r in (whole, again)]
    assert ends[0].equal(ends[1])


def test_a_variant_with_a_name_of_its_own_learns_from_rankings_too(tmp_path: Path) -> None:
    settings = config()
    settings.model.checkpoints.sft = settings.model.checkpoints.reward_model = "given"
    once = {"stage": "online_dpo", "set": {"algorithm.iterations": 1}}
    settings.variants, settings.stages = {"once": once}, ["once"]
    run = Run(tmp_path, settings)
    (only,) = expand(run.config)
    run.session.enter(only)
    online_dpo(run.session)
    assert len(steps(run)) == 2
    assert "reference.logprobs" not in run.hub.names()
    assert {record.stage for record in run.metrics()} == {"once"}
    assert "once" in run.session.checkpoints


def plan(*overrides: str) -> Plan:
    return make_plan(composed("+experiment=pocket_online_dpo", *overrides))


def test_the_plan_states_roles_sizes_and_inputs() -> None:
    (stage,) = (each for each in plan().stages if each.name is StageName.online_dpo)
    four = {RoleName.rollout, RoleName.reward, RoleName.reference, RoleName.policy}
    assert set(stage.roles) == four
    assert stage.needs == ("sft", "reward_model")
    assert stage.optimizer_steps == 24 * 2
    assert "32 prompts x 4 samples = 128 sequences per iteration" in render_plan(plan())
    simpo = plan("preference.loss=simpo", "preference.beta=2").stages
    (stage,) = (each for each in simpo if each.name is StageName.online_dpo)
    assert set(stage.roles) == four - {RoleName.reference}


def test_one_sample_and_more_ranks_than_rankings_are_refused() -> None:
    alone = "stages=[pretrain,sft,reward_model,online_dpo]"
    with pytest.raises(ConfigError) as caught:
        plan("algorithm.samples_per_prompt=1", alone)
    assert caught.value.where == "algorithm.samples_per_prompt"
    with pytest.raises(BatchArithmeticError) as refused:
        plan("cluster.roles.policy.workers=4", "preference.rankings_per_step=3", alone)
    assert refused.value.where == "preference.rankings_per_step"
