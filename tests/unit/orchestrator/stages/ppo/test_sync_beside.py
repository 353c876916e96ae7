"""The next batch is sampled while a sync is compared, and used only if the comparison is good."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.engines import ToyGeneration
from fakes.session import Run, small_config
from fakes.toy import ToyPolicy

from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.engines import RolloutConfig
from orchestrator.roles.rollout_group import RolloutGroup
from orchestrator.roles.weight_sync import Parity, WeightSync
from orchestrator.stages.ppo import loop
from orchestrator.stages.ppo.loop import ppo
from workers.errors import ParityError, RoleDiedError, StaleEngineError, StoppedError
from workers.records.generation import Sampling
from workers.records.weights import WeightReceipt
from workers.roles.rollout import RolloutWorker

WATCHED = (
    "rollout.receive_weights", "rollout.probe", "rollout.admit", "rollout.generate",
    "policy.logprobs", "policy.update",
)  # fmt: skip


def made(path: Path, saved: Any = None, **algorithm: Any) -> Run:
    config = small_config()
    settings = {"iterations": 3, "evaluate_every": 0} | algorithm
    config.algorithm = replace(config.algorithm, **settings)
    run = Run(path, config, saved)
    run.hub.position.stage = "ppo"
    return run


def order(run: Run) -> list[str]:
    """Calls after the first sync, by initials: r p a g l u as in WATCHED."""
    names = [name for name in run.hub.names() if name in WATCHED]
    return [name.partition(".")[2][0] for name in names]


def corrupt_from(monkeypatch: pytest.MonkeyPatch, transfer: int) -> None:
    """Change one number of the weights in engine memory, behind the checksum of a transfer."""
    receive, seen = ToyGeneration.receive, itertools.count()

    def corrupted(self: ToyGeneration, offer: Any) -> str:
        checksum = receive(self, offer)
        if next(seen) >= transfer:
            weights = self.model.weights.detach().clone()
            weights.view(-1)[0] += 0.5
            self.model = ToyPolicy(weights, self.model.layers)
        return checksum

    monkeypatch.setattr(ToyGeneration, "receive", corrupted)


def test_the_batch_is_asked_for_between_admission_and_comparison(tmp_path: Path) -> None:
    run = made(tmp_path)
    ppo(run.session)
    first, middle, last = "rpla", "rpagl", "rpla"  # the probe is compared by l, logprobs
    assert "".join(order(run)) == f"{first}glu{middle}lu{middle}lu{last}"


@pytest.mark.parametrize(
    ("settings", "every_steps"),
    [({"evaluate_every": 1}, 0), ({"staleness": 1}, 0), ({}, 1), ({"iterations": 1}, 0)],
)
def test_what_comes_first_is_not_delayed_by_a_batch(
    tmp_path: Path, settings: dict[str, Any], every_steps: int
) -> None:
    run = made(tmp_path, **settings)
    run.config.run.checkpoint.every_steps = every_steps
    ppo(run.session)
    assert "rpla" in "".join(order(run))
    assert "rpag" not in "".join(order(run))


def test_the_numbers_of_a_run_do_not_depend_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = made(tmp_path / "beside")
    ppo(beside.session)
    monkeypatch.setattr(loop, "beside", lambda *_: None)
    after = made(tmp_path / "after")
    ppo(after.session)
    for name in ("ppo/score_mean", "ppo/kl_sequence", "ppo/policy_loss", "ppo/parity_max"):
        assert beside.series(name) == after.series(name), name
        assert len(set(beside.series(name))) > 1 or name == "ppo/parity_max"
    assert beside.session.findings.ledger == after.session.findings.ledger


def test_a_batch_sampled_with_corrupted_weights_is_never_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupt_from(monkeypatch, transfer=1)
    run = made(tmp_path)
    with pytest.raises(ParityError, match="engine and trainer differ"):
        ppo(run.session)
    assert "".join(order(run)) == "rplaglurpagl"  # two batches sampled, one trained on
    (state,) = run.roles.rollout.states().result()
    assert state.status == "empty"
    requests = run.session.requests(run.source.prompts("ppo", 0, 2), 1, "x")
    with pytest.raises(StaleEngineError):
        run.roles.rollout.generate(requests, Sampling(), state.version).result()


def test_a_stop_that_comes_while_the_batch_is_sampled_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(tmp_path / "whole")
    ppo(whole.session)
    run = made(tmp_path / "cut")
    fill = loop.beside

    def stopping(*given: Any) -> Any:
        ahead = fill(*given)

        def go() -> None:
            assert ahead is not None
            ahead()
            run.stop.requested = True

        return go

    with monkeypatch.context() as patch:
        patch.setattr(loop, "beside", stopping)
        with pytest.raises(StoppedError):
            ppo(run.session)
    newest, _ = SavedRuns(run.folder).newest()
    again = made(tmp_path / "cut", newest)
    ppo(again.session)
    for name in ("ppo/score_mean", "ppo/kl_sequence", "ppo/policy_loss"):
        assert whole.series(name)[1:] == again.series(name)[-2:], name
    assert again.session.findings.ledger == whole.session.findings.ledger


def test_an_engine_lost_at_its_probe_is_replaced_and_its_peers_probed_again() -> None:
    calls: list[str] = []
    gone = RoleDiedError("it ended", where="rollout rank 1")

    class Probing:
        def __init__(self, error: Exception | None) -> None:
            self.error = error

        def result(self) -> str:
            if self.error is not None:
                raise self.error
            return "probed"

    probes = iter([Probing(gone), Probing(None)])
    rollout: Any = SimpleNamespace(
        ranks=[0, 1], join=lambda: None, refresh=None, admit=lambda _: Probing(None),
        lost=lambda error: calls.append(error.where) or True,
    )  # fmt: skip
    sync: Any = WeightSync(
        SimpleNamespace(),  # type: ignore[arg-type]
        rollout, RolloutConfig(transport="shm"), [(1,)], 64,
    )  # fmt: skip
    sent = WeightReceipt(1, "sum", 8, 0.0)
    sync._transact = lambda _, judged: (sent, None, 0.0)
    sync._sampled = lambda _: next(probes)
    sync._compare = lambda found, _: calls.append(found) or Parity(0.0, 0.0, 0.0)
    report = sync.run(1, lambda: calls.append("asked"))
    assert calls == ["asked", "rollout rank 1", "probed"]
    assert report.parity == Parity(0.0, 0.0, 0.0)
    rollout.lost = lambda _: False  # another role's loss: the run goes back to its checkpoint
    probes = iter([Probing(gone)])
    with pytest.raises(RoleDiedError):
        sync.run(2, lambda: None)


def test_an_error_of_another_role_is_no_lost_engine() -> None:
    group: Any = RolloutGroup.__new__(RolloutGroup)
    group.workers, dealt = [None, None], list[str]()
    group._deal_again = lambda name, _: dealt.append(name)
    assert not group.lost(RoleDiedError("it ended", where="policy rank 0"))
    assert group.lost(RoleDiedError("it ended", where="rollout rank 1"))
    assert dealt == ["rollout rank 1"]


def test_an_engine_that_is_refused_serves_nothing_until_it_gets_weights() -> None:
    worker: Any = RolloutWorker(0)
    worker._pool = worker._spec = worker._folder = object()
    worker._version, worker._status = 4, "admitted"
    worker._require(4, "admitted")
    worker.refuse()
    for verb in (lambda: worker._require(4, "admitted"), lambda: worker.admit(4)):
        with pytest.raises(StaleEngineError, match=r"holds version 4 \(empty\)"):
            verb()
