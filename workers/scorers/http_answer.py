"""HTTP requests whose answers are read up to a size limit: a server may send without end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass
from typing import Any

import httpx

MOST_BYTES = 4 << 20  # limit of an answer, decompressed


class TooLongError(httpx.HTTPError):
    """A server sent more than `MOST_BYTES`."""

    def __init__(self) -> None:
        super().__init__(f"the answer is longer than {MOST_BYTES >> 20} MiB")


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer."""

    status: int
    retry_after: str  # header; "" = none
    date: str  # header: the time of the server's clock; "" = none
    body: bytes

    def json(self) -> Any:
        """The body parsed as JSON.

        Raises:
            ValueError: It is not JSON, or nests too deeply for Python's parser.
        """
        try:
            return json.loads(self.body)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error


def content_of(answer: Answer) -> str | None:
    """The text of a chat completion; None if the answer is not one."""
    try:
        content = answer.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return None
    return content if isinstance(content, str) else None


def ask(client: httpx.Client, method: str, path: str, body: Any = None) -> Answer:
    """Send a request and read its answer.

    Raises:
        TooLongError: The answer is longer than `MOST_BYTES`.
        httpx.HTTPError: There is no answer.
    """
    with client.stream(method, path, json=body) as response:
        return _answer(response, _joined(response.iter_bytes()))


async def post(client: httpx.AsyncClient, url: str, body: Any) -> Answer:
    """Post JSON and read the answer. Raises the errors of `ask`."""
    async with client.stream("POST", url, json=body) as response:
        return _answer(response, await _gathered(response.aiter_bytes()))


def _answer(response: httpx.Response, body: bytes) -> Answer:
    head = response.headers
    return Answer(response.status_code, head.get("retry-after", ""), head.get("date", ""), body)


def _joined(parts: Iterable[bytes]) -> bytes:
    body = bytearray()
    for part in parts:
        _extend(body, part)
    return bytes(body)


async def _gathered(parts: AsyncIterable[bytes]) -> bytes:
    body = bytearray()
    async for part in parts:
        _extend(body, part)
    return bytes(body)


def _extend(body: bytearray, part: bytes) -> None:
    body += part
    if len(body) > MOST_BYTES:
        raise TooLongError
