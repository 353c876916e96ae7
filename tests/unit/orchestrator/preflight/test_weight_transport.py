"""A transport that cannot reach a run's engines is refused by its properties, not by its name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from composing import composed, joining

from orchestrator.preflight.user_functions import check_own_parts
from orchestrator.preflight.weight_transport import check_transport
from workers.errors import ConfigError

MODULE = """
from workers.weights.transports.gloo import TRANSPORT as GLOO
from dataclasses import replace
NEAR = replace(GLOO, spans_nodes=False)
FAST = replace(GLOO, needs_gpu=True)
FAR = GLOO
"""
GPU_CLUSTER = "cluster=multi_node"


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_transports", raising=False)
    (tmp_path / "my_transports.py").write_text(MODULE)
    return tmp_path / "my_transports.py"


def checked(*line: str) -> None:
    check_transport(joining(composed("+experiment=pocket", *line)))


@pytest.mark.parametrize(
    ("transport", "line", "says", "fix"),
    [
        ("glow", [], "no weight transport 'glow'", "did you mean gloo?"),
        ("nccl", [], "nccl needs GPUs", "use gloo or shm"),
        ("nccl", ["cluster=one_gpu"], "two processes on one GPU", "whole GPUs"),
        ("shm", [GPU_CLUSTER], "other nodes", "use gloo or nccl"),
        (
            "shm",
            ["cluster.address=auto", "cluster.roles.rollout.max_workers=2"],
            "other nodes",
            "use gloo",
        ),
        ("my_transports:NEAR", [GPU_CLUSTER], "my_transports:NEAR does not reach", "use gloo"),
        ("my_transports:FAST", [], "my_transports:FAST needs GPUs", "use gloo or shm"),
    ],
)
def test_refused(transport: str, line: list[str], says: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        checked(*line, f"rollout.transport={transport}")
    assert caught.value.where == "rollout.transport"
    assert fix in caught.value.fix


def test_accepted() -> None:
    for line in (["rollout.transport=my_transports:FAR", GPU_CLUSTER], [GPU_CLUSTER],
                 ["rollout.transport=shm"], ["rollout.transport=gloo"],
                 ["rollout.transport=nccl", "stages=[pretrain,sft]"]):  # fmt: skip
        checked(*line)


def test_a_users_transport_is_imported_elsewhere_before_anything_starts(module: Path) -> None:
    module.write_text("raise OSError('no network')")
    config = composed("+experiment=pocket", "rollout.transport=my_transports:FAR")
    with pytest.raises(ConfigError, match=r"OSError at .*my_transports.py:1: no network"):
        check_own_parts(config)
    assert "my_transports" not in sys.modules
