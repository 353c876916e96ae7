"""Checks of the plan and of a joined cluster judge what the Ray process answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from composing import composed

from orchestrator.doctor import checks, cluster
from orchestrator.doctor.children import Absent
from orchestrator.doctor.findings import State
from orchestrator.doctor.subject import Subject, make_subject
from workers.errors import ResourceError, RoleError

Subjects = Callable[..., Subject]
JOINED = ("+experiment=pocket", "cluster.address=head:6379")
LATER = (
    cluster.check_nodes,
    cluster.check_node_packages,
    cluster.check_clocks,
    cluster.check_shared_folder,
)


def looked(node: str, **changed: Any) -> dict[str, Any]:
    usual = {"node": node, "packages": {"ray": "2.60.0"}, "wrote": "", "seen": True, "offset": 0.1}
    return usual | changed


def answers(*nodes: dict[str, Any], **changed: Any) -> dict[str, Any]:
    usual = {
        "join": {"address": "head:6379", "nodes": 2, "packages": {"ray": "2.60.0"}},
        "nodes": [[4.0, 0.0], [8.0, 0.0]],
        "looks": list(nodes) or [looked("a"), looked("b")],
    }
    return usual | changed


def test_a_good_cluster_passes(subject: Subjects) -> None:
    good = subject(*JOINED, ray=answers())
    found = [check(good) for check in (cluster.check_ray, *LATER)]
    assert {each.state for each in found} == {State.ok}


def test_a_local_run_joins_no_cluster(subject: Subjects) -> None:
    here = subject("+experiment=pocket")
    assert {check(here).state for check in (cluster.check_ray, *LATER)} == {State.skip}


def test_a_cluster_that_does_not_answer_fails_one_check(subject: Subjects) -> None:
    gone = subject(*JOINED, ray={"join": ResourceError("no Ray cluster answers")})
    with pytest.raises(ResourceError, match="answers"):
        cluster.check_ray(gone)
    assert {check(gone).state for check in LATER} == {State.skip}


def test_nodes_that_are_too_small_fail(subject: Subjects) -> None:
    small = subject(*JOINED, ray=answers(nodes=ResourceError("the plan takes more")))
    with pytest.raises(ResourceError, match="takes more"):
        cluster.check_nodes(small)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"error": "No module named 'orchestrator'"}, "node b cannot run this code: No module"),
        ({"packages": {"ray": "2.59.0"}}, "ray is 2.60.0 on this machine and 2.59.0 on b"),
        ({"packages": {}}, "ray is 2.60.0 on this machine and none on b"),
    ],
)
def test_a_node_with_another_installation_fails(
    subject: Subjects, changed: dict[str, Any], words: str
) -> None:
    found = cluster.check_node_packages(
        subject(*JOINED, ray=answers(looked("a"), looked("b", **changed)))
    )
    assert found.state is State.fail
    assert words in found.what


@pytest.mark.parametrize(("offset", "state"), [(-7.5, State.warn), (1.9, State.ok)])
def test_a_clock_that_is_off_warns(subject: Subjects, offset: float, state: State) -> None:
    found = cluster.check_clocks(
        subject(*JOINED, ray=answers(looked("a"), looked("b", offset=offset)))
    )
    assert found.state is state
    assert ("node b is -7.5 s" in found.what) == (state is State.warn)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"wrote": "Read-only file system"}, "node b cannot write in run.dir: Read-only"),
        ({"seen": False}, "a file of node b in run.dir is not seen here"),
    ],
)
def test_a_run_folder_that_is_not_shared_fails(
    subject: Subjects, changed: dict[str, Any], words: str
) -> None:
    found = cluster.check_shared_folder(
        subject(*JOINED, ray=answers(looked("a"), looked("b", **changed)))
    )
    assert found.state is State.fail
    assert words in found.what


def test_a_run_without_a_plan_fails_by_its_error(subject: Subjects) -> None:
    assert cluster.check_plan(subject()).state is State.skip
    assert cluster.check_plan(subject("+experiment=pocket")).state is State.ok
    found = cluster.check_plan(subject("+experiment=ppo"))
    assert found.state is State.fail
    assert "needs the checkpoint" in found.what


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ("2x0", "pocket: 1.25 CPUs and 0 GPUs on 1 node(s)"),
        ("1x0", "the cluster has 1 x (1 CPUs, 0 GPUs)"),
        ("", "no Ray cluster answers"),
    ],
)
def test_a_plan_is_judged_by_the_nodes_that_the_cluster_reports(sizes: str, words: str) -> None:
    def ask(_: object) -> str:
        if not sizes:
            raise ResourceError("no Ray cluster answers", fix="start one")
        return sizes

    config = composed("+experiment=pocket", "cluster=cpu_nodes", "cluster.nodes=1")
    found = cluster.check_plan(make_subject(config, Absent(), Absent(), Absent(), ask))
    assert words in found.what
    assert found.fix == ("start one" if not sizes else found.fix)


def test_an_engine_that_does_not_start_is_the_finding(subject: Subjects) -> None:
    good = subject(engine={"generate": {"tokens": 4, "seconds": 9.5}})
    assert checks.check_engine(good).what == "vLLM sampled 4 tokens, in 9.5 s"
    with pytest.raises(RoleError, match="no kernel"):
        checks.check_engine(subject(engine={"generate": RoleError("no kernel")}))
