"""What a run learns of the nodes of a cluster before it plans, and how long it waits for them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from ray.core.generated import gcs_pb2, gcs_service_pb2
from test_authentication import NAMES, Head

from orchestrator.cluster import reported_nodes as module
from orchestrator.cluster.reported_nodes import reported_nodes
from orchestrator.config.cluster import ClusterConfig
from workers.errors import ClusterTokenError, ResourceError

ALIVE, DEAD = 0, 1


class Knowing(Head):
    """A head that also tells of its nodes; one more joins before each answer from the second on."""

    def __init__(self, token: str) -> None:
        super().__init__(token)
        self.nodes: list[tuple[int, dict[str, float]]] = []
        self.coming: list[dict[str, float]] = []
        self.asked = 0

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if call.method != "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo":
            return super().service(call)
        sent = dict(call.invocation_metadata).get("authorization", "")

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            if self.token and sent != f"Bearer {self.token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            if self.asked and self.coming:
                self.nodes.append((ALIVE, self.coming.pop(0)))
            self.asked += 1
            infos = [gcs_pb2.GcsNodeInfo(state=state, resources_total=resources)  # type: ignore[attr-defined]
                     for state, resources in self.nodes]  # fmt: skip
            return gcs_service_pb2.GetAllNodeInfoReply(node_info_list=infos)  # type: ignore[attr-defined]

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=gcs_service_pb2.GetAllNodeInfoRequest.FromString,  # type: ignore[attr-defined]
            response_serializer=gcs_service_pb2.GetAllNodeInfoReply.SerializeToString,  # type: ignore[attr-defined]
        )


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Knowing, str]]:
    """A head that asks for the token that is here, and its address; waiting takes no time."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    made = Knowing("right")
    server = grpc.server(ThreadPoolExecutor(1), handlers=(made,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield made, f"127.0.0.1:{port}"
    server.stop(None).wait(10)


def asked(address: str, nodes: int | None, seconds: float = 0.0) -> tuple[str, list[str]]:
    notes: list[str] = []
    config = ClusterConfig(address=address, nodes=nodes, cpus_per_node=None, gpus_per_node=None)
    return reported_nodes(config, seconds, notes.append), notes


def test_nodes_that_live_and_have_anything_are_told(head: tuple[Knowing, str]) -> None:
    made, address = head
    made.nodes = [
        (ALIVE, {"memory": 1e9, "node:10.0.0.1": 1.0}),  # a head that is kept free
        (ALIVE, {"CPU": 4.0, "memory": 1e9}),
        (DEAD, {"CPU": 96.0, "GPU": 8.0}),
        (ALIVE, {"CPU": 64.0, "GPU": 2.0, "accelerator_type:H200": 1.0}),
    ]
    assert asked(address, None) == ("64x2+4x0", [])


def test_nodes_that_come_up_are_waited_for_and_the_user_is_told_once(
    head: tuple[Knowing, str],
) -> None:
    made, address = head
    made.nodes = [(ALIVE, {"CPU": 2.0})]
    made.coming = [{"CPU": 3.0}, {"CPU": 4.0}]
    found, notes = asked(address, 3, 60.0)
    assert found == "4x0+3x0+2x0"
    assert notes == ["1 of 3 node(s) have joined: waiting up to 60 s"]
    assert made.asked == 3


def test_a_cluster_that_has_only_its_head_yet_is_waited_for(head: tuple[Knowing, str]) -> None:
    made, address = head
    made.nodes, made.coming = [(ALIVE, {"memory": 1e9})], [{"CPU": 8.0, "GPU": 1.0}]
    assert asked(address, None, 60.0)[0] == "8x1"


def test_nodes_that_do_not_come_are_counted(head: tuple[Knowing, str]) -> None:
    made, address = head
    made.nodes = [(ALIVE, {"CPU": 2.0})]
    with pytest.raises(ResourceError, match=r"1 of 2 node\(s\) with CPUs have joined") as caught:
        asked(address, 2, 7.0)
    assert made.asked == 8  # at 0, 1, ... 7 s
    assert caught.value.where == "cluster.nodes"
    assert "run.role_start_seconds" in caught.value.fix
    assert "cluster.cpus_per_node=N" in caught.value.fix


def test_a_wrong_token_is_refused_by_its_cause(
    head: tuple[Knowing, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with pytest.raises(ClusterTokenError, match="refuses the token in RAY_AUTH_TOKEN"):
        asked(head[1], None)
    assert not head[0].asked


def test_without_a_cluster_numbers_are_asked_for() -> None:
    with pytest.raises(ResourceError, match="no Ray cluster answers at") as caught:
        asked("127.0.0.1:1", None)
    assert caught.value.fix.endswith(
        "a plan without a cluster needs numbers: cluster.nodes=N cluster.cpus_per_node=N "
        "cluster.gpus_per_node=N"
    )
