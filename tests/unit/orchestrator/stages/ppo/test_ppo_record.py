"""What an iteration leaves behind, against numbers by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes.session import Run, small_config

from orchestrator.config.seeds import derive
from orchestrator.config.training import OnNonFinite
from orchestrator.roles.weight_sync import Parity, SyncReport
from orchestrator.run_files.samples import read_rollouts
from orchestrator.stages.ppo import record
from orchestrator.stages.ppo.ledger import Cause, LedgerSummary
from orchestrator.stages.ppo.loop import ppo, ppo_ptx
from orchestrator.telemetry.live import LiveView
from workers.records.generation import Finish
from workers.records.training import ExperienceSummary, Scores, StepStats


def share(ids: list[int], kl: list[float], tokens: int, off: float) -> ExperienceSummary:
    """A critic rank's share; its three mismatches are `off` and its double and half."""
    shaped = np.array(kl, np.float32) * 10
    return ExperienceSummary(
        np.array(ids), np.array(kl, np.float32), shaped, tokens, 0.0, 0.0, 2 * off, off, off / 2
    )


def step(n: float, *, applied: bool = True, **extra: float) -> StepStats:
    return StepStats(n, 10 * n, n / 10, applied, extra)


def critic_step(n: float, *, applied: bool = True) -> StepStats:
    return step(n, applied=applied, explained_variance=n / 4, value_clip_fraction=n / 8)


def policy_step(n: float, *, applied: bool = True, **more: float) -> StepStats:
    return step(
        n, applied=applied, clip_fraction=n / 4, approx_kl=n / 8, entropy=n * 3, ratio_mean=1.0,
        ratio_max=-n, **more,
    )  # fmt: skip


def iteration(**changed: Any) -> Any:
    summary = SimpleNamespace(
        response_lengths=np.array([2, 4, 9, 1]),
        finish=np.array([Finish.STOP, Finish.LENGTH, Finish.STOP, Finish.STOP]),
    )
    made = {
        "rollouts": SimpleNamespace(summary=summary),
        "scores": Scores(
            np.arange(4), np.array([1, 3, np.nan, 8], np.float32), ("", "", "no answer", "")
        ),
        "experience": SimpleNamespace(
            summaries=[share([1, 3], [0.5, 1.0], 10, 0.25), share([0], [3.0], 30, 0.5)]
        ),
        "policy": [policy_step(1.0), policy_step(5.0)],
        "critic": [critic_step(2.0), critic_step(3.0)],
        "kl_coefficient": 0.07, "version": 6, "lag": 2, "skips": False, "seconds": 8.0,
        "rewarded": True,
    }  # fmt: skip
    return SimpleNamespace(**(made | changed))


def test_metrics_of_sequences_are_of_those_that_were_scored() -> None:
    assert record._sequences(iteration()) == pytest.approx(
        {
            "ppo/score_mean": 4.0,
            "ppo/score_std": np.sqrt((9 + 1 + 16) / 3),
            "ppo/kl_sequence": 1.5,
            "ppo/kl_coefficient": 0.07,
            "ppo/shaped_return": 15.0,
            "ppo/response_tokens_mean": 4.0,
            "ppo/eos_rate": 0.75,
            "ppo/policy_version": 6.0,
            "ppo/lag_max": 2.0,
            "ppo/mismatch_max": 1.0,
            "ppo/mismatch_mean": (0.25 * 10 + 0.5 * 30) / 40,  # by tokens
            "ppo/mismatch_k3": (0.125 * 10 + 0.25 * 30) / 40,
        }
    )


def test_losses_are_means_over_the_steps_of_an_iteration() -> None:
    assert record._losses(iteration()) == pytest.approx(
        {
            "ppo/value_loss": 2.5, "ppo/critic_grad_norm": 25.0, "ppo/critic_learning_rate": 0.3,
            "ppo/explained_variance": 2.5 / 4, "ppo/value_clip_fraction": 2.5 / 8,
            "ppo/policy_loss": 3.0, "ppo/policy_grad_norm": 30.0, "ppo/policy_learning_rate": 0.5,
            "ppo/ratio_max": -1.0,  # the largest, not the mean
            "ppo/clip_fraction": 0.75, "ppo/approx_kl": 3 / 8, "ppo/entropy": 9.0,
        }
    )  # fmt: skip


