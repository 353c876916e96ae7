"""Prompts whose samples all have one score are replaced, over fake roles."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes.session import Run, small_config

from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.ranges import check_tree
from orchestrator.config.schema import Config
from orchestrator.run_files.folder import RunFolder
from orchestrator.stages.ppo.loop import ppo
from workers.errors import ConfigError
from workers.records.training import Scores

SAME = "all samples of the prompt have the same score"
BEYOND = "more prompts than an iteration trains on"


def config(most: int = 4, iterations: int = 1) -> Config:
    """Batches of 2 prompts with 2 samples each."""
    config = small_config()
    algorithm = config.algorithm
    algorithm.advantage = "rloo"
    algorithm.iterations, algorithm.prompts_per_iteration = iterations, 2
    algorithm.samples_per_prompt, algorithm.sequences_per_minibatch = 2, 2
    algorithm.dynamic_sampling.enabled, algorithm.dynamic_sampling.max_batches = True, most
    algorithm.missing_eos_penalty = None
    return config


def score_by_hand(run: Run, of_ids: Sequence[float]) -> None:
    """Give sequence number i of the run the score `of_ids[i]`, counted from the first asked for."""
    first: list[int] = []

    def score(rollouts, asked=()):
        ids = np.sort(rollouts.summary.ids)
        first.append(int(ids[0]))
        values = np.array([of_ids[i - first[0]] for i in ids.tolist()], np.float32)
        found = Scores(ids, values, ("",) * len(ids))
        return SimpleNamespace(result=lambda: found)

    run.roles.reward.score = score


def asked(run: Run) -> list[list[int]]:
    """Ids of each call of the engines for training sequences (2 samples of a prompt)."""
    calls = run.hub.facts("rollout.generate")
    found = [[i for request in call["requests"] for i in request.ids] for call in calls]
    return [
        ids for ids, call in zip(found, calls, strict=True) if len(call["requests"][0].ids) == 2
    ]


def trained(run: Run, iteration: int = 0) -> list[int]:
    shards = run.hub.facts("policy.update")[iteration]["experience"].shards
    return sorted(int(i) for shard in shards for i in shard.ids)


def test_prompts_that_tell_nothing_are_replaced_from_the_same_weights(tmp_path: Path) -> None:
    run = Run(tmp_path, config())
    # Of the first batch one prompt differs, of the second none, of the third both.
    score_by_hand(run, [1, 2, 5, 5, 3, 3, 4, 4, 0, 1, 1, 0])
    ppo(run.session)
    calls = asked(run)
    assert [len(ids) for ids in calls] == [4, 4, 4]
    versions = {int(call["version"]) for call in run.hub.facts("rollout.generate")[:3]}
    assert len(versions) == 1
    assert trained(run) == [*calls[0][:2], *calls[2][:2]]
    findings = run.session.findings
    assert findings.drops == {SAME: 6, BEYOND: 2}
    assert (findings.ledger.generated, findings.ledger.trained) == (12, 4)


def test_no_more_batches_are_sampled_than_allowed(tmp_path: Path) -> None:
    run = Run(tmp_path, config(most=2))
    score_by_hand(run, [1, 2, 5, 5, 3, 3, 4, 4])
    ppo(run.session)
    assert [len(ids) for ids in asked(run)] == [4, 4]
    assert trained(run) == asked(run)[0][:2]
    assert run.session.findings.drops == {SAME: 6}


def test_an_iteration_without_any_difference_changes_no_weight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, config(most=1))
    score_by_hand(run, [5, 5, 5, 5.000002])  # differs by rounding alone
    ppo(run.session)
    assert run.hub.facts("policy.update") == []
    assert run.session.findings.drops == {SAME: 4}
    assert "no prompt of a batch has samples of different scores" in capsys.readouterr().out


def sampled_prompts(run: Run) -> list[int]:
    return [
        request.prompt_id
        for call in run.hub.facts("rollout.generate")
        for request in call["requests"]
        if len(request.ids) == 2
    ]


def test_a_resumed_run_goes_on_with_the_prompts_after_the_last(tmp_path: Path) -> None:
    def started(place: Path, *resumed) -> Run:
        settings = config(iterations=3)
        settings.run.checkpoint.every_steps = 1
        run = Run(place, settings, *resumed)
        # Only the first batch of the run tells nothing; its iteration samples a second one.
        score_by_hand(run, [0, 2] * 20 if resumed else [1, 1, 1, 1, *[0, 2] * 20])
        return run

    whole = started(tmp_path / "whole")
    ppo(whole.session)
    prompts = sampled_prompts(whole)
    assert len(prompts) == len(set(prompts)) == 8  # two batches, then one for each iteration
    saved = SavedRuns(whole.folder).steps()["ppo"][1]
    folder = RunFolder(shutil.copytree(whole.folder.path, tmp_path / "again" / "run"))
    again = started(tmp_path / "again", SavedRuns(folder).read(folder.state / saved.name))
    ppo(again.session)
    assert sampled_prompts(again) == prompts[4:]
    assert again.repeatable() == whole.repeatable()


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"samples_per_prompt": 1}, "algorithm.samples_per_prompt"),
        ({"staleness": 1}, "algorithm.dynamic_sampling.max_batches"),
    ],
)
def test_settings_that_contradict_are_refused(change: dict[str, int], where: str) -> None:
    settings = config()
    for name, value in change.items():
        setattr(settings.algorithm, name, value)
    with pytest.raises(ConfigError) as caught:
        check_tree(settings)
    assert caught.value.where == where
    settings.algorithm.dynamic_sampling.max_batches = 1
    settings.algorithm.samples_per_prompt = 2
    check_tree(settings)
