"""Whole runs whose processes are killed and stopped: real Ray, vLLM and DeepSpeed."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from benchmarks import chaos

_STORE = 128 << 20  # bytes of a node's object store
pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def models(home: Path) -> list[str]:
    return chaos.prepare(home)


def arguments(work: Path, zero: int = 1, ranks: int = 1) -> argparse.Namespace:
    return argparse.Namespace(
        # a strike comes within a second of the first step: the run must not have ended by then
        work=work, iterations=24, every_steps=1, probe_seconds=3.0, zero=zero, ranks=ranks,
        engines=1, seed=0, kills=3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def calm(home: Path, models: list[str]) -> tuple[Path, float]:
    return chaos.undisturbed(arguments(home), models)


def unharmed(found: dict[str, object]) -> None:
    assert found["exit_code"] == 0
    assert (found["lost"], found["duplicates"], found["mixed_versions"]) == (0, 0, 0)
    assert found["same_metrics"]
    assert found["same_weights"]


@pytest.mark.parametrize("name", chaos.SIGNALS)
@pytest.mark.parametrize("role", chaos.ROLES)
def test_a_worker_lost_in_a_run_leaves_no_trace(
    home: Path, models: list[str], calm: tuple[Path, float], role: str, name: str
) -> None:
    found = chaos.one_fault(arguments(home), models, calm[0], role, name, random.Random(role))
    unharmed(found)
    assert found["losses"] == 1


@pytest.mark.parametrize("zero", [2, 3])
@pytest.mark.parametrize("name", chaos.SIGNALS)
def test_a_lost_rank_takes_its_group_along(
    home: Path, models: list[str], zero: int, name: str
) -> None:
    args = arguments(home / f"zero-{zero}", zero, 2)
    calm = args.work / "calm"
    if not calm.exists():
        chaos.undisturbed(args, models)
    found = chaos.one_fault(args, models, calm, "policy", name, random.Random(zero))
    unharmed(found)


def test_engines_that_sample_ahead_outlive_a_trainer(home: Path, models: list[str]) -> None:
    ahead = [*models, "algorithm.staleness=1"]
    args = arguments(home / "ahead")
    calm, _ = chaos.undisturbed(args, ahead)
    run = chaos.Run(args.work / "struck", [*ahead, *chaos.settings(args, args.iterations)])
    assert run.wait_for(lambda: run.steps() >= 1)
    (before,) = run.workers("rollout")
    assert run.strike("policy", "SIGKILL", random.Random(0))
    assert run.wait_for(lambda: (run.folder / "losses.jsonl").exists())
    assert run.wait_for(lambda: run.steps() >= args.iterations - 1)
    assert run.workers("rollout") == [before]
    unharmed(asdict(chaos.outcome(run, run.end(), calm)))


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without room for workers, to which nodes are added."""
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_enable_worker_prestart"):
        monkeypatch.setenv(name, "0")
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": _STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_node_is_removed_and_replaced(
    home: Path, models: list[str], calm: tuple[Path, float], nodes: Cluster, lost: int
) -> None:
    room = {"num_cpus": 1, "object_store_memory": _STORE}
    added = [nodes.add_node(**room) for _ in range(2)]
    args = arguments(home)
    layout = [f"cluster.address={nodes.address}", "cluster.nodes=2", "cluster.cpus_per_node=0.75",
              "rollout.transport=gloo"]  # fmt: skip
    given = [*models, *chaos.settings(args, args.iterations), *layout]
    run = chaos.Run(home / f"node-{lost}", given)
    assert run.wait_for(lambda: run.steps() >= 1)
    nodes.remove_node(added[lost], allow_graceful=False)
    nodes.add_node(**room)
    unharmed(asdict(chaos.outcome(run, run.end(), calm[0])))
    assert (run.folder / "losses.jsonl").is_file()


def test_a_driver_killed_again_and_again(
    home: Path, models: list[str], calm: tuple[Path, float]
) -> None:
    found = chaos.driver(arguments(home), models, *calm)
    unharmed(found)
    assert (found["kills"], found["torn_loads"]) == (3, 0)
