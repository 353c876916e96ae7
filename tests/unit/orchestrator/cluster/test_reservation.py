"""What a run reserves on a cluster, and how long it waits for nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestrator.cluster import reservation
from orchestrator.config.cluster import ClusterConfig, RoleName, RoleResources, RolesConfig
from orchestrator.planning.placement import Layout, place_roles
from workers.errors import DeadlineError, ResourceError


def test_bundles_of_several_nodes_are_pinned_to_the_nodes_that_ray_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Group:
        def wait(self, timeout_seconds: float) -> bool:
            return True

    made: list[tuple[str, list[dict[str, float]], Any]] = []
    events: list[str] = []

    def group(
        bundles: list[dict[str, float]], strategy: str, name: str, bundle_label_selector: Any
    ) -> Group:
        made.append((strategy, bundles, bundle_label_selector))
        events.append(strategy)
        return Group()

    monkeypatch.setattr(reservation, "placement_group", group)
    monkeypatch.setattr(
        reservation, "placement_group_table", lambda _: {"bundles_to_node_id": {0: "b", 1: "a"}}
    )
    monkeypatch.setattr(reservation, "remove_placement_group", lambda _: events.append("removed"))
    half = RoleResources(workers=4, cpus=1, gpus=0.5)
    config = ClusterConfig(
        address="auto", nodes=2, gpus_per_node=2, cpus_per_node=8,
        roles=RolesConfig(policy=half, critic=half),
    )  # fmt: skip
    guard: Any = None
    monkeypatch.setattr(reservation, "_alive", lambda: [{"CPU": 8.0, "GPU": 2.0}] * 2)
    layout = place_roles(config, [RoleName.policy, RoleName.critic])
    reservation.reserve(config, layout, 5.0, guard)
    both = {"CPU": 2.0, "GPU": 1.0}
    assert made == [
        ("STRICT_SPREAD", [{"CPU": 4.0, "GPU": 2.0}] * 2, None),
        ("PACK", [both] * 4, [{"ray.io/node-id": node} for node in "bbaa"]),
    ]
    assert events == ["STRICT_SPREAD", "removed", "PACK"]


@dataclass
class Arriving:
    """A cluster whose second node joins after some seconds, or never."""

    joins: float = float("inf")
    now: float = 0.0
    nodes: list[dict[str, float]] = field(
        default_factory=lambda: [{"memory": 1e9}, {"CPU": 4.0}]  # a head without CPUs, and a node
    )

    def alive(self) -> list[dict[str, float]]:
        return [*self.nodes, {"CPU": 4.0}] if self.now >= self.joins else self.nodes

    def wait(self, timeout_seconds: float) -> bool:
        self.now += timeout_seconds
        return self.now >= self.joins

    def check(self) -> None:
        pass


@pytest.fixture
def arriving(monkeypatch: pytest.MonkeyPatch) -> Arriving:
    cluster = Arriving()
    monkeypatch.setattr(reservation, "_alive", cluster.alive)
    monkeypatch.setattr(reservation, "placement_group", lambda *_, **__: cluster)
    monkeypatch.setattr(reservation, "remove_placement_group", lambda _: None)
    monkeypatch.setattr(reservation.time, "monotonic", lambda: cluster.now)
    return cluster


def two_nodes(cpus: float = 3) -> tuple[ClusterConfig, Layout]:
    policy = RoleResources(workers=2, cpus=cpus)
    config = ClusterConfig(
        address="auto", nodes=2, cpus_per_node=cpus, roles=RolesConfig(policy=policy)
    )
    return config, place_roles(config, [RoleName.policy])


def test_nodes_that_come_up_meanwhile_are_waited_for(arriving: Arriving) -> None:
    arriving.joins, notes = 20.0, list[str]()
    found = reservation.reserve(*two_nodes(), 60.0, arriving, notes.append)  # type: ignore[arg-type]
    assert found is arriving
    assert arriving.now == 20.0
    assert notes == ["1 of 2 node(s) have joined: waiting up to 60 s for the rest"]


def test_nodes_that_never_come_are_counted_in_the_error(arriving: Arriving) -> None:
    with pytest.raises(ResourceError) as caught:
        reservation.reserve(*two_nodes(), 60.0, arriving)  # type: ignore[arg-type]
    assert arriving.now == 60.0
    assert "takes (3 CPUs, 0 GPUs), (3 CPUs, 0 GPUs)" in caught.value.what
    assert "has (4 CPUs, 0 GPUs), (0 CPUs, 0 GPUs)" in caught.value.what


def test_nodes_that_are_too_small_are_refused_at_once(arriving: Arriving) -> None:
    arriving.joins = 0.0
    with pytest.raises(ResourceError, match=r"has \(4 CPUs, 0 GPUs\), \(4 CPUs, 0 GPUs\)"):
        reservation.reserve(*two_nodes(cpus=6), 60.0, arriving)  # type: ignore[arg-type]
    assert arriving.now == 0.0


def test_resources_that_others_hold_have_a_deadline(
    arriving: Arriving,
) -> None:
    arriving.nodes = [{"CPU": 4.0}, {"CPU": 4.0}]
    with pytest.raises(DeadlineError, match="did not free 6 CPUs and 0 GPUs in 2 bundle"):
        reservation.reserve(*two_nodes(), 60.0, arriving)  # type: ignore[arg-type]
    assert arriving.now == 60.0


def test_numbers_above_what_nodes_have_are_said_where_the_plan_fits(arriving: Arriving) -> None:
    arriving.nodes, arriving.joins, notes = [{"CPU": 4.0}, {"CPU": 8.0}, {"memory": 1e9}], 0.0, []
    config, layout = two_nodes(cpus=3)
    config.cpus_per_node = 6
    reservation.reserve(config, layout, 60.0, arriving, notes.append)  # type: ignore[arg-type]
    assert notes == [
        "cluster.cpus_per_node=6 is more than a node has (4), and the plan fits all the same; "
        "null reads it from the cluster"
    ]
    config.cpus_per_node = 4
    reservation.reserve(config, layout, 60.0, arriving, notes.append)  # type: ignore[arg-type]
    assert len(notes) == 1