def test_metrics_that_only_some_steps_have_are_recorded_where_they_are() -> None:
    optional = {"ptx_loss": 2.0, "importance_mean": 3.0, "importance_capped": 4.0}
    found = record._losses(iteration(policy=[policy_step(1.0, **optional)]))
    assert {name: found[f"ppo/{name}"] for name in optional} == optional


def test_skipped_steps_are_counted_and_left_out_of_the_means_unless_all_were() -> None:
    def losses(policy: list[StepStats], critic: list[StepStats]) -> dict[str, float]:
        return record._losses(iteration(policy=policy, critic=critic, skips=True))

    lost, kept = policy_step(9.0, applied=False), policy_step(5.0)
    found = losses([kept, lost], [critic_step(2.0), critic_step(7.0, applied=False)])
    assert (found["ppo/policy_loss"], found["ppo/value_loss"]) == (5.0, 2.0)
    assert (found["ppo/policy_learning_rate"], found["ppo/critic_learning_rate"]) == (0.5, 0.2)
    assert found["ppo/skipped_steps"] == 2.0
    assert losses([lost], [critic_step(2.0)])["ppo/policy_loss"] == 9.0
    warming = losses([], [critic_step(2.0)])
    assert not [name for name in warming if "policy" in name]
    alone = losses([kept, lost], [])  # there is no critic
    assert not [name for name in alone if "critic" in name or "value" in name]
    assert alone["ppo/skipped_steps"] == 1.0


