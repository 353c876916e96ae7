"""Placement: hand layouts, and properties that hold for every layout."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.cluster import (
    ClusterConfig,
    Placement,
    RoleName,
    RoleResources,
    RolesConfig,
)
from orchestrator.planning.placement import Layout, NodeSize, Place, place_roles, usable_nodes
from workers.errors import ConfigError, ResourceError

ROLLOUT, POLICY, CRITIC = RoleName.rollout, RoleName.policy, RoleName.critic


def cluster(placement: Placement, nodes: int, gpus: int, **workers: int) -> ClusterConfig:
    roles = {name: RoleResources(workers=n, cpus=1, gpus=1) for name, n in workers.items()}
    return ClusterConfig(
        address="auto", nodes=nodes, cpus_per_node=16, gpus_per_node=gpus, placement=placement,
        roles=RolesConfig(**roles),
    )  # fmt: skip


def roles_on(layout: Layout) -> list[dict[str, int]]:
    out: list[dict[str, int]] = []
    for node in layout.nodes:
        counts: dict[str, int] = {}
        for place in node.places:
            counts[place.role.value] = counts.get(place.role.value, 0) + 1
        out.append(counts)
    return out


def test_packed_fills_nodes_in_order():
    config = cluster(Placement.packed, 3, 4, rollout=3, policy=2, critic=2)
    layout = place_roles(config, [ROLLOUT, POLICY, CRITIC])
    assert roles_on(layout) == [{"rollout": 3, "policy": 1}, {"policy": 1, "critic": 2}]
    assert [(node.cpus, node.gpus) for node in layout.nodes] == [(4, 4), (3, 3)]


def test_apart_gives_groups_nodes_of_their_own():
    config = cluster(Placement.apart, 4, 4, rollout=6, policy=2, critic=2)
    layout = place_roles(config, [ROLLOUT, POLICY, CRITIC])
    assert roles_on(layout) == [{"rollout": 4}, {"rollout": 2}, {"policy": 2}, {"critic": 2}]


def test_apart_shares_when_nodes_run_out():
    config = cluster(Placement.apart, 2, 4, rollout=2, policy=2, critic=2)
    layout = place_roles(config, [ROLLOUT, POLICY, CRITIC])
    assert sorted(sum(counts.values()) for counts in roles_on(layout)) == [2, 4]


def test_fractions_of_a_gpu_add_up_to_one():
    roles = RolesConfig(**{role.value: RoleResources(cpus=0.1, gpus=0.2) for role in RoleName})
    config = ClusterConfig(address="auto", gpus_per_node=1, cpus_per_node=0.5, roles=roles)
    layout = place_roles(config, {*RoleName} - {RoleName.environment})
    assert [(node.cpus, node.gpus) for node in layout.nodes] == [(0.5, 1.0)]


@pytest.mark.parametrize(
    ("typed", "used"),
    [
        ((None, None, None), [(96, 8), (64, 8), (32, 4), (8.5, 0)]),
        ((2, None, None), [(96, 8), (64, 8)]),
        ((9, None, None), [(96, 8), (64, 8), (32, 4), (8.5, 0)]),
        ((None, 48, None), [(48, 8), (48, 8), (32, 4), (8.5, 0)]),
        ((3, None, 6), [(96, 6), (64, 6), (32, 4)]),
        ((1, 200, 1), [(96, 1)]),
    ],
)
def test_numbers_are_limits_of_the_nodes_that_are_there(
    typed: tuple[int | None, float | None, int | None], used: list[tuple[float, int]]
):
    nodes, cpus, gpus = typed
    config = ClusterConfig(address="auto", nodes=nodes, cpus_per_node=cpus, gpus_per_node=gpus)
    config.sizes = "0x0+8.5x0+64x8+96x8+32x4"
    config.check("cluster")
    assert usable_nodes(config) == [NodeSize(*each) for each in used]


def test_nodes_of_different_sizes_hold_what_fits_each():
    config = cluster(Placement.packed, 9, 99, rollout=4, policy=5)
    config.nodes = config.gpus_per_node = config.cpus_per_node = None
    config.roles.policy.cpus = 10
    config.sizes = "6x4+0x0+50x5"
    layout = place_roles(config, [ROLLOUT, POLICY])
    assert roles_on(layout) == [{"policy": 5}, {"rollout": 4}]
    assert [(node.cpus, node.gpus) for node in layout.nodes] == [(50, 5), (4, 4)]
    config.sizes = "5x4+6x4+6x4"
    with pytest.raises(ResourceError, match=r"the cluster has 2 x \(6 CPUs, 4 GPUs\), 1 x \(5 C"):
        place_roles(config, [POLICY])
    config.sizes = "0x0"
    with pytest.raises(ResourceError, match="the cluster has no node"):
        place_roles(config, [POLICY])


@pytest.mark.parametrize("key", ["nodes", "cpus_per_node", "gpus_per_node"])
def test_a_number_that_is_to_be_read_needs_a_cluster(key: str):
    config = ClusterConfig(address="auto")
    setattr(config, key, None)
    config.check("cluster")
    with pytest.raises(ConfigError, match=f"{key}=null is read from the cluster") as caught:
        place_roles(config, [POLICY])
    assert "cluster.nodes=N cluster.cpus_per_node=N cluster.gpus_per_node=N" in caught.value.fix
    config.address = "local"
    with pytest.raises(ConfigError, match=f"{key}=null is for a cluster that is joined") as caught:
        config.check("cluster")
    assert caught.value.where == f"cluster.{key}"


@pytest.mark.parametrize(
    "sizes", ["64", "64x", "x8", "64x8+", "64x8,8x0", "64x8;8x0", "1e3x1", "2x1.5"]
)
def test_sizes_that_cannot_be_read_are_refused(sizes: str):
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        ClusterConfig(address="auto", sizes=sizes).check("cluster")
    assert caught.value.where == "cluster.sizes"
    with pytest.raises(ConfigError, match="sizes=64x8 is for a cluster that is joined"):
        ClusterConfig(sizes="64x8").check("cluster")


def shared(nodes: int, gpus: int, **workers: tuple[int, float]) -> ClusterConfig:
    roles = {n: RoleResources(workers=w, cpus=1, gpus=g) for n, (w, g) in workers.items()}
    return ClusterConfig(
        address="auto", nodes=nodes, cpus_per_node=64, gpus_per_node=gpus,
        roles=RolesConfig(**roles),
    )  # fmt: skip


def bundles_of(layout: Layout) -> list[tuple[int, float, list[tuple[str, int]]]]:
    return [
        (node, share.gpus, [(place.role.value, place.rank) for place in share.places])
        for node, share in layout.bundles
    ]


def test_rank_i_of_every_role_is_on_gpu_i():
    config = shared(2, 2, rollout=(4, 0.5), policy=(4, 0.25), critic=(4, 0.25))
    layout = place_roles(config, [ROLLOUT, POLICY, CRITIC])
    assert bundles_of(layout) == [
        (rank // 2, 1.0, [("rollout", rank), ("policy", rank), ("critic", rank)])
        for rank in range(4)
    ]
    assert [layout.bundle_of(CRITIC, rank) for rank in range(4)] == [0, 1, 2, 3]
    assert [layout.node_of(CRITIC, rank) for rank in range(4)] == [0, 0, 1, 1]


def test_whole_gpus_and_workers_without_any_are_one_bundle_beside_the_shared_ones():
    config = shared(1, 4, rollout=(2, 1), policy=(2, 0.4), critic=(2, 0.4), reward=(1, 0))
    layout = place_roles(config, [ROLLOUT, POLICY, CRITIC, RoleName.reward])
    assert bundles_of(layout) == [
        (0, 0.8, [("policy", 0), ("critic", 0)]),
        (0, 0.8, [("policy", 1), ("critic", 1)]),
        (0, 2.0, [("rollout", 0), ("rollout", 1), ("reward", 0)]),
    ]
    assert [(n.cpus, n.gpus, n.taken) for n in layout.nodes] == [(7, 3.6, 4)]


def test_a_node_with_one_shared_gpu_stays_one_bundle():
    layout = place_roles(shared(1, 2, rollout=(1, 1), policy=(1, 0.5)), [ROLLOUT, POLICY])
    assert bundles_of(layout) == [(0, 1.5, [("rollout", 0), ("policy", 0)])]


def test_ranks_of_one_process_group_never_share_a_gpu():
    with pytest.raises(ResourceError, match="3 ranks of the policy on 2 GPU") as caught:
        place_roles(shared(1, 2, policy=(3, 0.2)), [POLICY])
    assert caught.value.where == "cluster.roles.policy.workers"
    with pytest.raises(ResourceError, match="2 ranks of the critic on 1 GPU"):
        place_roles(shared(1, 1, critic=(2, 0.5)), [CRITIC])


def test_independent_workers_share_a_gpu_once_each_has_one():
    layout = place_roles(shared(1, 2, rollout=(3, 0.3)), [ROLLOUT])
    assert bundles_of(layout) == [
        (0, 0.6, [("rollout", 0), ("rollout", 2)]),
        (0, 0.3, [("rollout", 1)]),
    ]


def test_workers_with_whole_gpus_find_them_before_others_share_the_rest():
    config = shared(1, 4, policy=(2, 0.9), reference=(1, 1))  # 1.8 GPUs of 2 workers, and 1
    layout = place_roles(config, [POLICY, RoleName.reference])
    assert sorted(gpus for _, gpus, _ in bundles_of(layout)) == [0.9, 0.9, 1.0]


def test_local_cpu_figures_are_shares_but_gpus_are_not():
    roles = RolesConfig(policy=RoleResources(workers=64, cpus=1))
    assert place_roles(ClusterConfig(cpus_per_node=2, roles=roles), [POLICY]).cpus == 64
    with pytest.raises(ResourceError):
        place_roles(ClusterConfig(address="auto", cpus_per_node=2, roles=roles), [POLICY])
    with pytest.raises(ResourceError, match="0 GPUs"):
        place_roles(cluster(Placement.packed, 1, 0, policy=1), [POLICY])


def test_an_unplaced_worker_is_a_key_error():
    layout = place_roles(ClusterConfig(), [POLICY])
    assert layout.node_of(POLICY, 0) == 0
    with pytest.raises(KeyError):
        layout.node_of(POLICY, 1)


@settings(deadline=None, max_examples=60)
@given(
    placement=st.sampled_from(Placement),
    nodes=st.integers(1, 5),
    gpus=st.integers(1, 8),
    counts=st.lists(st.integers(1, 9), min_size=6, max_size=6),
)
def test_every_worker_once_and_no_node_overfull(
    placement: Placement, nodes: int, gpus: int, counts: list[int]
):
    names = [role.value for role in RoleName]
    config = cluster(placement, nodes, gpus, **dict(zip(names, counts, strict=True)))
    if sum(counts) > nodes * min(gpus, 16):
        with pytest.raises(ResourceError):
            place_roles(config, RoleName)
        return
    layout = place_roles(config, RoleName)
    places = [place for node in layout.nodes for place in node.places]
    assert sorted((p.role.value, p.rank) for p in places) == sorted(
        (name, rank) for name, n in zip(names, counts, strict=True) for rank in range(n)
    )
    assert all(node.gpus <= gpus and len(node.places) == node.gpus for node in layout.nodes)
    assert math.isclose(layout.gpus, sum(counts))
    assert all(
        Place(role, rank) in layout.nodes[layout.node_of(role, rank)].places
        for role in RoleName
        for rank in range(config.roles.of(role).workers)
    )
