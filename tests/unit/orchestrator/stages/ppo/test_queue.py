"""Generation ahead of training: what starts when, how old it may be, and what is open meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes.session import Run, small_config

from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.ranges import check_tree
from orchestrator.config.schema import Config
from orchestrator.config.training import AlgorithmConfig
from orchestrator.planning.checks.devices import check_ahead
from orchestrator.results.summary import LedgerTotals
from orchestrator.stages.ppo.loop import ppo
from orchestrator.stages.ppo.queue import Batch, RolloutQueue, require_fresh
from workers.errors import ConfigError, LedgerError, RoleDiedError, StalenessError
from workers.records.generation import RolloutSummary


def queue(staleness: int, iterations: int, log: list[int]) -> RolloutQueue:
    def launch(n: int) -> Batch:
        log.append(n)
        return Batch(n, np.array([10 * n, 10 * n + 1]), None)  # type: ignore[arg-type]

    return RolloutQueue(staleness, iterations, launch)


def summary(*versions: tuple[int, int]) -> RolloutSummary:
    zeros = np.zeros(len(versions), np.int64)
    ids = np.arange(100, 100 + len(versions))
    made = np.array(versions, np.int64).reshape(-1, 2)
    return RolloutSummary(ids, zeros, zeros, zeros, zeros, made, zeros, zeros)


@pytest.mark.parametrize(
    ("staleness", "started"),
    [
        (0, [[0], [1], [2], [3]]),
        (1, [[0, 1], [2], [3], []]),
        (2, [[0, 1, 2], [3], [], []]),
        (9, [[0, 1, 2, 3], [], [], []]),
    ],
)
def test_batches_start_once_and_at_most_so_many_iterations_early(
    staleness: int, started: list[list[int]]
):
    log: list[int] = []
    ahead, found = queue(staleness, 4, log), []
    for iteration in range(4):
        log.clear()
        ahead.fill(iteration)
        found.append([*log])
        assert ahead.take(iteration).iteration == iteration
    assert found == started
    assert ahead.ids.tolist() == []


def test_what_waits_is_known_by_its_sequences():
    ahead = queue(2, 9, [])
    ahead.fill(0)
    ahead.take(0)
    assert ahead.ids.tolist() == [10, 11, 20, 21]


def test_an_adopted_batch_is_not_started_again():
    log: list[int] = []
    ahead = queue(2, 9, log)
    for n in (4, 5):
        ahead.adopt(Batch(n, np.array([n]), None))  # type: ignore[arg-type]
    ahead.fill(4)
    assert log == [6]
    assert [batch.iteration for batch in ahead] == [4, 5, 6]


def test_the_first_token_decides_how_old_a_sequence_is():
    require_fresh(summary((5, 7), (6, 7)), version=7, staleness=2, where="here")
    require_fresh(summary(), version=7, staleness=0, where="here")
    with pytest.raises(StalenessError, match="sequence 101 began under weights 3 updates old"):
        require_fresh(summary((5, 7), (4, 7)), version=7, staleness=2, where="here")


def stale_config(staleness: int, iterations: int = 4) -> Config:
    config = small_config()
    config.algorithm = replace(config.algorithm, staleness=staleness, iterations=iterations)
    config.algorithm.evaluate_every = 2
    return config


class TestLoop:
    @pytest.mark.parametrize(
        ("staleness", "versions"), [(0, [2, 3, 4, 5]), (1, [2, 2, 3, 4]), (2, [2, 2, 2, 3])]
    )
    def test_each_batch_is_sampled_by_the_weights_of_its_start(
        self, tmp_path: Path, staleness: int, versions: list[int]
    ):
        run = Run(tmp_path, stale_config(staleness))
        ppo(run.session)
        assert run.series("ppo/policy_version") == versions
        lags = [2 + n - v for n, v in enumerate(versions)]
        assert run.series("ppo/lag_max") == lags
        assert max(lags) == staleness

    def test_the_next_batch_is_sampled_while_this_one_is_scored(self, tmp_path: Path):
        run = Run(tmp_path, stale_config(1))
        ppo(run.session)
        hub = run.hub
        training = [
            n for n, e in enumerate(hub.events)
            if (e.kind, e.name) == ("start", "rollout.generate")
            and len(e.facts["requests"][0].ids) == 2
        ]  # fmt: skip
        scored = [n for n, e in enumerate(hub.events)
                  if e.kind == "start" and e.name == "reward.score"]  # fmt: skip
        assert len(training) == len(scored) == 4
        for later, score in zip(training[1:], scored, strict=False):
            assert later < score
        assert training[2] > scored[0]  # and not earlier than allowed

    @pytest.mark.parametrize("staleness", [1, 2])
    def test_open_sequences_are_accounted_for_at_every_step(self, tmp_path: Path, staleness: int):
        run = Run(tmp_path, stale_config(staleness))
        run.hub.faults.failed_rewards = lambda i: "no answer" if i % 5 == 0 else ""
        ppo(run.session)
        names = ("generated", "trained", "dropped", "open")
        rows = list(zip(*(run.series(f"ppo/{n}") for n in names), strict=True))
        before = 0.0
        for generated, trained, dropped, still in rows:
            assert generated + before == trained + dropped + still
            before = still
        assert [row[3] for row in rows] == [16 * min(staleness, 3 - n) for n in range(4)]
        assert run.session.findings.ledger.open == 0
        assert run.session.findings.ledger.generated == 64

    def test_an_engine_that_kept_old_weights_is_found_out(self, tmp_path: Path):
        run = Run(tmp_path, stale_config(1))
        (engine,) = run.roles.rollout.workers
        sample = engine.generate_parts

        def late(call):
            for batch in sample(call):
                batch.versions[:] -= 1
                yield batch

        engine.generate_parts = late
        with pytest.raises(StalenessError, match="2 updates old, allowed are 1"):
            ppo(run.session)
        assert "ppo" not in run.session.checkpoints

    def test_parts_give_the_same_updates_as_the_whole(self, tmp_path: Path):
        runs = []
        for size in (0, 5):
            config = stale_config(0)
            config.rollout.stream_sequences = size
            run = Run(tmp_path / str(size), config)
            ppo(run.session)
            runs.append(run)
        whole, parts = (
            [len(facts["rollouts"].summary) for facts in run.hub.facts("reward.score")]
            for run in runs
        )
        assert whole == [16] * 4
        assert sum(parts) == sum(whole)
        assert len(parts) > len(whole)
        assert runs[0].repeatable() == runs[1].repeatable()

    def test_a_sequence_that_never_comes_back_is_missed(self, tmp_path: Path):
        run = Run(tmp_path, stale_config(1))
        launch = run.roles.rollout.generate
        run.roles.rollout.generate = lambda requests, sampling, version, *_: launch(
            requests[1:] if len(requests[0].ids) == 2 else requests, sampling, version
        )
        with pytest.raises(LedgerError, match="neither trained nor dropped"):
            ppo(run.session)

    def test_it_must_not_be_negative(self):
        with pytest.raises(ConfigError, match="staleness"):
            check_tree(AlgorithmConfig(staleness=-1))


class TestOverprovisioning:
    def config(self) -> Config:
        config = stale_config(1)
        config.rollout.overprovision = 0.3  # 8 prompts needed, 11 started, 2 samples each
        return config

    def test_the_last_to_finish_are_dropped_with_a_reason(self, tmp_path: Path):
        run = Run(tmp_path, self.config(), rollout=2)
        ppo(run.session)
        assert run.series("ppo/trained") == [16] * 4
        assert run.series("ppo/dropped") == run.series("ppo/dropped/surplus") == [6] * 4
        assert run.series("ppo/open") == [22, 22, 22, 0]
        assert run.session.findings.ledger == LedgerTotals(88, 64, 24)

    def test_every_iteration_reads_prompts_of_its_own(self, tmp_path: Path):
        run = Run(tmp_path, self.config())
        ppo(run.session)
        batches = [f["requests"] for f in run.hub.facts("rollout.generate")]
        used = [r.prompt_tokens for b in batches if len(b[0].ids) == 2 for r in b]
        asked = run.source.prompts("ppo", 0, 44)
        assert used == [p.tokens for p in asked]

    def test_whole_groups_stay(self, tmp_path: Path):
        run = Run(tmp_path, self.config())
        ppo(run.session)
        for facts in run.hub.facts("policy.build_experience"):
            ids = sorted(facts["scores"].ids.tolist())
            assert len(ids) == 16
            assert all(b == a + 1 for a, b in zip(ids[::2], ids[1::2], strict=True))


class TestInflightUpdates:
    def test_engines_pause_before_weights_come_and_resume_once_admitted(self, tmp_path: Path):
        config = stale_config(1)
        config.rollout.inflight_updates = True
        run = Run(tmp_path, config)
        ppo(run.session)
        names = run.hub.names()
        at = names.index("policy.publish_weights", names.index("critic.update"))
        assert [n for n in names[at - 1 : at + 8] if n.startswith("rollout.")] == [
            "rollout.pause", "rollout.receive_weights", "rollout.probe", "rollout.fetch",
            "rollout.admit", "rollout.resume",
        ]  # fmt: skip

    def test_without_them_nobody_is_interrupted(self, tmp_path: Path):
        run = Run(tmp_path, stale_config(1))
        ppo(run.session)
        assert not {"rollout.pause", "rollout.resume"} & {*run.hub.names()}

    def test_they_need_staleness(self):
        config = small_config()
        config.rollout.inflight_updates = True
        with pytest.raises(ConfigError, match="staleness=0"):
            check_ahead(config)
        config.algorithm.staleness = 1
        check_ahead(config)


class TestImportanceWeights:
    def test_without_a_cap_nothing_is_weighed(self, tmp_path: Path):
        run = Run(tmp_path, stale_config(1))
        ppo(run.session)
        assert all(f["loss"].importance_cap is None for f in run.hub.facts("policy.update"))
        assert run.series("ppo/importance_mean") == []

    def test_fresh_sequences_weigh_one_and_older_ones_what_they_are_worth(self, tmp_path: Path):
        config = stale_config(1)
        config.algorithm.importance_cap = 1.001
        run = Run(tmp_path, config)
        ppo(run.session)
        weights, capped = (run.series(f"ppo/importance_{n}") for n in ("mean", "capped"))
        assert run.series("ppo/lag_max") == [0, 1, 1, 1]
        assert weights[0] == pytest.approx(1.0, abs=1e-6)
        assert capped[0] == 0.0
        assert all(0 < c < 1 for c in capped[1:])
        assert all(w < 1.001 for w in weights[1:])

    def test_a_cap_is_positive(self):
        with pytest.raises(ConfigError, match="importance_cap"):
            check_tree(AlgorithmConfig(importance_cap=0.0))


class TestResume:
    def config(self, parts: int) -> Config:
        config = stale_config(2)
        config.rollout.stream_sequences = parts
        config.run.checkpoint.every_steps = 1
        config.run.checkpoint.keep_last = 100
        return config

    @pytest.mark.parametrize("parts", [0, 5])
    def test_going_on_with_batches_in_flight_ends_in_the_same(self, tmp_path: Path, parts: int):
        whole = Run(tmp_path / "whole", self.config(parts), rollout=2)
        ppo(whole.session)
        for number in (0, 1, 2):
            died = Run(tmp_path / str(number), self.config(parts), rollout=2)
            record, steps = died.session.live.advance, []

            def advance(
                done: int, died: Run = died, record=record, steps=steps, n=number, **v: float
            ) -> None:
                record(done, **v)
                steps.append(done)
                if len(steps) == n + 2:
                    died.hub.faults.dead.add("policy.update")

            died.session.live.advance = advance  # type: ignore[method-assign]
            if number < 2:
                with pytest.raises(RoleDiedError):
                    ppo(died.session)
            else:
                ppo(died.session)
            found = sorted(SavedRuns(died.folder).whole())[number]
            saved = SavedRuns(died.folder).read(found)
            kept = sorted(p.name for p in found.glob("ahead-*"))
            waiting = [n for n in range(number + 1, number + 3) if n < 4]
            each = 4 if parts else 1
            assert kept == sorted(f"ahead-{n}-{k}.safetensors" for n in waiting
                                  for k in range(each))  # fmt: skip
            resumed = Run(tmp_path / str(number), self.config(parts), saved, rollout=2)
            ppo(resumed.session)
            assert resumed.repeatable() == whole.repeatable()
            assert resumed.session.counters() == whole.session.counters()
            assert resumed.session.findings.ledger == whole.session.findings.ledger
            weights = [(r.folder.checkpoints / "ppo" / "model.safetensors").read_bytes()
                       for r in (resumed, whole)]  # fmt: skip
            assert weights[0] == weights[1]
