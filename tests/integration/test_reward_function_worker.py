"""A reward function in its worker's process, as PPO sets it up from the configuration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.cluster.ray_cluster import start_cluster
from orchestrator.config.cluster import ClusterConfig, RoleName
from orchestrator.config.reward import RewardConfig, TextBridge
from orchestrator.config.schema import Config
from orchestrator.planning.placement import place_roles
from orchestrator.planning.worker_specs import reward_spec
from orchestrator.roles.fleet import Fleet
from orchestrator.supervision.pending import Position
from orchestrator.telemetry.role_time import Account
from workers.data.rows.asked import Asked
from workers.data.rows.examples import Message
from workers.pocket.tokenizer import build_tokenizer
from workers.records.arrays import Ragged
from workers.records.generation import Finish, RolloutBatch

SOURCE = """
import os, re
def score(responses, messages, finished):
    os.chdir("/")
    if len(responses) == 4:
        re.match("(a+)+$", "a" * 60 + "b")
    if messages[0][-1]["content"] == "2":
        raise RuntimeError(messages[0][0]["role"])
    return [len(response.split()) + 10 * ended for response, ended in zip(responses, finished)]
"""


def _rollouts() -> RolloutBatch:
    rows = [[1, 5, 6, 2], [1, 5, 7, 8], [1, 5, 2], [1, 5, 9, 10]]
    finish = [Finish.STOP, Finish.LENGTH, Finish.STOP, Finish.LENGTH]
    return RolloutBatch(
        np.arange(4), np.arange(4), Ragged.from_rows(rows, np.int32), np.full(4, 2),
        Ragged.from_rows([np.zeros(len(row) - 2) for row in rows], np.float32),
        np.array(finish), np.zeros((4, 2), np.int64),
    )  # fmt: skip


@pytest.mark.slow
def test_its_deadline_fires_and_what_it_raises_is_a_drop_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.py").write_text(SOURCE)  # a module of the product has this name, too
    monkeypatch.chdir(tmp_path)
    build_tokenizer().save_pretrained(tmp_path / "sft")
    config = Config(
        reward=RewardConfig(
            kind="function",
            function="data:score",
            function_seconds=2.0,
            function_retries=1,
            bridge=TextBridge.text,
        ),
        cluster=ClusterConfig(cpus_per_node=2, object_store_mib=96),
    )
    config.run.dir = str(tmp_path / "run")
    (tmp_path / "run").mkdir()
    asked = [
        Asked(n, (Message("system", "s"), Message("user", str(n))), "rendered") for n in range(4)
    ]
    layout = place_roles(config.cluster, [RoleName.reward])
    with start_cluster(config.cluster, layout, 240.0) as cluster:
        fleet = Fleet(config, cluster, Position(), Account())
        fleet.bring_up(RoleName.reward)
        fleet.reward.load(reward_spec(config, "", str(tmp_path / "sft"))).result()
        found = fleet.reward.score_batch(_rollouts(), asked).result()
    np.testing.assert_array_equal(found.values, np.float32([11, 2, np.nan, 2]))
    assert found.failures[2] == f"reward function raised RuntimeError at {tmp_path}/data.py:8"
    assert found.words == ("", "", "system", "")
    assert (found.failures[0], found.failures[1], found.failures[3]) == ("", "", "")
