"""Authentication of this process at Ray's servers: its settings, and whether a cluster accepts it.

Ray reads its settings from the environment, so all processes that it starts inherit them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import grpc
from ray import _raylet
from ray._common.tls_utils import load_certs_from_env
from ray.core.generated import gcs_pb2, gcs_service_pb2

from orchestrator.cluster.tokens import (
    MODE,
    TOKEN,
    TOKEN_PATH,
    Token,
    choose_token,
    write_token,
    wrong_token,
)
from orchestrator.config.cluster import Auth

_NAMES = (MODE, TOKEN, TOKEN_PATH)
_ASK_SECONDS = 10.0
# Ray's first call of every client; its request is empty.
_FIRST_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_NODES_CALL = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"


class Authentication:
    """Ray's settings in this process's environment; `restore` brings the earlier ones back."""

    def __init__(self) -> None:
        self._before = {name: os.environ.get(name) for name in _NAMES}

    def own(self, auth: Auth, file: Path) -> None:
        """Settings for a cluster that this process starts, whose token is written to `file`."""
        if auth is Auth.disabled:
            _set({MODE: "disabled"})
            return
        write_token(file)
        _set({MODE: "token", TOKEN: None, TOKEN_PATH: str(file)})

    def join(self, auth: Auth, address: str) -> None:
        """Settings with which the cluster at HOST:PORT accepts this process.

        Raises:
            ClusterTokenError: it does not accept this process, or the token here is unusable.
            ConnectionError: no Ray cluster answers.
        """
        token = find_access(auth, address, os.environ)
        _set({MODE: "disabled" if token is None else "token"})

    def restore(self) -> None:
        """Bring back the settings that this process had before."""
        _set(self._before)


def find_access(auth: Auth, address: str, environ: Mapping[str, str]) -> Token | None:
    """The token that the cluster at `address` accepts, or None if it has no authentication.

    Args:
        auth: `cluster.auth`.
        address: HOST:PORT of the cluster.
        environ: Environment variables.

    Raises:
        ClusterTokenError: as `choose_token`, or the cluster refuses the token.
        ConnectionError: no Ray cluster answers.
    """
    token = choose_token(auth, address, asks=not _accepts(address), environ=environ)
    if token is not None and not _accepts(address, token.text):
        raise wrong_token(address, token)
    return token


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    compiled: Any = _raylet
    compiled.Config.initialize("")  # Ray keeps what it has read
    compiled.AuthenticationTokenLoader.instance().reset_cache()


def _accepts(address: str, token: str = "") -> bool:
    """Whether the head at HOST:PORT accepts a client with this token, or without one.

    Ray's own client would log every refusal to the terminal.
    """
    with _channel(address) as channel:
        ask = channel.unary_unary(_FIRST_CALL)
        call = ask.future(b"", timeout=_ASK_SECONDS, metadata=_bearer(token))
        code = call.code()  # waits for the answer
    if code is grpc.StatusCode.OK:
        return True
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return False
    raise ConnectionError(f"{code.name}: {call.details()}")


def _bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


def alive_nodes(address: str, token: Token | None) -> list[dict[str, float]]:
    """Resources of the nodes that are alive, by Ray's names, as the head at HOST:PORT knows them.

    Args:
        address: HOST:PORT of the head.
        token: What `find_access` found.

    Raises:
        ConnectionError: the head does not answer, or refuses.
    """
    sent = _bearer(token.text if token else "")
    messages: Any = gcs_service_pb2
    with _channel(address) as channel:
        ask = channel.unary_unary(
            _NODES_CALL, response_deserializer=messages.GetAllNodeInfoReply.FromString
        )
        call = ask.future(b"", timeout=_ASK_SECONDS, metadata=sent)
        if (code := call.code()) is not grpc.StatusCode.OK:  # waits for the answer
            raise ConnectionError(f"{code.name}: {call.details()}")
        nodes, states = call.result().node_info_list, cast("Any", gcs_pb2).GcsNodeInfo
        alive = [node for node in nodes if node.state == states.ALIVE]
        return [dict(node.resources_total) for node in alive]


def _channel(address: str) -> grpc.Channel:
    """A channel like those of Ray: no proxy, and TLS if RAY_USE_TLS is set."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return grpc.insecure_channel(address, options)
    chain, key, authority = load_certs_from_env()
    return grpc.secure_channel(
        address, grpc.ssl_channel_credentials(authority, key, chain), options
    )
