"""Who may do what: links, cookies and forged requests."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request

from orchestrator.label.records import Labeler
from orchestrator.label.store import Store

COOKIE = "rehearsal_label"
_MOST_BODY = 256 * 1024  # bytes; a form of 9 answers has some thousands
_MOST_FIELDS = 200
_FORM = "application/x-www-form-urlencoded"


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
