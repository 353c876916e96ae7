"""Who may do what: links, cookies, forged requests, and what a browser may load."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.label.records import Labeler
from orchestrator.label.store import Store

COOKIE = "rehearsal_label"
_MOST_BODY = 256 * 1024  # bytes; a form of 9 answers has some thousands
_MOST_FIELDS = 200
_FORM = "application/x-www-form-urlencoded"
# Nothing inline and nothing from elsewhere: text of a model that got into the page as markup would
# neither run nor load anything.
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer, forms would be sent with Origin: null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Checks every request before it is routed, and adds the headers to every response.

    The name in `Host` must be ours: otherwise a page of another site, whose name it lets point to
    this address, could read ours. A request that changes something must come from our own pages.

    Args:
        app: What answers.
        hosts: Accepted values of `Host`.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refused = self._refusal(scope["method"], Headers(scope=scope))
        await (refused or self._app)(scope, receive, with_headers)

    def _refusal(self, method: str, headers: Headers) -> PlainTextResponse | None:
        host = headers.get("host", "").lower()
        if host not in self._hosts:
            return PlainTextResponse("this address is not served here\n", 421)
        if method in ("GET", "HEAD"):
            return None
        if method != "POST":
            return PlainTextResponse("only GET and POST\n", 405)
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site", "same-origin")
        foreign = urlsplit(origin).netloc.lower() != host if origin is not None else False
        if foreign or site not in ("same-origin", "none"):
            return PlainTextResponse("sent from another site\n", 403)
        return None


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form that the holder of the cookie sent from one of our pages.

    Raises:
        HTTPException: it is too long, no form, or without the proof that our page made it.
    """
    form = await read_form(request)
    token = request.cookies.get(COOKIE, "")
    if not hmac.compare_digest(form.get("proof", "").encode(), proof(token).encode()):
        raise HTTPException(403, "This form is not from a page of yours. Load the page again.")
    return form


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form; of a repeated field the last.

    Raises:
        HTTPException: it is too long, or no form.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != _FORM:
        raise HTTPException(415, "This is not a form.")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BODY:
            raise HTTPException(413, "The form is too long.")
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError as error:
        raise HTTPException(400, "This is not a form.") from error
    return dict(pairs)


def proof(token: str) -> str:
    """What forms of the holder of a token carry: other sites cannot know it."""
    return hashlib.sha256(f"form {token}".encode()).hexdigest()


def person(request: Request, store: Store) -> Labeler:
    """Who sent the request.

    Raises:
        HTTPException: nobody with a valid link.
    """
    token = request.cookies.get(COOKIE, "")
    found = store.labeler(token) if token else None
    if found is None:
        raise HTTPException(403, "Open the link that you were given.")
    return found


def reviewer(request: Request, store: Store) -> Labeler:
    """Who sent the request, if that is a reviewer.

    Raises:
        HTTPException: somebody else.
    """
    found = person(request, store)
    if found.role != "reviewer":
        raise HTTPException(403, "This page is for reviewers.")
    return found


def remember(response: Any, token: str, *, secure: bool) -> None:
    """Put the token into a cookie that scripts cannot read and other sites cannot use."""
    response.set_cookie(
        COOKIE, token, max_age=90 * 86_400, httponly=True, samesite="strict", secure=secure
    )
