"""Workers that die in any call of any stage: the run ends as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fakes.session import Run
from test_resume_stages import STAGES, _config, _traces

from orchestrator.checkpoints.saved_runs import SavedRun, SavedRuns
from orchestrator.config.training import OnLimit, OnNonFinite
from orchestrator.session import recovery
from orchestrator.session.recovery import run_supervised
from orchestrator.session.session import Session
from workers.errors import KLLimitError, NonFiniteError, ParityError, RoleDiedError


def go(run: Run) -> None:
    for name in STAGES:
        run.hub.position.stage, run.hub.position.step = name, 0
        with run.telemetry.stage_span(name):
            run_supervised(run.session, STAGES[name])
        run.session.finish(name, last=name == "evaluate")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("undisturbed"), _config())
    go(run)
    return run


SOME = [
    ("policy.train_supervised", 2), ("critic.train_rankings", 2), ("policy.update", 2),
    ("rollout.receive_weights", 5), ("rollout.generate", 5), ("critic.written", 2),
]  # fmt: skip
VERBS = [
    "policy.train_supervised", "critic.train_rankings", "policy.load", "policy.update",
    "critic.update", "critic.values", "policy.publish_weights", "rollout.receive_weights",
    "rollout.admit", "rollout.generate", "rollout.probe", "reward.score", "reference.logprobs",
    "policy.snapshot", "critic.written", "critic.save",
]  # fmt: skip
REST = [case for verb in VERBS for call in (1, 2, 5) if (case := (verb, call)) not in SOME]


def lose(tmp_path: Path, undisturbed: Run, verb: str, call: int) -> None:
    if undisturbed.hub.calls[verb] < call:
        pytest.skip("not called so often")
    run = Run(tmp_path, _config())
    run.hub.faults.deaths[verb] = {call}
    go(run)
    assert _traces(run) == _traces(undisturbed)
    assert run.session.losses.count == 1


@pytest.mark.parametrize(("verb", "call"), SOME)
def test_a_lost_worker_leaves_no_trace(
    tmp_path: Path, undisturbed: Run, verb: str, call: int
) -> None:
    lose(tmp_path, undisturbed, verb, call)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize(("verb", "call"), REST)
def test_nor_does_it_in_any_other_call(
    tmp_path: Path, undisturbed: Run, verb: str, call: int
) -> None:
    lose(tmp_path, undisturbed, verb, call)


@pytest.mark.parametrize("every", [0, 2])
def test_no_more_than_the_interval_is_done_again(
    tmp_path: Path, undisturbed: Run, every: int
) -> None:
    config = _config()
    config.run.checkpoint.every_steps = every
    run = Run(tmp_path, config)
    run.hub.faults.deaths["policy.train_supervised"] = {4}
    run.hub.faults.deaths["critic.update"] = {3, 5}
    go(run)
    assert _traces(run) == _traces(undisturbed)
    assert run.session.losses.count == 3
    sft = (
        run.hub.calls["policy.train_supervised"] - undisturbed.hub.calls["policy.train_supervised"]
    )
    assert sft <= (every or 4) + 1  # the driver is a batch ahead


def batches(run: Run) -> int:
    """How often engines were asked to sample what PPO trains on."""
    size = run.config.algorithm.prompts_per_iteration
    return sum(len(f["requests"]) == size for f in run.hub.facts("rollout.generate"))


@pytest.mark.parametrize("verb", ["policy.update", "critic.update", "policy.logprobs"])
def test_finished_sequences_outlive_a_trainer(
    tmp_path: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    run = Run(tmp_path, _config())
    notes: list[str] = []
    monkeypatch.setattr(run.session.live, "note", notes.append)
    run.hub.faults.deaths[verb] = {2}
    go(run)
    assert _traces(run) == _traces(undisturbed)
    assert batches(run) == batches(undisturbed)
    assert "16 sequences are there already" in notes


def test_but_not_a_node_with_an_engine_on_it(
    tmp_path: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, _config())
    replace = run.roles.replace_lost

    def both() -> list[str]:
        run.hub.faults.gone.add("rollout")
        return replace()

    monkeypatch.setattr(run.roles, "replace_lost", both)
    run.hub.faults.deaths["policy.update"] = {2}
    go(run)
    assert _traces(run) == _traces(undisturbed)
    assert batches(run) == batches(undisturbed) + 1


def test_the_last_loss_is_told_by_its_own_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, _config())

    def used_up() -> list[str]:
        raise RoleDiedError("rollout rank 0 is not restarted again", where="rollout rank 0")

    monkeypatch.setattr(run.roles, "replace_lost", used_up)
    run.hub.faults.deaths["policy.update"] = {2}
    with pytest.raises(RoleDiedError, match=r"not restarted again; .*: the process of") as caught:
        go(run)
    assert caught.value.where == "rollout rank 0"


def test_sequences_of_later_weights_than_the_checkpoint_s_are_sampled_again(
    tmp_path: Path, undisturbed: Run
) -> None:
    config = _config()
    config.run.checkpoint.every_steps = 0
    run = Run(tmp_path, config)
    run.hub.faults.deaths["policy.update"] = {3}
    go(run)
    assert _traces(run) == _traces(undisturbed)
    assert batches(run) == batches(undisturbed) + 3


def test_a_death_on_the_way_back_is_one_more_loss(tmp_path: Path, undisturbed: Run) -> None:
    run = Run(tmp_path, _config())
    run.hub.faults.deaths["policy.update"] = {2}
    run.hub.faults.deaths["critic.restore"] = {1}
    go(run)
    assert _traces(run) == _traces(undisturbed)
    assert run.session.losses.count == 2
    assert batches(run) == batches(undisturbed) + 1  # nobody knows what the second one took along


def test_nor_what_a_replica_that_is_revived_on_the_way_back_took_along(
    tmp_path: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, _config())
    run.hub.faults.deaths["policy.update"] = {2}
    go_back = recovery._go_back

    def and_lose(session: Session, beginning: dict[str, object]) -> None:
        go_back(session, beginning)
        session.losses.add(["rollout rank 0"], RoleDiedError("revived within its call"))

    monkeypatch.setattr(recovery, "_go_back", and_lose)
    go(run)
    assert _traces(run) == _traces(undisturbed)
    assert batches(run) == batches(undisturbed) + 1


def test_an_error_of_living_workers_is_not_a_loss(tmp_path: Path) -> None:
    run = Run(tmp_path, _config())
    run.hub.faults.parity_offset = 1.0
    run.hub.position.stage = "ppo"
    with pytest.raises(ParityError):
        run_supervised(run.session, STAGES["ppo"])
    assert run.session.losses.count == 0


def test_when_nobody_is_lost_the_error_stands(tmp_path: Path) -> None:
    run = Run(tmp_path, _config())
    run.hub.faults.dead.add("policy.update")  # without a group that could be made anew
    run.hub.position.stage = "ppo"
    with pytest.raises(RoleDiedError):
        run_supervised(run.session, STAGES["ppo"])


def test_unfinished_checkpoints_are_cleared_away(tmp_path: Path) -> None:
    run = Run(tmp_path, _config())
    run.hub.faults.deaths["policy.written"] = {2}
    run.hub.position.stage = "sft"
    run_supervised(run.session, STAGES["sft"])
    assert not list(run.folder.state.glob("*.partial"))
    assert [p.name.partition("-")[2] for p in SavedRuns(run.folder).whole()] == [
        "sft-1", "sft-2", "sft-3",
    ]  # fmt: skip


def ppo_alone(tmp_path: Path, policy: OnNonFinite, resumed: SavedRun | None = None) -> Run:
    config = _config()
    config.algorithm.on_non_finite = policy
    run = Run(tmp_path, config, resumed)
    run.hub.position.stage = "ppo"
    run.hub.faults.nan_logprobs = {30}
    return run


def culprits(run: Run) -> list[dict]:
    text = (run.folder.samples / "non_finite.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("policy", [OnNonFinite.roll_back, OnNonFinite.skip])
def test_a_run_that_goes_back_leaves_the_culprit_out(tmp_path: Path, policy: OnNonFinite) -> None:
    run = ppo_alone(tmp_path, policy)
    run_supervised(run.session, STAGES["ppo"])
    totals = run.session.findings.ledger
    assert (totals.generated, totals.trained, totals.dropped) == (48, 47, 1)
    steps = [step for facts in run.hub.facts("policy.update") for step in facts["steps"][0]]
    trained = np.unique([i for step in steps for i in step.ppo.work.ids])
    assert (len(trained), 30 in trained) == (47, False)
    (line,) = culprits(run)
    assert (line["stage"], line["step"], line["ids"]) == ("ppo", 1, [30])
    assert [s["id"] for s in line["sequences"]] == [30]
    assert line["sequences"][0]["prompt"]


def test_what_was_left_out_stays_out_after_a_resume(tmp_path: Path) -> None:
    whole = ppo_alone(tmp_path / "whole", OnNonFinite.roll_back)
    (tmp_path / "whole").mkdir(exist_ok=True)
    run_supervised(whole.session, STAGES["ppo"])
    found = SavedRuns(whole.folder).read(SavedRuns(whole.folder).whole()[-1])
    assert found.progress["amends"] == {"excluded": [30], "kl_scale": 1.0}
    again = ppo_alone(tmp_path / "whole", OnNonFinite.roll_back, found)
    run_supervised(again.session, STAGES["ppo"])
    assert again.session.findings.ledger == whole.session.findings.ledger


def test_stop_keeps_the_culprit_and_ends(tmp_path: Path) -> None:
    run = ppo_alone(tmp_path, OnNonFinite.stop)
    with pytest.raises(NonFiniteError, match="sequences 30"):
        run_supervised(run.session, STAGES["ppo"])
    assert [line["ids"] for line in culprits(run)] == [[30]]


def test_what_would_end_the_same_is_not_tried_for_ever(tmp_path: Path) -> None:
    run = ppo_alone(tmp_path, OnNonFinite.roll_back)
    run.hub.faults.nan_logprobs = set()
    run.hub.faults.raising["policy.update"] = NonFiniteError("the gradient is not finite")
    with pytest.raises(NonFiniteError):
        run_supervised(run.session, STAGES["ppo"])
    assert run.hub.calls["policy.update"] == 2  # once more: hardware errs, too


def test_a_policy_too_far_away_ends_the_run(tmp_path: Path) -> None:
    config = _config()
    config.algorithm.kl.limit = 1e-6
    run = Run(tmp_path, config)
    run.hub.position.stage = "ppo"
    with pytest.raises(KLLimitError, match="nats per sequence from its reference"):
        run_supervised(run.session, STAGES["ppo"])


def test_or_goes_back_and_is_held_closer(tmp_path: Path, undisturbed: Run) -> None:
    kls = [r.value for r in undisturbed.metrics() if r.name == "ppo/kl_sequence"][:3]
    config = _config()
    config.algorithm.kl.limit = max(kls) - 1e-9  # reached once, in the undisturbed run's worst step
    config.algorithm.kl.on_limit = OnLimit.roll_back
    run = Run(tmp_path, config)
    run.hub.position.stage = "ppo"
    try:
        run_supervised(run.session, STAGES["ppo"])
    except KLLimitError:
        assert run.session.corrections.made == config.run.supervision.max_restarts
    assert run.session.corrections.kl_scale >= 2.0
    assert run.session.corrections.kl_scale == 2.0**run.session.corrections.made
