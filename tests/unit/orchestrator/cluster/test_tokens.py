"""Which token joins a cluster, and what is said of each one that cannot."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from orchestrator.cluster.tokens import Token, choose_token, find_token, write_token, wrong_token
from orchestrator.config.cluster import Auth
from workers.errors import ClusterTokenError

HEAD = "10.0.0.1:6379"
DEFAULT = ".ray/auth_token"


def kept(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def chosen(environ: dict[str, str], *, asks: bool = True, auth: Auth = Auth.auto) -> Token | None:
    return choose_token(auth, HEAD, asks=asks, environ=environ)


def refused(environ: dict[str, str], *, asks: bool = True, auth: Auth = Auth.auto) -> str:
    with pytest.raises(ClusterTokenError) as caught:
        chosen(environ, asks=asks, auth=auth)
    assert caught.value.fix
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_variable_comes_before_the_named_file_and_that_before_the_home(tmp_path: Path) -> None:
    kept(tmp_path / DEFAULT, "of-home\n")
    named = kept(tmp_path / "named", " of-file \n")
    environ = {
        "HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": str(named), "RAY_AUTH_TOKEN": " given\n"
    }  # fmt: skip
    assert find_token(environ) == Token("given", "RAY_AUTH_TOKEN")
    environ["RAY_AUTH_TOKEN"] = ""
    assert find_token(environ) == Token("of-file", str(named))
    environ["RAY_AUTH_TOKEN_PATH"] = ""
    assert find_token(environ) == Token("of-home", str(tmp_path / DEFAULT))
    (tmp_path / DEFAULT).unlink()
    assert find_token(environ) is None
    assert find_token({}) is None


def test_a_token_is_never_shown() -> None:
    token = Token("secret-word", "RAY_AUTH_TOKEN")
    assert "secret-word" not in f"{token} {token!r} {wrong_token(HEAD, token)}"
    assert "10.0.0.1:6379 refuses the token in RAY_AUTH_TOKEN" in str(wrong_token(HEAD, token))


def test_no_token_for_a_cluster_that_asks_for_one(tmp_path: Path) -> None:
    text = refused({"HOME": str(tmp_path)})
    assert "asks for a token, and none is here" in text
    assert str(tmp_path / DEFAULT) in text
    assert "RAY_AUTH_TOKEN_PATH" in text.partition("fix:")[2]
    assert "HOME does not exist" in refused({})


@pytest.mark.parametrize(
    ("mode", "read"), [(0o600, True), (0o400, True), (0o640, False), (0o604, False)]
)
def test_a_file_that_others_may_read_holds_no_secret(tmp_path: Path, mode: int, read: bool) -> None:
    named = kept(tmp_path / "named", "word", mode)
    environ = {"RAY_AUTH_TOKEN_PATH": str(named)}
    if read:
        assert chosen(environ) == Token("word", str(named))
        return
    text = refused(environ)
    assert f"has mode {mode:o}: other users may read it" in text
    assert f"chmod 600 {named}" in text


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "is empty"), (" \n", "is empty"), ("two words", "one word"), ("ä", "one word")],
)
def test_what_is_no_token_is_named_with_its_place(tmp_path: Path, text: str, why: str) -> None:
    named = kept(tmp_path / "named", text)
    told = refused({"RAY_AUTH_TOKEN_PATH": str(named)})
    assert why in told
    assert f"RAY_AUTH_TOKEN_PATH={named}" in told
    if text:
        assert why in refused({"RAY_AUTH_TOKEN": text})


def test_files_that_cannot_be_read_are_told_apart(tmp_path: Path) -> None:
    environ = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "named")}
    assert "cannot be read: No such file" in refused(environ)
    (tmp_path / "named").mkdir(mode=0o700)
    assert "is not a file" in refused(environ)
    (tmp_path / "named").rmdir()
    (tmp_path / "named").symlink_to("named")
    assert "cannot be read: Too many levels" in refused(environ)
    (tmp_path / "named").unlink()
    kept(tmp_path / "named", "").write_bytes(b"\xff\xfe")
    assert "is not text" in refused(environ)


@pytest.mark.skipif(os.getuid() == 0, reason="root reads every file")
def test_a_file_of_another_user_is_not_read(tmp_path: Path) -> None:
    named = kept(tmp_path / "named", "word", 0o000)
    assert "cannot be read: Permission denied" in refused({"RAY_AUTH_TOKEN_PATH": str(named)})


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_leftover_file_turns_nothing_on(tmp_path: Path, mode: int) -> None:
    kept(tmp_path / DEFAULT, "leftover", mode)
    assert chosen({"HOME": str(tmp_path)}, asks=False) is None


@pytest.mark.parametrize(
    ("auth", "environ", "why"),
    [
        (Auth.auto, {"RAY_AUTH_TOKEN": "word"}, "although RAY_AUTH_TOKEN is set"),
        (Auth.auto, {"RAY_AUTH_TOKEN_PATH": "/f"}, "although RAY_AUTH_TOKEN_PATH is set"),
        (Auth.auto, {"RAY_AUTH_MODE": "Token"}, "although RAY_AUTH_MODE=token"),
        (Auth.token, {}, "although cluster.auth=token"),
    ],
)
def test_who_asked_for_authentication_does_not_join_without(
    auth: Auth, environ: dict[str, str], why: str
) -> None:
    text = refused(environ, asks=False, auth=auth)
    assert "has no authentication" in text
    assert why in text
    assert "cluster.auth=disabled" in text.partition("fix:")[2]
    assert chosen(environ, asks=False, auth=Auth.disabled) is None


def test_disabled_sends_no_token() -> None:
    text = refused({"RAY_AUTH_TOKEN": "word"}, auth=Auth.disabled)
    assert "cluster.auth=disabled sends none" in text


def test_a_new_token_is_private_and_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0)
    try:
        paths = [tmp_path / "a", tmp_path / "b"]
        for path in paths:
            write_token(path)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o600, 0o600]
    words = {path.read_text() for path in paths}
    assert [len(word) for word in words] == [64, 64]
    with pytest.raises(FileExistsError):
        write_token(paths[0])
