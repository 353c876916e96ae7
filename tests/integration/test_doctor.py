"""The whole command on this machine, and on a cluster of two nodes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray.cluster_utils

from orchestrator.doctor import command


def states(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    rows = json.loads(capsys.readouterr().out)["checks"]
    assert [row["number"] for row in rows] == list(range(1, len(rows) + 1))
    return {row["name"]: row["state"] for row in rows}


def test_this_machine_runs_the_demo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = command.main(["--json", "+experiment=pocket_tiny", f"run.dir={tmp_path / 'run'}"])
    found = states(capsys)
    assert "fail" not in found.values()
    assert code == 0
    for name in ("python", "torch", "plan", "run folder", "gloo", "loopback"):
        assert found[name] == "ok"
    assert found["ray"] == found["nccl"] == found["engine"] == "skip"


@pytest.mark.slow
def test_two_nodes_are_joined_and_looked_at(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nodes = ray.cluster_utils.Cluster()
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20)
        arguments = [
            "--json", "+experiment=pocket_tiny", f"run.dir={tmp_path / 'run'}", "cluster.nodes=2",
            f"cluster.address={nodes.address}", "cluster.placement=apart",
        ]  # fmt: skip
        assert command.main(arguments) == 0
        found = states(capsys)
        for name in ("ray", "nodes", "node packages", "clocks", "shared folder"):
            assert found[name] == "ok"
        assert list(tmp_path.iterdir()) == []  # the trial files are gone
        assert (
            command.main([*arguments, "cluster.cpus_per_node=4", "cluster.roles.policy.cpus=3"])
            == 2
        )
        found = states(capsys)
        assert (found["ray"], found["nodes"], found["clocks"]) == ("ok", "fail", "ok")
    finally:
        nodes.shutdown()


@pytest.mark.slow
def test_an_engine_samples_four_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--json", "--engine"]) == 0
    rows = json.loads(capsys.readouterr().out)["checks"]
    assert rows[-1]["what"].startswith("vLLM sampled 4 tokens")
