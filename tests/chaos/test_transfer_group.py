"""Engines that get their weights over a group of processes, which is formed again after a loss."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from test_workers import SAMPLING, same, working

from orchestrator.config.engines import RolloutConfig, RolloutEngine

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


def test_a_lost_engine_leaves_the_group_and_joins_it_again(tmp_path: Path) -> None:
    engines = RolloutConfig(
        engine=RolloutEngine.transformers, max_concurrent_sequences=8, max_response_tokens=48,
        transport="gloo",
    )  # fmt: skip
    with working(tmp_path, engines) as world:
        rollout, calm = world.fleet.rollout, world.generate()[1]
        generating = rollout.generate(list(world.ask()), SAMPLING, world.version)
        time.sleep(0.05)
        world.strike("rollout", 0, signal.SIGKILL)
        same(rollout.fetch(generating.result()).result(), calm)
        world.sync.run(3)
        assert rollout.ranks == [1]
        world.await_standing(0)
        world.sync.run(4)
        assert rollout.ranks == [0, 1]
        world.version = 4
        assert world.generate()[1].tokens.values.tolist() == calm.tokens.values.tolist()
