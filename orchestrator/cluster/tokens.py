"""Tokens of Ray clusters: which one is here, and whether it may be used. Imports no Ray."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.config.cluster import Auth
from workers.errors import ClusterTokenError

# Ray's own names, in the order in which it reads them.
MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_OTHERS = 0o077  # permissions of group and others
_GIVE = (
    "copy the token of the cluster's head (`ray get-auth-token` prints it) into a file of mode 600 "
    f"and set {TOKEN_PATH} to that file"
)


@dataclass(frozen=True, slots=True)
class Token:
    """A token, and where it was found."""

    text: str = field(repr=False)
    source: str

    def __str__(self) -> str:
        return f"the token in {self.source}"


def find_token(environ: Mapping[str, str]) -> Token | None:
    """The token that Ray would use, or None if there is none.

    Args:
        environ: Environment variables. RAY_AUTH_TOKEN comes before RAY_AUTH_TOKEN_PATH, and both
            before the file in HOME; empty variables count as unset (as in Ray 2.60).

    Raises:
        ClusterTokenError: the token or its file is missing, unreadable, empty, or other users may
            read it.
    """
    if given := environ.get(TOKEN):
        return Token(_word(given, TOKEN), TOKEN)
    if named := environ.get(TOKEN_PATH):
        return Token(_read(Path(named), f"{TOKEN_PATH}={named}"), named)
    at_home = _home_file(environ)
    if at_home is None or not os.path.lexists(at_home):
        return None
    return Token(_read(at_home, str(at_home)), str(at_home))


def _home_file(environ: Mapping[str, str]) -> Path | None:
    home = environ.get("HOME")
    return Path(home) / ".ray" / "auth_token" if home else None


def choose_token(
    auth: Auth, address: str, *, asks: bool, environ: Mapping[str, str]
) -> Token | None:
    """The token with which to join the cluster at `address`, or None to join without one.

    A cluster without authentication is joined without a token, unless the user asked for
    authentication. A file in the home directory, which earlier runs of Ray may have left, is no
    such request.

    Args:
        auth: `cluster.auth`.
        address: HOST:PORT of the cluster, for messages.
        asks: Whether the cluster refuses clients without a token.
        environ: Environment variables.

    Raises:
        ClusterTokenError: the token is missing or unusable, or the cluster has no authentication
            although one was asked for, or the other way round.
    """
    if not asks:
        _check_open(auth, address, environ)
        return None
    if auth is Auth.disabled:
        raise ClusterTokenError(
            f"the cluster at {address} asks for a token, and cluster.auth=disabled sends none",
            where="cluster.auth",
            fix="use cluster.auth=auto",
        )
    token = find_token(environ)
    if token is None:
        raise ClusterTokenError(
            f"the cluster at {address} asks for a token, and none is here: {TOKEN} and "
            f"{TOKEN_PATH} are not set, and {_home_file(environ) or 'HOME'} does not exist",
            where="cluster.address",
            fix=_GIVE,
        )
    return token


def wrong_token(address: str, token: Token) -> ClusterTokenError:
    """The error for a token that the cluster at `address` refuses."""
    return ClusterTokenError(
        f"the cluster at {address} refuses {token}: it has another one",
        where=token.source,
        fix=_GIVE,
    )


def write_token(path: Path) -> None:
    """Write a new token to `path`, a new file of mode 600."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))  # 256 bits


def _check_open(auth: Auth, address: str, environ: Mapping[str, str]) -> None:
    """Refuse a cluster without authentication if the user asked for authentication."""
    asked = next(
        (
            words
            for words, holds in (
                ("cluster.auth=token", auth is Auth.token),
                (f"{TOKEN} is set", bool(environ.get(TOKEN))),
                (f"{TOKEN_PATH} is set", bool(environ.get(TOKEN_PATH))),
                (f"{MODE}=token", environ.get(MODE, "").lower() == "token"),
            )
            if holds
        ),
        "",
    )
    if asked and auth is not Auth.disabled:
        raise ClusterTokenError(
            f"the cluster at {address} has no authentication, although {asked}",
            where="cluster.address",
            fix=f"start every node of it with {MODE}=token and the same token, or use "
            "cluster.auth=disabled to join it as it is: all who reach it can run code on it",
        )


def _read(path: Path, where: str) -> str:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise _unusable(where, "is not a file", _GIVE)
        if found.st_mode & _OTHERS:
            mode = stat.S_IMODE(found.st_mode)
            raise _unusable(
                where,
                f"has mode {mode:03o}: other users may read it",
                f"chmod 600 {path}; if others use this machine, give the cluster a new token",
            )
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _unusable(where, "is not text", _GIVE) from error
    except OSError as error:
        raise _unusable(where, f"cannot be read: {error.strerror}", _GIVE) from error
    return _word(text, where)


def _word(text: str, where: str) -> str:
    words = text.split()
    if not words:
        raise _unusable(where, "is empty", _GIVE)
    if len(words) > 1 or not words[0].isascii() or not words[0].isprintable():
        raise _unusable(where, "is not one word of printable ASCII characters", _GIVE)
    return words[0]


def _unusable(where: str, why: str, fix: str) -> ClusterTokenError:
    return ClusterTokenError(f"the token for the Ray cluster {why}", where=where, fix=fix)