def test_counts_speed_and_parity_have_names_of_their_own() -> None:
    causes = {Cause.surplus: 3, Cause.no_reward: 4}
    counts = LedgerSummary(20, 12, {"late": 3, "failed": 4}, 1, causes)
    assert record.count_values(counts) == {
        "ppo/generated": 20.0, "ppo/trained": 12.0, "ppo/dropped": 7.0, "ppo/open": 1.0,
        "ppo/dropped/surplus": 3.0, "ppo/dropped/no_reward": 4.0,
    }  # fmt: skip
    assert record._speed(iteration()) == {
        "ppo/step_seconds": 8.0, "ppo/tokens_per_second": 5.0,
    }  # fmt: skip
    sync = SyncReport(4, 100, 3.0, Parity(0.5, 0.25, 9), transfer_seconds=2.0)
    assert record.parity_values(sync) == {
        "ppo/parity_max": 0.5, "ppo/parity_mean": 0.25, "ppo/sync_bytes": 100.0,
        "ppo/sync_seconds": 3.0, "ppo/sync_transfer_seconds": 2.0,
    }  # fmt: skip


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the live view is told, in order."""
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(LiveView, "stage", lambda _, *given: told.append(("stage", *given)))
    monkeypatch.setattr(LiveView, "advance", lambda _, at, **values: told.append((at, values)))
    monkeypatch.setattr(LiveView, "note", lambda _, text: told.append(("note", text)))
    return told


def test_the_live_view_follows_every_iteration_also_one_without_a_reward(
    tmp_path: Path, shown: list[tuple[Any, ...]]
) -> None:
    config = small_config()
    config.algorithm = replace(config.algorithm, iterations=3)
    run = Run(tmp_path, config)
    run.hub.faults.failed_rewards = lambda _: "down" if run.hub.calls["reward.score"] == 2 else ""
    ppo(run.session)
    assert shown[0] == ("stage", "ppo", 3)
    steps = [told for told in shown if isinstance(told[0], int)]
    assert [at for at, _ in steps] == [1, 2, 3]
    assert steps[1] == (2, {})
    names = ("score_mean", "kl_sequence")
    for (_, values), place in ((steps[0], 0), (steps[2], 1)):
        assert {n: values[n] for n in names} == {n: run.series(f"ppo/{n}")[place] for n in names}
        assert values["gold_mean"] in run.series("ppo/gold_mean")
    stepped = [r.step for r in run.metrics() if r.name == "ppo/dropped"]
    assert stepped == [1, 2, 3]
    assert {r.step for r in run.metrics() if r.name == "ppo/seconds/generate"} == {1, 2, 3}
    assert run.series("ppo/dropped") == [0, 16, 0]
    assert run.series("ppo/dropped/no_reward") == [16]


@pytest.mark.parametrize("gold", [True, False])
def test_held_out_prompts_are_sampled_with_seeds_of_stage_purpose_and_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gold: bool
) -> None:
    run = Run(tmp_path)
    if not gold:
        monkeypatch.setattr(run.source, "gold", lambda prompts, texts: None)
    ppo(run.session)
    prompts = run.source.prompts("heldout", 0, 8)
    asked = [f for f in run.hub.facts("rollout.generate") if len(f["requests"][0].ids) == 1]
    assert [f["version"] for f in asked] == [2, 3, 4]
    for at, facts in enumerate(asked):
        path = ("ppo", "gold" if gold else "heldout", at)
        assert [(r.prompt_id, r.seeds) for r in facts["requests"]] == [
            (p.id, (derive(run.config.seed, *path, p.id, 0),)) for p in prompts
        ]


def test_gold_metrics_are_those_of_the_labeler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[Any]] = []
    gold = [SimpleNamespace(score=float(n), rude=n < 2, truthful=n < 6) for n in range(8)]

    def label(prompts: list[Any], texts: list[str]) -> list[Any]:
        given.append(prompts)
        assert all(isinstance(text, str) for text in texts)
        return gold[: len(prompts)]

    run = Run(tmp_path)
    monkeypatch.setattr(run.source, "gold", label)
    ppo(run.session)
    assert [p.id for p in given[1]] == [p.id for p in run.source.prompts("heldout", 0, 8)]
    assert run.series("ppo/gold_mean") == [3.5] * 3
    assert run.series("ppo/gold_rude_rate") == [0.25] * 3
    assert run.series("ppo/gold_truthful_rate") == [0.75] * 3


def test_where_no_held_out_prompt_has_a_reward_that_is_said_and_the_rest_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: list[tuple[Any, ...]]
) -> None:
    run = Run(tmp_path)
    monkeypatch.setattr(run.source, "gold", lambda prompts, texts: None)
    run.hub.faults.failed_rewards = lambda i: "no answer" if i < 8 else ""
    answers: list[Any] = []
    score = run.roles.reward.score_batch

    def noted(batch: Any, asked: Any) -> Any:
        answers.append(batch)
        return score(batch, asked)

    monkeypatch.setattr(run.roles.reward, "score_batch", noted)
    ppo(run.session)  # ids 0 to 7 are the answers before the first update
    notes = [told[1] for told in shown if told[0] == "note"]
    assert [n for n in notes if n.startswith("no held-out prompt has a reward, first: no answer")]
    assert run.series("ppo/heldout_failed") == [8, 0, 0]
    assert len(run.series("ppo/heldout_score_mean")) == 2
    assert len(run.series("ppo/heldout_response_tokens_mean")) == 3
    ended = [float((batch.finish == Finish.STOP).mean()) for batch in answers]
    assert run.series("ppo/heldout_eos_rate") == ended
    assert ended[0] != 1 - ended[0]
    lengths = [float(batch.response_lengths.mean()) for batch in answers]
    assert run.series("ppo/heldout_response_tokens_mean") == lengths


def test_a_kept_text_is_that_of_its_sequence(tmp_path: Path) -> None:
    run = Run(tmp_path, policy=2)
    ppo(run.session)
    held = {
        int(batch.ids[n]): (batch, n)
        for facts in run.hub.facts("policy.update")
        for batch in facts["experience"].shards
        for n in range(len(batch.ids))
    }
    kl = {
        int(i): float(k)
        for facts in run.hub.facts("policy.update")
        for s in facts["experience"].summaries
        for i, k in zip(s.ids, s.kl, strict=True)
    }
    samples = read_rollouts(run.folder)
    assert samples
    for sample in samples:
        batch, n = held[sample.id]
        row, start = batch.tokens.row(n), int(batch.prompt_lengths[n])
        assert sample.prompt == run.source.detokenize(row[:start])
        assert sample.response == run.source.detokenize(row[start:])
        assert (sample.stage, sample.kl) == ("ppo", kl[sample.id])
        assert sample.finish == ("stop" if row[-1] == 2 else "length")
    assert any(sample.kl for sample in samples)


def test_the_largest_difference_of_all_syncs_is_found(tmp_path: Path) -> None:
    run = Run(tmp_path)
    offsets = iter([1e-6, 3e-5, 2e-6])
    probe = run.roles.rollout.probe

    def off(*given: Any) -> Any:
        run.hub.faults.parity_offset = next(offsets)
        return probe(*given)

    run.roles.rollout.probe = off  # type: ignore[method-assign]
    ppo(run.session)
    found = run.series("ppo/parity_max")
    assert found == pytest.approx([1e-6, 3e-5, 2e-6], rel=0.1)
    assert run.session.findings.parity_max == max(found)
    assert len(run.session.findings.sync_seconds) == 3


def test_a_skipped_step_is_kept_with_the_texts_it_came_from(
    tmp_path: Path, shown: list[tuple[Any, ...]]
) -> None:
    config = small_config()
    config.algorithm = replace(config.algorithm, on_non_finite=OnNonFinite.skip)
    run = Run(tmp_path, config)
    (critic,) = run.roles.critic.workers
    stepped = critic._step
    lost: list[int] = []

    def skip(totals: Any, extra: dict[str, float]) -> StepStats:
        stats = stepped(totals, extra)
        if lost:
            return stats
        lost.append(run.hub.facts("critic.update")[0]["steps"][0][0].work.ids[0])
        return replace(stats, applied=False, culprits=(int(lost[0]),), loss=float("nan"))

    critic._step = skip
    ppo(run.session)
    assert run.series("ppo/skipped_steps") == [1, 0]
    (line,) = map(json.loads, run.folder.non_finite.read_text().splitlines())
    assert line["ids"] == [s["id"] for s in line["sequences"]] == lost
    assert line["what"].startswith("an optimizer step was skipped: loss nan, gradient ")
    assert ("note", line["what"]) in shown


def test_versions_and_lag_are_those_of_the_newest_and_the_oldest_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config()
    config.algorithm = replace(config.algorithm, staleness=1, evaluate_every=0)
    run = Run(tmp_path, config)
    (engine,) = run.roles.rollout.workers
    sample = engine.generate_parts

    def older(call: Any) -> Any:
        (batch,) = sample(call)
        batch.versions[1, 0] -= 1  # one sequence began before the last update
        yield batch

    monkeypatch.setattr(engine, "generate_parts", older)
    monkeypatch.setattr("orchestrator.stages.ppo.scored.require_fresh", lambda *_: None)
    ppo(run.session)
    assert run.series("ppo/policy_version") == [2, 2]
    assert run.series("ppo/lag_max") == [1, 2]


def test_only_a_run_with_text_asks_whether_documents_may_share_rows(tmp_path: Path) -> None:
    for stage, asks in ((ppo, False), (ppo_ptx, True)):
        run = Run(tmp_path / stage.__name__)
        stage(run.session)
        assert ("policy.shares_rows" in run.hub.names()) == asks


def test_held_out_rewards_that_are_there_are_averaged_without_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    monkeypatch.setattr(run.source, "gold", lambda prompts, texts: None)
    run.hub.faults.failed_rewards = lambda i: "no answer" if i < 3 else ""
    ppo(run.session)
    assert run.series("ppo/heldout_failed") == [3, 0, 0]
    assert len(run.series("ppo/heldout_score_mean")) == 3


def test_while_the_policy_learns_its_weights_are_offered_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    offered: list[bool] = []
    update = run.roles.policy.update

    def noted(*given: Any, **named: Any) -> Any:
        offered.append(run.roles.rollout.refresh is not None)
        return update(*given, **named)

    monkeypatch.setattr(run.roles.policy, "update", noted)
    ppo(run.session)
    assert offered
    assert not any(offered)
    assert run.roles.rollout.refresh is not None  # the engines serve the newest version
