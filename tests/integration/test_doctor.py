"""The whole command on this machine, and on a cluster of two nodes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray.cluster_utils
from test_two_nodes import Nodes
from test_two_nodes import nodes as nodes

from orchestrator.cluster.reported_nodes import reported_nodes
from orchestrator.config.cluster import ClusterConfig
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
    cluster = ray.cluster_utils.Cluster()
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20)
        arguments = [
            "--json", "+experiment=pocket_tiny", f"run.dir={tmp_path / 'run'}", "cluster.nodes=2",
            f"cluster.address={cluster.address}", "cluster.placement=apart",
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
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_token_decides_whether_the_cluster_is_joined(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nodes: Nodes,
) -> None:
    nodes.start()
    nodes.wait()
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # a token may lie in the real one
    token = Path(nodes.env["RAY_AUTH_TOKEN_PATH"])

    def looked(*more: str) -> tuple[int, dict[str, str], str]:
        """Exit code, states of the checks, and what the check of the token found."""
        code = command.main(
            ["--json", "+experiment=pocket_tiny", "cluster=cpu_nodes", "cluster.nodes=1",
             f"cluster.address={nodes.address}", f"run.dir={tmp_path / 'run'}", *more]
        )  # fmt: skip
        rows = json.loads(capsys.readouterr().out)["checks"]
        said = next(row["what"] for row in rows if row["name"] == "ray")
        return code, {row["name"]: row["state"] for row in rows}, said

    later = ("nodes", "node packages", "clocks", "shared folder")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    there = ClusterConfig(address=nodes.address, nodes=1, cpus_per_node=None)
    assert reported_nodes(there, 60, lambda _: None) == "2x0"  # the node joins after its head
    code, found, said = looked()
    assert (code, found["ray"], found["plan"]) == (0, "ok", "ok"), said
    assert {found[name] for name in later} == {"ok"}
    assert said.endswith(f":{nodes.port} answers with 1 node(s)")
    token.chmod(0o644)
    code, found, said = looked()
    assert (code, found["ray"], {found[name] for name in later}) == (2, "fail", {"skip"})
    assert "has mode 644: other users may read it" in said
    token.chmod(0o600)
    code, found, said = looked("cluster.auth=disabled")
    assert (code, found["ray"]) == (2, "fail")
    assert "cluster.auth=disabled sends none" in said
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    assert "asks for a token, and none is here" in looked()[2]
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    code, found, said = looked()
    assert (code, found["ray"]) == (2, "fail")
    assert "refuses the token in RAY_AUTH_TOKEN: it has another one" in said


@pytest.mark.slow
def test_an_engine_samples_four_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--json", "--engine"]) == 0
    rows = json.loads(capsys.readouterr().out)["checks"]
    assert rows[-1]["what"].startswith("vLLM sampled 4 tokens")
