"""Conversations over toy engines: ids are appended, turns end, faults are recorded drops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing import composed
from fakes.session import Run

from orchestrator.session.conversations import Failure, conversations
from orchestrator.stages.ppo.ledger import Cause
from orchestrator.stages.ppo.loop import ppo
from orchestrator.stages.ppo.saved_rollouts import SavedRollouts
from workers.errors import EnvironmentFailedError
from workers.records.environment import Ask, Told
from workers.records.generation import Finish, RolloutBatch

SAID = (9, 8, 7)  # token ids of an observation
SIZES = (
    "algorithm.iterations=2", "algorithm.prompts_per_iteration=4", "algorithm.samples_per_prompt=2",
    "algorithm.sequences_per_minibatch=8", "algorithm.evaluate_every=1",
    "algorithm.evaluation_prompts=4", "algorithm.policy_optimizer.warmup_steps=0",
    "algorithm.critic_optimizer.warmup_steps=0", "samples.all=true",
)  # fmt: skip


def run_with(path: Path, answer: Callable[[Ask], Told], *words: str, **sizes: int) -> Run:
    given = ("environment=function", "environment.factory=a:b", "rollout.max_response_tokens=24")
    run = Run(path, composed(*given, "environment.turn_tokens=8", *SIZES, *words), **sizes)
    run.hub.environment = answer
    return run


def twice(ask: Ask) -> Told:
    """Three turns."""
    done = len(ask.turns) == 3
    return Told(ask.id, () if done else SAID, 0.5, done)


def sampled(run: Run) -> list[RolloutBatch]:
    """The sequences that were trained on, in the shards that the trainers got."""
    return [s for f in run.hub.facts("policy.build_experience") for s in f["rollouts"].shards]


def rows(batch: RolloutBatch) -> dict[int, Any]:
    assert batch.sampled is not None
    return {
        int(i): (batch.response(n), batch.sampled.row(n).tolist(), batch.logprobs.row(n))
        for n, i in enumerate(batch.ids)
    }


def test_turns_and_observations_are_appended_as_ids(tmp_path: Path) -> None:
    run = run_with(tmp_path, twice)
    eos = run.source.tokenizer.eos_token_id
    ppo(run.session)
    asked = [f["requests"] for f in run.hub.facts("rollout.generate")]
    later = [r for requests in asked for r in requests if r.max_tokens]
    assert later
    assert all(len(r.ids) == 1 for r in later)
    several = 0
    for batch in sampled(run):
        for i, (response, mask, logprobs) in rows(batch).items():
            assert len(response) == len(mask) <= 24
            assert len(logprobs) == sum(mask)
            assert bool((logprobs < 0).all())
            said = [token for token, own in zip(response, mask, strict=True) if not own]
            assert said == [*SAID] * (len(said) // 3)
            first = mask.index(False) if False in mask else len(mask)
            assert first <= 8
            if first < len(mask):
                several += 1
                assert response[first - 1] == eos
                # The next turn was sampled after exactly these ids.
                (request,) = [r for r in later if r.ids == (i,)][:1]
                own = len(request.prompt_tokens) - first - len(SAID)
                assert request.prompt_tokens[own:] == tuple(response[: first + len(SAID)])
                assert request.max_tokens == min(8, 24 - first - len(SAID))
    assert several > 3
    assert run.series("ppo/trained") == [8.0, 8.0]
    assert all(value > 1 for value in run.series("ppo/turns_mean"))
    assert len(run.series("ppo/observation_tokens_mean")) == 2


def test_each_turn_has_a_seed_of_its_own_and_equal_runs_are_equal(tmp_path: Path) -> None:
    first, second = (run_with(tmp_path / name, twice) for name in ("a", "b"))
    for run in (first, second):
        ppo(run.session)
    assert first.repeatable() == second.repeatable()
    requests = [r for f in first.hub.facts("rollout.generate") for r in f["requests"]]
    seeds = [seed for request in requests for seed in request.seeds]
    assert len(set(seeds)) == len(seeds)


def test_neither_engines_nor_workers_nor_the_size_of_calls_matter(tmp_path: Path) -> None:
    one = run_with(tmp_path / "one", twice)
    several = run_with(tmp_path / "several", twice, rollout=2, environment=3)
    several.hub.steps_per_call = 1
    for run in (one, several):
        ppo(run.session)
    merged = [
        {
            i: row
            for batch in sampled(run)[: run.roles.rollout.size]
            for i, row in rows(batch).items()
        }
        for run in (one, several)
    ]
    assert {i: row[:2] for i, row in merged[0].items()} == {
        i: row[:2] for i, row in merged[1].items()
    }


def test_a_failure_costs_its_own_sequence(tmp_path: Path) -> None:
    def answer(ask: Ask) -> Told:
        if ask.id % 8 == 3:
            return Told(ask.id, failure="environment raised OSError", words="the disk is gone")
        return twice(ask)

    run = run_with(tmp_path, answer, "algorithm.evaluate_every=0")
    eos = run.source.tokenizer.eos_token_id
    ppo(run.session)
    lost = run.series(f"ppo/dropped/{Cause.environment.value}")
    ended = [ask for ask in (3, 11) if ask in _first_turns_ended(run, eos)]
    assert sum(lost) == len(ended)
    assert sum(run.series("ppo/trained")) == 16 - len(ended)
    assert run.series("ppo/generated") == [8.0, 8.0]
    assert run.session.findings.drops == {"environment raised OSError": len(ended)}
    assert ended, "the seed lets a sequence that fails end its first turn"


def _first_turns_ended(run: Run, eos: int) -> set[int]:
    """Sequences whose environment was asked, so that it could fail."""
    kept = {i: row for batch in sampled(run) for i, row in rows(batch).items()}
    cut = {i for i, (response, mask, _) in kept.items() if all(mask) and response[-1] != eos}
    return set(range(16)) - cut


def test_a_batch_without_a_sequence_ends_the_run(tmp_path: Path) -> None:
    run = run_with(tmp_path, lambda ask: Told(ask.id, failure="environment raised OSError"))
    run.session.config.environment.turn_tokens = 0
    talk = conversations(
        run.session, run.session.config.environment, *_begun(run, samples=1), keeps_lost=False
    )
    with pytest.raises(EnvironmentFailedError, match="failed in all 4 sequences of a batch") as e:
        _all_end(run, talk)
    assert "OSError" in str(e.value)


def _begun(run: Run, samples: int) -> tuple[Any, Any, int]:
    """Prompts, requests, and the version of engines that serve the SFT model."""
    _, version = run.session.engines_on(run.session.need("sft"))
    prompts = run.source.prompts("ppo", 0, 4)
    return prompts, run.session.requests(prompts, samples, "test"), version


def _all_end(run: Run, talk: Any) -> None:
    """Take the result as if every first turn had ended by itself."""
    for each in talk._talks.values():
        each.finish = Finish.STOP
    hear = talk._hear

    def ending(batch: RolloutBatch) -> None:
        hear(batch)
        for each in talk._talks.values():
            each.finish = Finish.STOP

    talk._hear = ending
    talk.result()


def test_what_never_comes_to_an_end_is_cut(tmp_path: Path) -> None:
    run = run_with(tmp_path, lambda ask: Told(ask.id, SAID), "environment.max_turns=2")
    talk = conversations(
        run.session, run.session.config.environment, *_begun(run, samples=4), keeps_lost=False
    )
    batch = run.session.fleet.rollout.fetch(talk.result()).result()
    assert set(batch.finish.tolist()) == {int(Finish.LENGTH)}
    assert batch.turns.max() == 2
    assert batch.response_lengths.max() <= 24


def test_rewards_of_turns_are_summed(tmp_path: Path) -> None:
    run = run_with(tmp_path, twice)
    talk = conversations(
        run.session, run.session.config.environment, *_begun(run, samples=4), keeps_lost=False
    )
    batch = run.session.fleet.rollout.fetch(talk.result()).result()
    eos = run.source.tokenizer.eos_token_id
    ended = [batch.response(n)[-1] == eos for n in range(len(batch))]
    assert batch.earned is not None
    assert batch.earned.tolist() == [
        0.5 * (int(turns) - (not end)) for turns, end in zip(batch.turns, ended, strict=True)
    ]
    assert batch.earned.max() == 1.5


def test_an_evaluation_keeps_what_failed_as_it_stands(tmp_path: Path) -> None:
    run = run_with(tmp_path, lambda ask: Told(ask.id, failure="late"))
    talk = conversations(
        run.session, run.session.config.environment, *_begun(run, samples=4), keeps_lost=True
    )
    batch = run.session.fleet.rollout.fetch(talk.result()).result()
    assert len(batch) == 16
    assert talk.failures
    assert not talk.lost
    failed = np.isin(batch.ids, sorted(talk.failures))
    assert set(batch.finish[failed].tolist()) == {int(Finish.LENGTH)}


def test_a_waiting_batch_is_saved_with_its_masks_and_what_it_lost(tmp_path: Path) -> None:
    def answer(ask: Ask) -> Told:
        return Told(ask.id, failure="late", words="30 s") if ask.id == 2 else twice(ask)

    run = run_with(tmp_path, answer)
    prompts, requests, version = _begun(run, samples=4)
    environment = run.session.config.environment
    talk = conversations(run.session, environment, prompts, requests, version, keeps_lost=False)
    from orchestrator.stages.ppo.queue import Batch, RolloutQueue

    ids = np.array([i for request in requests for i in request.ids])
    queue = RolloutQueue(0, 1, lambda n: Batch(n, ids, talk))
    queue.fill(0)
    saved = SavedRollouts(queue, run.session.fleet.rollout)
    saved.snapshot(str(tmp_path))
    lost = talk.lost
    assert lost == {2: Failure("late", "30 s")}
    back = saved.restore(str(tmp_path), 0, ids, lost)
    before = run.session.fleet.rollout.fetch(talk.result()).result()
    after = run.session.fleet.rollout.fetch(back.generation.result()).result()
    assert back.generation.lost == lost  # type: ignore[attr-defined]
    found = [
        {
            i: (response, mask, logprobs.tolist())
            for i, (response, mask, logprobs) in rows(b).items()
        }
        for b in (before, after)
    ]
    assert found[0] == found[1]
    assert before.earned is not None
    assert after.earned is not None
    assert before.earned.tolist() == after.earned.tolist()
