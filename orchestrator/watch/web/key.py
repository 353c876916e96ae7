"""A key in the link, for servers that other machines can reach."""

from __future__ import annotations

import hmac

from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "rehearsal_watch"
_DAYS = 30 * 86_400


class Key:
    """Lets in who has the key: once in the address, from then on in a cookie.

    Args:
        app: What answers.
        key: The secret; "" lets everyone in.
        secure: Whether the pages are reached by https.
    """

    def __init__(self, app: ASGIApp, key: str, *, secure: bool) -> None:
        self._app, self._key, self._secure = app, key, secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        answer = self._answer(HTTPConnection(scope)) if scope["type"] == "http" else None
        await (answer or self._app)(scope, receive, send)

    def _answer(self, asked: HTTPConnection) -> Response | None:
        if not self._key or self._fits(asked.cookies.get(COOKIE, "")):
            return None
        if not self._fits(asked.query_params.get("key", "")):
            return PlainTextResponse("open the link that the server printed\n", 403)
        response = RedirectResponse("/", 303)
        response.set_cookie(
            COOKIE, self._key, max_age=_DAYS, httponly=True, samesite="lax", secure=self._secure
        )
        return response

    def _fits(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._key.encode())
