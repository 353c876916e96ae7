"""PPO over fake roles with advantage estimators from outside, which need no critic."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes.session import Run, small_config
from fakes.toy import ToyPolicy

from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.cluster import RoleName
from orchestrator.config.schema import Config
from orchestrator.roles.interfaces import Rollouts
from orchestrator.run_files.folder import RunFolder
from orchestrator.stages.ppo.advantages import rows_of
from orchestrator.stages.ppo.loop import ppo
from orchestrator.stages.reward_model import reward_model
from workers.errors import ConfigError
from workers.records.generation import RolloutSummary
from workers.records.specs import PartSpec
from workers.records.training import Scores

DOCS = Path(__file__).parents[5] / "docs" / "extending.md"
LONE = "fewer than 2 sequences of the prompt have a reward"


@pytest.fixture
def estimators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's module with the estimator that the documentation shows."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my_estimators.py"
    (code,) = re.findall(
        r"```python\n(.*?)```", DOCS.read_text().partition("## A new policy")[0], re.S
    )
    file.write_text(code)
    yield file
    sys.modules.pop("my_estimators", None)


def config(prompts: int = 2, samples: int = 4) -> Config:
    config = small_config()
    algorithm = config.algorithm
    algorithm.advantage = "my_estimators:ESTIMATOR"
    algorithm.prompts_per_iteration, algorithm.samples_per_prompt = prompts, samples
    algorithm.missing_eos_penalty = None
    return config


def score_by_hand(run: Run, scores: list[float]) -> None:
    """Give the sequences of every iteration these scores, in the order of their ids."""

    def score(rollouts, asked=()):
        ids = np.sort(rollouts.summary.ids)
        found = Scores(ids, np.array(scores, np.float32), ("",) * len(ids))
        return SimpleNamespace(result=lambda: found)

    run.roles.reward.score = score


def advantages(run: Run, iteration: int) -> dict[int, list[float]]:
    """The advantages of each sequence's tokens."""
    shards = run.hub.facts("policy.update")[iteration]["experience"].shards
    return {
        int(i): row.tolist()
        for shard in shards
        for i, row in zip(shard.ids, shard.advantages.rows(), strict=True)
    }


def test_advantages_are_returns_minus_the_mean_of_the_others_wherever_these_are(
    estimators: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path, config(), policy=3, reference=2)  # samples of a prompt on three ranks
    score_by_hand(run, [1.0, 2.0, 6.0, 7.0, 0.0, 0.0, 3.0, 1.0])
    ppo(run.session)
    (load,) = run.hub.facts("policy.load")
    assert load["spec"].estimator == PartSpec("my_estimators:ESTIMATOR", str(tmp_path))
    found = advantages(run, 0)  # the KL is 0 before the first update
    by_hand = [-4.0, -8 / 3, 8 / 3, 4.0, -4 / 3, -4 / 3, 8 / 3, 0.0]
    for i, expected in zip(sorted(found), by_hand, strict=True):
        assert found[i] == pytest.approx([expected] * len(found[i]), abs=1e-6)


def test_sequences_are_found_in_whatever_order_engines_return_them() -> None:
    five = np.array([8, 2, 5, 9, 3])
    none = np.zeros(5, np.int64)
    summary = RolloutSummary(five, none, none, none, none, np.zeros((5, 2), np.int64), none, none)
    assert rows_of(Rollouts((), summary, ()), np.array([2, 3, 9])).tolist() == [1, 4, 3]


def test_the_kl_penalty_counts_in_the_returns(estimators: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, config(), policy=2)
    run.config.algorithm.kl.coefficient = 20.0
    score_by_hand(run, [1.0, 2.0, 6.0, 7.0, 0.0, 0.0, 3.0, 1.0])
    ppo(run.session)
    found = advantages(run, 1)
    summaries = run.hub.facts("policy.update")[1]["experience"].summaries
    assert max(abs(float(k)) for s in summaries for k in s.kl) > 0.05
    # Sums of the token rewards, which the ranks shape on their own.
    shaped = {
        int(i): float(r) for s in summaries for i, r in zip(s.ids, s.shaped_returns, strict=True)
    }
    ids = sorted(found)
    for prompt in (ids[:4], ids[4:]):
        mean = np.mean([shaped[i] for i in prompt])
        for i in prompt:
            assert found[i][0] == pytest.approx(4 / 3 * (shaped[i] - mean), abs=1e-5)


