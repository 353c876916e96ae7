"""What is served, with which settings, and what a chat sends."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from family_models import build_family

from orchestrator import chat, serve
from orchestrator.chat import Endpoint, dialogue
from orchestrator.chat import main as talk
from workers.errors import RoleError


def options(folder: Path, *more: str) -> argparse.Namespace:
    return serve._parser().parse_args([str(folder), *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_family("qwen3", tmp_path_factory.mktemp("made") / "ppo_ptx")


def test_a_folder_is_served_on_this_machine_alone_in_its_own_precision(folder: Path) -> None:
    service = serve.plan(options(folder))
    assert (service.host, service.port, service.name) == ("127.0.0.1", 8000, "ppo_ptx")
    assert (service.dtype, service.context) == ("float32", 64)
    line = serve.command(service)
    for name, value in (
        ("--host", "127.0.0.1"), ("--dtype", "float32"), ("--served-model-name", "ppo_ptx"),
        ("--max-model-len", "64"), ("--model", str(folder.resolve())),
    ):  # fmt: skip
        assert line[line.index(name) + 1] == value
    assert "--no-enable-chunked-prefill" in line, "seeds of requests crash with it on a CPU"


def test_what_is_asked_for_wins_and_the_rest_goes_to_vllm(folder: Path) -> None:
    asked = options(folder, "--port", "9", "--dtype", "bfloat16", "--name", "x", "--context", "32")
    service = serve.plan(asked, ("--max-num-seqs", "3"))
    line = serve.command(service)
    assert line[-2:] == ["--max-num-seqs", "3"]
    assert (service.port, service.dtype, service.name, service.context) == (9, "bfloat16", "x", 32)


def test_a_gpu_gets_none_of_the_processors_settings(folder: Path) -> None:
    service = serve.plan(options(folder))
    gpu = serve.Service(**{f: getattr(service, f) for f in service.__slots__} | {"cpu": False})
    assert "--enforce-eager" not in serve.command(gpu)
    assert "TORCHDYNAMO_DISABLE" not in serve.environment(gpu)
    assert serve.environment(service)["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


@pytest.mark.parametrize(
    ("make", "more", "told"),
    [
        (lambda f: f / "nowhere", (), "is not there"),
        (lambda f: f, ("--port", "0"), "0 is no port"),
        (lambda f: f, ("--port", "99999"), "99999 is no port"),
        (lambda f: f, ("--dtype", "int3"), "no number format 'int3'"),
    ],
)
def test_what_cannot_be_served_is_told_before_vllm_starts(
    folder: Path, make: Any, more: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve.main([str(make(folder)), *more]) in (2, 4)
    assert told in capsys.readouterr().err


def test_a_reward_model_is_not_served_as_text(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["Qwen3ForTokenClassification"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert serve.main([str(tmp_path)]) == 2
    assert "a number, not" in capsys.readouterr().err


class Server:
    """Answers every chat with how many messages it was sent, and keeps what it was sent."""

    def __init__(self, status: int = 200, body: Any = None) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._status, self._body = status, body

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "ppo"}, {"id": "sft"}]})
        assert request.url.path == "/v1/chat/completions"
        self.bodies.append(json.loads(request.content))
        if self._body is not None:
            return httpx.Response(self._status, content=self._body)
        content = f"reply {len(self.bodies[-1]['messages'])}"
        return httpx.Response(200, json={"choices": [{"message": {"content": content}}]})

    def client(self) -> httpx.Client:
        return httpx.Client(base_url="http://x", transport=httpx.MockTransport(self))


def test_a_dialogue_goes_on_until_an_empty_line() -> None:
    server = Server()
    endpoint = Endpoint(server.client(), "", {"temperature": 0.5})
    replies = list(dialogue(["hi\n", "so?\n", "\n", "new\n"], endpoint, "be brief"))
    assert replies == ["reply 2", "reply 4", "reply 2"]
    assert [m["content"] for m in server.bodies[1]["messages"]] == [
        "be brief", "hi", "reply 2", "so?",
    ]  # fmt: skip
    assert [m["role"] for m in server.bodies[1]["messages"]] == [
        "system", "user", "assistant", "user",
    ]  # fmt: skip
    assert server.bodies[2]["messages"][1]["content"] == "new"
    assert all((b["model"], b["temperature"]) == ("ppo", 0.5) for b in server.bodies)


def test_a_reply_that_ended_at_its_limit_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choices = iter(({"finish_reason": "length"}, {"finish_reason": "stop"}, {}))

    def serve(request: httpx.Request) -> httpx.Response:
        choice = {"message": {"content": "so"}} | next(choices)
        return httpx.Response(200, json={"choices": [choice]})

    client = httpx.Client(base_url="http://x", transport=httpx.MockTransport(serve))
    monkeypatch.setattr("orchestrator.chat.httpx.Client", lambda *_, **__: client)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\nthree\n"))
    assert talk(["--model", "sft"]) == 0
    said = capsys.readouterr()
    assert said.out == "so\nso\nso\n"  # a pipe gets replies alone
    assert said.err == "(cut at the limit of tokens: --max-tokens N sets another)\n"


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (400, b'{"error": {"message": "no chat template"}}', "status 400: no chat template"),
        (404, b'{"detail": "Not Found"}', "status 404"),
        (500, b"<html>", "no JSON"),
        (200, b'{"choices": []}', "no chat completion"),
        (200, b"[]", "no chat completion"),
        (200, b"[" * 100_000, "no JSON"),
        (200, b" " * ((4 << 20) + 1), "longer than 4 MiB"),
    ],
)
def test_a_server_that_refuses_is_quoted(status: int, body: bytes, told: str) -> None:
    endpoint = Endpoint(Server(status, body).client(), "ppo", {})
    with pytest.raises(RoleError, match=told):
        endpoint.reply([{"role": "user", "content": "hi"}])


def test_a_server_that_is_not_there_is_an_error_of_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    assert chat.main(["--url", "http://127.0.0.1:9"]) == RoleError.exit_code
    assert "it does not answer" in capsys.readouterr().err
    assert chat.main(["--url", "http://[::1"]) == 2
