"""Messages between a worker and the process of a user's function.

Each is its length followed by JSON, which is exact for float64, can hold every Python string and,
unlike a pickle, is safe to read. Messages from the user's process are validated.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from typing import Any

from workers.user_functions.answers import Outcome, Reply

LENGTH = struct.Struct(">Q")


def framed(message: object) -> bytes:
    """The bytes of a message: its length, then the JSON."""
    body = json.dumps(message).encode("ascii")
    return LENGTH.pack(len(body)) + body


def receive(peer: socket.socket) -> Any:
    """Wait for the next message; None when the other side has closed."""
    head = _exactly(peer, LENGTH.size)
    body = head and _exactly(peer, *LENGTH.unpack(head))
    return json.loads(body) if body else None


def _exactly(peer: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        part = peer.recv(min(size - len(got), 1 << 20))
        if not part:
            return b""
        got += part
    return bytes(got)


def pack(outcome: Outcome) -> object:
    """An outcome as a JSON-serializable object."""
    if isinstance(outcome, Reply):
        return {"all": _fields(outcome)}
    return {"each": [_fields(reply) for reply in outcome]}


def _fields(reply: Reply) -> list[object]:
    rest = [reply.text] if reply.text else reply.steps
    return [reply.value, reply.reason, reply.words, *rest]


def unpack(message: Any, count: int) -> Outcome | None:
    """The outcome that `pack` packed; None for anything else, such as another reply count."""
    if not isinstance(message, dict):
        return None
    if "all" in message:
        reply = _reply(message["all"])
        return reply if reply is not None and reply.reason else None
    each = message.get("each")
    replies = [_reply(fields) for fields in each] if isinstance(each, list) else []
    known = [reply for reply in replies if reply is not None]
    return known if len(known) == len(replies) == count else None


def _reply(fields: Any) -> Reply | None:
    match fields:
        case [float(value), "", str(words), str(text)] if math.isfinite(value):
            return Reply(value, words=words, text=text)
        case [float(value), str(reason), str(words), *steps]:
            # a number or a reason, never both
            fits = math.isfinite(value) != bool(reason) and not (steps and reason)
            known = all(isinstance(each, float) and math.isfinite(each) for each in steps)
            return Reply(value, reason, words, steps=tuple(steps)) if fits and known else None
        case _:
            return None