def test_ppo_without_values_has_no_critic(estimators: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, config(8, 2))
    run.config.run.checkpoint.every_steps = 1
    reward_model(run.session)  # with the critic's trainers, which PPO then ends
    assert "critic.load" in run.hub.names()
    run.hub.events.clear()
    ppo(run.session)
    assert not [event.name for event in run.hub.events if event.name.startswith("critic.")]
    assert not run.roles.holds(RoleName.critic)
    assert run.roles.released == [RoleName.critic]
    names = {record.name for record in run.metrics() if record.stage == "ppo"}
    assert "ppo/policy_loss" in names
    assert not [n for n in names if re.search(r"critic|value|explained", n)]
    (saved,) = SavedRuns(run.folder).steps()["ppo"].values()
    assert any(saved.glob("policy*"))
    assert not [*saved.glob("critic*")]
    before, after = (
        ToyPolicy.load(run.session.checkpoints[name]).weights for name in ("sft", "ppo")
    )
    assert not before.equal(after)


def test_gae_releases_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    ppo(run.session)
    assert run.roles.released == []
    assert "critic.update" in run.hub.names()


def test_a_run_without_a_critic_goes_on_from_its_checkpoint(
    estimators: Path, tmp_path: Path
) -> None:
    def started(place: Path, *resumed) -> Run:
        chosen = config(8, 2)
        chosen.algorithm.iterations, chosen.run.checkpoint.every_steps = 3, 1
        return Run(place, chosen, *resumed)

    whole = started(tmp_path / "whole")
    ppo(whole.session)
    saved = SavedRuns(whole.folder).steps()["ppo"][1]
    folder = RunFolder(shutil.copytree(whole.folder.path, tmp_path / "again" / "run"))
    again = started(tmp_path / "again", SavedRuns(folder).read(folder.state / saved.name))
    ppo(again.session)
    assert again.repeatable() == whole.repeatable()
    assert "critic.restore" not in again.hub.names()


def test_what_is_left_of_a_prompt_with_one_reward_is_dropped(
    estimators: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path, config(8, 2))
    run.config.algorithm.iterations = 1
    run.hub.faults.failed_rewards = lambda i: "no answer" if i % 16 in (0, 2, 3) else ""
    ppo(run.session)
    assert run.session.findings.drops == {"no answer": 3, LONE: 1}
    ids = sorted(
        i for f in run.hub.facts("rollout.generate")[:2] for r in f["requests"] for i in r.ids
    )
    trained = sorted(advantages(run, 0))
    assert len(trained) == 12
    assert set(trained) < set(ids)
    assert len({i // 2 for i in trained}) == 6  # both samples of six prompts


def test_an_iteration_in_which_no_prompt_has_two_rewards_changes_no_weight(
    estimators: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path, config(8, 2))
    run.hub.faults.failed_rewards = lambda i: "no answer" if i % 2 else ""
    ppo(run.session)
    assert "policy.update" not in run.hub.names()
    assert run.session.findings.drops == {"no answer": 16, LONE: 16}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("torch.bincount(batch.group, batch.returns)", r"shape \(2,\) instead of \(8,\)"),
        ("batch.returns / 0", "NaN or infinity"),
        ("batch.returns.tolist()", "list instead of a tensor"),
        ("batch.rewards", r"AttributeError at .*my_estimators.py:\d+: 'Sequences'"),
    ],
)
def test_an_estimator_that_computes_nonsense_ends_the_run(
    estimators: Path, tmp_path: Path, body: str, says: str
) -> None:
    code = estimators.read_text()
    estimators.write_text(re.sub(r"    return .*", f"    return {body}", code))
    with pytest.raises(ConfigError, match=says) as caught:
        ppo(Run(tmp_path, config()).session)
    assert caught.value.where == "algorithm.advantage"
