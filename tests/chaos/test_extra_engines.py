"""A run on a joined cluster whose engines come and go with its nodes: real Ray, vLLM, DeepSpeed."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from benchmarks import chaos
from orchestrator.telemetry.metrics import read_metrics, series

SECONDS = "ppo/seconds/generate"
_STORE = 128 << 20  # bytes of a node's object store
ITERATIONS = 400  # an engine starts within about 50 of them
pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without room for workers, and one node for those that are reserved."""
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_enable_worker_prestart"):
        monkeypatch.setenv(name, "0")
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": _STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=2, object_store_memory=_STORE)
    yield cluster
    cluster.shutdown()


def generation(folder: Path) -> list[tuple[int, float]]:
    """Engines, and seconds of generation, of each iteration on record."""
    if not (folder / "metrics.jsonl").exists():
        return []
    records = list(read_metrics(folder / "metrics.jsonl"))
    engines, seconds = (series(records, "ppo", name) for name in ("ppo/engines", SECONDS))
    taken = dict(seconds)
    return [(int(count), taken.get(step, 0.0)) for step, count in engines]


def test_engines_join_with_a_node_and_leave_with_it(tmp_path: Path, nodes: Cluster) -> None:
    run = chaos.Run(tmp_path / "run", [
        *chaos.prepare(tmp_path), f"algorithm.iterations={ITERATIONS}",
        "algorithm.evaluate_every=0", "run.checkpoint.every_steps=50",
        f"cluster.address={nodes.address}", "cluster.cpus_per_node=2",
        "cluster.roles.rollout.cpus=1", "cluster.roles.rollout.max_workers=2",
        "rollout.transport=gloo", "run.supervision.probe_seconds=3",
    ])  # fmt: skip

    def engines() -> list[int]:
        return [count for count, _ in generation(run.folder)[-3:]]

    assert run.wait_for(lambda: len(engines()) == 3)
    assert engines() == [1, 1, 1]
    extra = nodes.add_node(num_cpus=1, object_store_memory=_STORE)
    assert run.wait_for(lambda: engines() == [2, 2, 2])
    nodes.remove_node(extra, allow_graceful=False)
    assert run.wait_for(lambda: engines() == [1, 1, 1])
    nodes.add_node(num_cpus=1, object_store_memory=_STORE)
    assert run.wait_for(lambda: engines() == [2, 2, 2])
    assert run.end() == 0
    summary = json.loads((run.folder / "summary.json").read_text())
    sequences = ITERATIONS * 16
    assert summary["ledger"] == {"generated": sequences, "trained": sequences, "dropped": 0}
    losses = (run.folder / "losses.jsonl").read_text().splitlines()
    assert [json.loads(line)["lost"] for line in losses] == [["rollout rank 1"]]
    seconds = defaultdict[int, list[float]](list)
    for count, each in generation(run.folder):
        seconds[count].append(each)
    print({n: (len(s), statistics.median(s)) for n, s in seconds.items()})  # noqa: T201
