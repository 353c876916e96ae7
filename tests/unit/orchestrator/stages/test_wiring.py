"""Every key, set off its default, arrives where it belongs, and at no other place.

Each key is changed alone, and what workers are given and the plan are compared (wiring/walk.py),
so a new key that nothing reads fails. Keys that arrive under another name, or in a stage, have a
row: a value as typed on a command line, the value expected at its destination, and where that is.
The rows of one scenario are set together in one run of every stage over fake roles, all with
different numbers, so that no two keys can be swapped without a row that fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from composing import composed
from fakes.session import Run
from wiring.rows import SCENARIOS, UNSEEN, Row
from wiring.walk import BESIDES, LEAVES, Walk
from wiring.world import World

from orchestrator.config.schema import Config
from orchestrator.stages.ppo.loop import ppo


class Case(NamedTuple):
    scenario: str
    row: Row


CASES = [Case(name, row) for name, each in SCENARIOS.items() for row in each.rows]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    made: dict[str, World] = {}

    def world(name: str) -> World:
        if name not in made:
            scenario = SCENARIOS[name]
            overrides = [f"{row.key}={row.typed}" for row in scenario.rows]
            with pytest.MonkeyPatch.context() as patch:
                made[name] = World(
                    tmp_path_factory.mktemp(name), patch, [*scenario.given, *overrides],
                    list(scenario.stages),
                )  # fmt: skip
        return made[name]

    return world


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.scenario}:{c.row.key}")
def test_a_key_arrives_where_it_belongs(case: Case, worlds: Callable[[str], World]) -> None:
    world = worlds(case.scenario)
    assert leaf(world.config, case.row.key) != leaf(plain(), case.row.key), "not off its default"
    found = case.row.see(world)
    assert found == _near(case.row.expected), f"{case.row.key}={case.row.typed} gave {found!r}"


def _near(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-6) if isinstance(expected, float) else expected


@cache
def plain() -> Config:
    return composed()


def leaf(config: Config, key: str) -> Any:
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    return found


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    return Walk(tmp_path_factory.mktemp("walk"))


ROWS = {case.row.key for case in CASES}


@pytest.mark.parametrize("key", LEAVES)
def test_a_changed_key_changes_what_a_run_derives(key: str, walk: Walk) -> None:
    moved = walk.change(key)
    if moved.by_name:
        assert moved.others <= BESIDES.get(key.rpartition(".")[2], set()), (
            f"{key} arrives by its name, and changes other fields as well"
        )
    if moved.by_name or moved.others or moved.plan:
        assert key not in UNSEEN, "a key whose effect is seen needs no reason"
    else:
        assert key in ROWS or key in UNSEEN, (
            f"{key} changes nothing that workers are given, nor the plan: pass it on, or add a row "
            "to tests/wiring/rows.py, or a reason to UNSEEN why nothing here can show it"
        )


def test_rows_and_reasons_are_of_keys_that_there_are() -> None:
    assert not ROWS - {*LEAVES}, "rows of keys that are gone"
    assert not UNSEEN.keys() - {*LEAVES}, "reasons for keys that are gone"
    assert not UNSEEN.keys() & ROWS, "keys with a row need no reason"


def test_no_two_numbers_of_a_scenario_are_equal() -> None:
    # Else one key could take the place of another and no row would notice.
    for name, scenario in SCENARIOS.items():
        numbers = Counter(row.typed for row in scenario.rows if _is_fraction(row.typed))
        assert [n for n, times in numbers.items() if times > 1] == [], name


def _is_fraction(typed: str) -> bool:
    try:
        return float(typed) != int(float(typed))
    except ValueError:
        return False


def test_iterations_have_seeds_prompts_and_samples_of_their_own(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        world = World(tmp_path, patch, [*SCENARIOS["main"].given, "algorithm.iterations=3",
                      "algorithm.prompts_per_iteration=4", "algorithm.sequences_per_minibatch=4",
                      "algorithm.samples_per_prompt=2", "algorithm.epochs=2",
                      "algorithm.policy_optimizer.warmup_steps=0",
                      "algorithm.critic_optimizer.warmup_steps=0"], ["ppo_ptx"])  # fmt: skip
    asked = [f["requests"] for f in world.generated()]
    assert len(asked) == 3
    prompts = [{r.prompt_tokens for r in requests} for requests in asked]
    expected = world.run.source.prompts("ppo", 0, 12)
    assert prompts == [{p.tokens for p in expected[i : i + 4]} for i in (0, 4, 8)]
    seeds = [seed for requests in asked for r in requests for seed in r.seeds]
    assert len(set(seeds)) == len(seeds) == 24
    orders: set[tuple[tuple[int, ...], ...]] = set()
    for facts in world.facts("ppo_ptx", "policy.update"):
        steps = [sorted(s.ppo.work.ids.tolist()) for s in facts["steps"][0]]
        first = min(map(min, steps))  # ids go on from iteration to iteration
        orders.add(tuple(tuple(i - first for i in step) for step in steps))
        assert len(steps) == 4
        assert sorted(steps[0] + steps[1]) == sorted(steps[2] + steps[3])
        assert steps[:2] != steps[2:]  # each pass in an order of its own
    assert len(orders) == 3  # and each iteration
    same = [f["steps"][0] for f in world.facts("ppo_ptx", "critic.update")]
    policy = [f["steps"][0] for f in world.facts("ppo_ptx", "policy.update")]
    for ours, theirs in zip(policy, same, strict=True):
        assert [s.ppo.work.ids.tolist() for s in ours] == [s.work.ids.tolist() for s in theirs]
    assert len({s.seed for s in (world.engine, world.group())}) == 2


def test_prompts_that_come_again_are_sampled_with_other_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed("algorithm.iterations=3", "algorithm.prompts_per_iteration=4",
                      "algorithm.sequences_per_minibatch=4", "algorithm.evaluate_every=0",
                      "algorithm.policy_optimizer.warmup_steps=0",
                      "algorithm.critic_optimizer.warmup_steps=0")  # fmt: skip
    run = Run(tmp_path, config)
    prompts = run.source.prompts
    monkeypatch.setattr(run.source, "prompts", lambda split, _, count: prompts(split, 0, count))
    ppo(run.session)
    asked = [f["requests"] for f in run.hub.facts("rollout.generate")]
    assert len({r.prompt_tokens for requests in asked for r in requests}) == 4
    assert len({seed for requests in asked for r in requests for seed in r.seeds}) == 12


def test_the_coefficient_of_a_roll_back_is_in_force_whatever_controls_it(tmp_path: Path) -> None:
    for control, first in (("fixed", 0.21), ("adaptive", 0.21)):
        with pytest.MonkeyPatch.context() as patch:
            world = World(tmp_path / control, patch, [*SCENARIOS["main"].given,
                          f"algorithm.kl.control={control}", "algorithm.kl.coefficient=0.07",
                          "algorithm.iterations=1", "algorithm.prompts_per_iteration=4",
                          "algorithm.sequences_per_minibatch=4",
                          "algorithm.policy_optimizer.warmup_steps=0",
                          "algorithm.critic_optimizer.warmup_steps=0"], [])  # fmt: skip
        run = Run(tmp_path / control, world.config)
        run.session.corrections.kl_scale = 3.0
        ppo(run.session)
        (facts,) = run.hub.facts("policy.build_experience")
        assert facts["shaping"].kl_coefficient == pytest.approx(first)
        assert run.series("ppo/kl_coefficient") == pytest.approx([first])
