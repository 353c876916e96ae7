"""Joining a head that asks for a token and one that does not; the settings that Ray then reads."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from ray._raylet import AuthenticationTokenLoader, Config, get_authentication_mode

from orchestrator.cluster.authentication import Authentication, find_access
from orchestrator.cluster.joining import find_address
from orchestrator.cluster.tokens import Token
from orchestrator.config.cluster import Auth
from workers.errors import ClusterTokenError

NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class Head(grpc.GenericRpcHandler):
    """Answers the first call of a client of Ray, as gcs_server 2.60 does."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.sent: list[str] = []

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if call.method != "/ray.rpc.NodeInfoGcsService/GetClusterId":
            return None
        sent = dict(call.invocation_metadata).get("authorization", "")
        self.sent.append(str(sent))

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if self.token and sent != f"Bearer {self.token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b"id"

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def heads() -> Iterator[tuple[tuple[Head, str], tuple[Head, str]]]:
    """Two heads with their addresses; the first asks for the token "right"."""
    made: list[tuple[Head, str]] = []
    servers: list[grpc.Server] = []
    for token in ("right", ""):
        head = Head(token)
        server = grpc.server(ThreadPoolExecutor(1), handlers=(head,))
        made.append((head, f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"))
        server.start()
        servers.append(server)
    yield made[0], made[1]
    for server in servers:
        server.stop(None).wait(10)


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def test_only_the_right_token_joins(heads) -> None:
    (head, address), _ = heads
    right = {"RAY_AUTH_TOKEN": "right"}
    assert find_access(Auth.auto, address, right) == Token("right", "RAY_AUTH_TOKEN")
    with pytest.raises(ClusterTokenError, match="refuses the token in RAY_AUTH_TOKEN"):
        find_access(Auth.auto, address, {"RAY_AUTH_TOKEN": "wrong"})
    with pytest.raises(ClusterTokenError, match="none is here"):
        find_access(Auth.auto, address, {})
    assert head.sent == ["", "Bearer right", "", "Bearer wrong", ""]


def test_a_cluster_without_authentication_gets_no_token(heads) -> None:
    _, (head, address) = heads
    assert find_access(Auth.auto, address, {}) is None
    with pytest.raises(ClusterTokenError, match="has no authentication"):
        find_access(Auth.auto, address, {"RAY_AUTH_TOKEN": "right"})
    assert head.sent == ["", ""]


def test_what_is_no_head_of_ray_is_refused_at_once() -> None:
    with pytest.raises(ConnectionError, match="UNAVAILABLE"):
        find_access(Auth.auto, "127.0.0.1:1", {})
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            line, _ = listening.accept()
            line.sendall(b"HTTP/1.0 400 what?\r\n\r\n")
            line.close()

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(ConnectionError, match="UNAVAILABLE"):
            find_access(Auth.auto, f"127.0.0.1:{listening.getsockname()[1]}", {})
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(ConnectionError, match="UNIMPLEMENTED"):
        find_access(Auth.auto, f"127.0.0.1:{port}", {})
    server.stop(None).wait(10)


def test_ray_reads_the_settings_of_the_cluster_that_is_joined(
    heads, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, asking), (_, open_to_all) = heads
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    first = Authentication()
    first.join(Auth.auto, asking)
    assert get_authentication_mode() == 1  # token
    assert AuthenticationTokenLoader.instance().get_raw_token() == "right"
    first.restore()
    assert [os.environ.get(name) for name in NAMES] == [None, "right", None]
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    second = Authentication()
    second.join(Auth.auto, open_to_all)
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert get_authentication_mode() == 0
    second.restore()
    assert "RAY_AUTH_MODE" not in os.environ


def test_a_cluster_of_our_own_has_a_token_that_nobody_else_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the user")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    settings = Authentication()
    settings.own(Auth.auto, tmp_path / "token")
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    loader = AuthenticationTokenLoader.instance()
    assert loader.get_raw_token() == (tmp_path / "token").read_text()
    assert get_authentication_mode() == 1
    settings.restore()
    assert [os.environ.get(name) for name in NAMES] == ["disabled", "of the user", None]
    settings.own(Auth.disabled, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert get_authentication_mode() == 0


@pytest.mark.parametrize(
    ("address", "variable", "where"),
    [
        ("auto", "http://127.0.0.1:8265", "RAY_ADDRESS=http"),
        ("ray://127.0.0.1:10001", "", "cluster.address=ray:"),
        ("head", "", "cluster.address=head"),
        ("head:", "", "cluster.address=head:"),
        (":6379", "", "cluster.address=:6379"),
        ("head:99999", "", "cluster.address=head:99999"),
        ("head:²", "", "cluster.address=head:²"),
    ],
)
def test_what_is_no_address_is_named(
    monkeypatch: pytest.MonkeyPatch, address: str, variable: str, where: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", variable)
    with pytest.raises(ConnectionError) as caught:
        find_address(address)
    assert str(caught.value).startswith(where)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert find_address("auto") == "10.0.0.1:6379"
    assert find_address("[::1]:7000") == "[::1]:7000"
