"""Old log-probabilities of the engine where the probe of the sync shows that both agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.session import Run, small_config

from orchestrator.checkpoints.ppo_state import check_noted
from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.training import OldLogprobs
from orchestrator.roles.weight_sync import WeightSync
from orchestrator.stages.ppo.loop import ppo
from orchestrator.telemetry.live import LiveView
from workers.errors import ParityError

NEAR, FAR = 5e-5, 2e-4  # nats, on both sides of the limit


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr(LiveView, "note", lambda _, text: told.append(text))
    return told


def auto(path: Path, offsets: Iterable[float], saved: Any = None, **algorithm: Any) -> Run:
    """A run whose engines differ by these nats from the trainer, sync by sync."""
    config = small_config()
    config.rollout.parity_tolerance = 1e-3
    config.run.checkpoint.every_steps = 1
    config.algorithm = replace(
        config.algorithm, old_logprobs=OldLogprobs.auto, iterations=3, **algorithm
    )
    run = Run(path, config, saved)
    run.hub.position.stage = "ppo"
    rest, probe = iter(offsets), run.roles.rollout.probe

    def off(*given: Any) -> Any:
        run.hub.faults.parity_offset = next(rest)
        return probe(*given)

    run.roles.rollout.probe = off  # type: ignore[method-assign]
    return run


def trainer_passes(run: Run) -> int:
    """Passes of the trainer over sequences; those of the probes are left out."""
    return run.hub.names().count("policy.logprobs") - run.hub.names().count("rollout.probe")


def test_each_iteration_follows_the_sync_before_it(tmp_path: Path, notes: list[str]) -> None:
    run = auto(tmp_path, [NEAR, FAR, NEAR, NEAR])
    ppo(run.session)
    assert run.series("ppo/engine_logprobs") == [1, 0, 1]
    assert trainer_passes(run) == 1
    assert len(run.series("ppo/mismatch_max")) == 1  # measured where the trainer computes them
    assert [n for n in notes if n.startswith("old")] == [
        "old log-probabilities are the engine's: the two differ by up to 5.0e-05 nats, limit 1e-04",
        "old log-probabilities are computed by the trainer: the two differ by up to 2.0e-04 nats, "
        "limit 1e-04",
        "old log-probabilities are the engine's: the two differ by up to 5.0e-05 nats, limit 1e-04",
    ]


def test_what_stays_is_told_once(tmp_path: Path, notes: list[str]) -> None:
    ppo(auto(tmp_path, [FAR] * 4).session)
    assert [n.partition(":")[0] for n in notes if n.startswith("old")] == [
        "old log-probabilities are computed by the trainer"
    ]


def test_the_trainer_computes_those_of_sequences_sampled_ahead(
    tmp_path: Path, notes: list[str]
) -> None:
    run = auto(tmp_path, [0.0] * 4, staleness=1)
    ppo(run.session)
    assert run.series("ppo/engine_logprobs") == [0, 0, 0]
    assert trainer_passes(run) == 3
    why = "old log-probabilities are computed by the trainer: sequences are sampled ahead"
    assert [n for n in notes if n.startswith("old")] == [why]


def test_a_resumed_run_keeps_the_choice_of_its_checkpoint(tmp_path: Path) -> None:
    whole = auto(tmp_path / "whole", [NEAR, FAR, NEAR, NEAR])
    ppo(whole.session)
    first = sorted(whole.folder.state.glob("[0-9]*"))[0]
    runs = SavedRuns(whole.folder)
    saved = runs.continue_from(runs.read(first))
    whole.folder.reopen(saved.progress["appended"])
    # The sync of the start would choose the engine's.
    again = auto(tmp_path / "whole", [NEAR, NEAR, NEAR], saved)
    ppo(again.session)
    assert again.series("ppo/engine_logprobs")[-2:] == [0, 1]


def test_states_of_earlier_versions_hold_no_choice() -> None:
    account = {"generated": 0, "trained": 0, "dropped": {}, "ranges": []}
    own = {
        "version": 1, "counters": {"next_id": 0, "next_version": 1}, "kl": None,
        "ledger": account, "scoring": {"deviation": None, "lost": 0}, "documents_used": 0,
        "ahead": [],
    }  # fmt: skip
    check_noted(own, "fixed")
    check_noted(own | {"engine_logprobs": True}, "fixed")
    with pytest.raises(TypeError, match="engine_logprobs"):
        check_noted(own | {"engine_logprobs": "yes"}, "fixed")


@pytest.mark.parametrize(("promised", "refused"), [(1e-4, True), (float("inf"), False)])
def test_a_restarted_engine_keeps_what_was_shown_of_its_peers(
    monkeypatch: pytest.MonkeyPatch, promised: float, refused: bool
) -> None:
    sync: Any = WeightSync.__new__(WeightSync)
    sync.promised, sync._config = promised, SimpleNamespace(parity_tolerance=1e-3)
    sync._rollout = sync._policy = sync._budget = None
    sync._prompts = []
    found = SimpleNamespace(max_difference=FAR, mean_difference=FAR, k3=0.0)
    sampled = SimpleNamespace(result=lambda: None)
    monkeypatch.setattr("orchestrator.roles.weight_sync.sample_probe", lambda *_: sampled)
    monkeypatch.setattr("orchestrator.roles.weight_sync.compare_probe", lambda *_: found)
    probes: list[Callable[[], Any]] = [lambda: sync._probe(3), lambda: sync._probe(3, [1])]
    assert probes[0]() is found  # of all engines: decides, is not decided upon
    if refused:
        with pytest.raises(ParityError, match="tolerance 1e-04"):
            probes[1]()
    else:
        assert probes[1]() is found
