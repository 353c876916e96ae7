"""A reward server that misbehaves in every way: each is a recorded failure with its reason."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing import composed

from orchestrator.config.schema import Config
from orchestrator.planning.checks.scoring import check_reward
from orchestrator.planning.worker_specs import reward_spec
from orchestrator.preflight.dry_run import CHECKS
from workers.data.rows.asked import Asked
from workers.data.rows.examples import Message
from workers.errors import RehearsalError
from workers.scorers.http_calls import seconds_of
from workers.scorers.source import Batch, Scored, make_scorer, scores_of
from workers.user_functions.reward_function import Exchange

Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]
K = "reward.settings."


class Recorder(ThreadingHTTPServer):
    """Answers with a function, and keeps what it was asked."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.heads: list[dict[str, str]] = []
        self.times: list[float] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/score"


class _Handler(BaseHTTPRequestHandler):
    server: Recorder

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        self.server.heads.append({name.lower(): text for name, text in self.headers.items()})
        self.server.times.append(time.monotonic())
        with suppress(BrokenPipeError, ConnectionResetError):
            self.server.answer(self, body)

    def log_message(self, *_: Any) -> None: ...


def send(handler: BaseHTTPRequestHandler, body: Any, status: int = 200, **head: str) -> None:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in head.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("content-length", str(len(text)))
    handler.end_headers()
    handler.wfile.write(text)


def lengths(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    send(handler, {"scores": [len(each) for each in body["responses"]]})


@contextmanager
def serving(answer: Answer) -> Iterator[Recorder]:
    server = Recorder(answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def config(url: str, *overrides: str) -> Config:
    quick = (f"{K}retries=1", f"{K}backoff_seconds=0.01")
    return composed("+experiment=pocket_tiny", "reward.kind=remote", f"{K}url={url}", *quick,
                    *overrides)  # fmt: skip


def score(run: Config, responses: list[str]) -> Scored:
    spec = reward_spec(run, "", "policy")
    scorer, _ = make_scorer(spec, spec.terms[0])
    texts = [
        Exchange(Asked(n, "ask", "<s>ask", json.dumps({"answer": n})), response, finished=n != 1)
        for n, response in enumerate(responses)
    ]
    batch = Batch(responses, texts)  # type: ignore[arg-type]
    return scores_of(scorer, batch, "remote")


def test_scores_come_back_in_order_from_several_requests() -> None:
    with serving(lengths) as server:
        found = score(config(server.url, f"{K}batch=3"), ["a" * n for n in range(10)])
    np.testing.assert_array_equal(found.values, np.arange(10, dtype=np.float32))
    assert not any(found.reasons)
    assert sorted(len(body["responses"]) for body in server.bodies) == [1, 3, 3, 3]


def test_the_body_of_the_plain_protocol() -> None:
    with serving(lengths) as server:
        run = config(server.url, f"{K}columns=[answer]", "data.keep_columns=[answer]")
        score(run, ["x", "yz"])
    assert server.bodies == [
        {
            "prompts": ["ask", "ask"],
            "responses": ["x", "yz"],
            "messages": [None, None],
            "finished": [True, False],
            "rows": [{"answer": 0}, {"answer": 1}],
        }
    ]
    assert "authorization" not in server.heads[0]


def test_the_protocol_of_openrlhf() -> None:
    def rewards(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        found = [float(len(each)) for each in body["query"]]
        send(handler, {"rewards": found, "scores": found, "extra_logs": {"a": found}})

    with serving(rewards) as server:
        given = (f"{K}protocol=openrlhf", f"{K}label=answer", "data.keep_columns=[answer]")
        found = score(config(server.url, *given), ["x", "yz"])
    assert found.values.tolist() == [7.0, 8.0]
    assert server.bodies == [
        {"query": ["<s>askx", "<s>askyz"], "prompts": ["<s>ask"] * 2, "labels": [0, 1]}
    ]


def test_a_dialogue_is_sent_as_text_and_as_messages() -> None:
    talk = (Message("system", "Be brief."), Message("user", "Hi"))
    with serving(lengths) as server:
        run = config(server.url)
        spec = reward_spec(run, "", "policy")
        scorer, _ = make_scorer(spec, spec.terms[0])
        scorer(Batch([0], [Exchange(Asked(0, talk, "r"), "x", True)]))  # type: ignore[arg-type]
    assert server.bodies[0]["prompts"] == ["System:\nBe brief.\n\nUser:\nHi"]
    assert server.bodies[0]["messages"][0][0] == {"role": "system", "content": "Be brief."}


def _hang(handler: BaseHTTPRequestHandler, body: Any) -> None:
    time.sleep(3)


def _drip(handler: BaseHTTPRequestHandler, body: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(60):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def _huge(handler: BaseHTTPRequestHandler, body: Any) -> None:
    send(handler, b'{"scores": [' + b"1," * (5 << 20) + b"1]}")


def _hang_up(handler: BaseHTTPRequestHandler, body: Any) -> None:
    handler.connection.close()


def _sends(body: Any, status: int = 200, **head: str) -> Answer:
    return lambda handler, _: send(handler, body, status, **head)


FAULTS: dict[str, tuple[Answer, str, int]] = {
    # what the server does: its function, the reason, requests that it got for two sequences
    "hang": (_hang, "no answer within 0.5 s", 2),
    "slow drip": (_drip, "no answer within 0.5 s", 2),
    "500": (_sends({}, 500), "HTTP 500", 6),  # then each sequence alone
    "502": (_sends({}, 502), "HTTP 502", 2),
    "429": (_sends({}, 429, retry_after="0"), "HTTP 429", 2),
    "429 for an hour": (
        _sends({}, 429, retry_after="3600"), "the server asks to wait beyond the deadline", 1,
    ),
    "401": (_sends({}, 401), "HTTP 401", 1),
    "404": (_sends({}, 404), "HTTP 404", 1),
    "redirect": (_sends({}, 307, location="http://127.0.0.1:9/"), "HTTP 307, a redirect", 1),
    "204": (_sends({}, 204), "HTTP 204", 1),
    "10 MB": (_huge, "the answer is longer than 4 MiB", 1),
    "no JSON": (_sends(b"oops"), "the answer is no JSON", 1),
    "deep JSON": (_sends(b"[" * 100_000), "the answer is no JSON", 1),
    "another type": (_sends([1, 2]), "the answer holds no list 'scores'", 1),
    "no list": (_sends({"scores": 3}), "the answer holds no list 'scores'", 1),
    "short list": (_sends({"scores": [1]}), "the answer has another number of scores", 1),
    "long list": (_sends({"scores": [1] * 3}), "the answer has another number of scores", 1),
    "text": (_sends({"scores": ["1", "2"]}), "a score is no number", 1),
    "null": (_sends({"scores": [None, None]}), "a score is no number", 1),
    "booleans": (_sends({"scores": [True, False]}), "a score is no number", 1),
    "NaN": (_sends({"scores": [math.nan, math.inf]}), "a score is not finite", 1),
    "beyond float32": (_sends({"scores": [1e39, -1e300]}), "a score is not finite", 1),
    "closed connection": (_hang_up, "no connection (RemoteProtocolError)", 2),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_a_failure_with_its_reason_and_never_a_score(fault: str) -> None:
    answer, reason, requests = FAULTS[fault]
    with serving(answer) as server:
        patience = [f"{K}request_seconds=0.5"] if "0.5 s" in reason else []
        found = score(config(server.url, *patience), ["a", "b"])
    assert list(found.reasons) == [f"remote reward: {reason}"] * 2
    assert np.isnan(found.values).all()
    assert len(server.bodies) == requests


def test_a_refused_connection() -> None:
    with serving(lengths) as server:
        url = server.url
    found = score(config(url), ["a"])
    assert list(found.reasons) == ["remote reward: no connection (ConnectError)"]


def test_one_bad_sequence_fails_alone() -> None:
    def picky(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        bad = "bad" in body["responses"]
        send(
            handler, {} if bad else {"scores": [1.0] * len(body["responses"])}, 422 if bad else 200
        )

    with serving(picky) as server:
        found = score(config(server.url), ["a", "bad", "c"])
    assert list(found.reasons) == ["", "remote reward: HTTP 422", ""]
    assert found.values[[0, 2]].tolist() == [1.0, 1.0]


def test_an_error_for_one_sequence_and_scores_as_objects() -> None:
    given = {"scores": [{"score": 0.5}, {"error": "too long"}, 2]}
    with serving(_sends(given)) as server:
        found = score(config(server.url), ["a", "b", "c"])
    assert list(found.reasons) == ["", "remote reward: the server refuses the sequence", ""]
    assert found.words[1] == "too long"
    assert found.values[[0, 2]].tolist() == [0.5, 2.0]


def test_a_request_is_repeated_after_the_time_that_the_server_names() -> None:
    times = iter(range(9))

    def busy(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if next(times) == 0:
            send(handler, {}, 429, retry_after="0.4")
        else:
            lengths(handler, body)

    with serving(busy) as server:
        found = score(config(server.url), ["abc"])
    assert found.values.tolist() == [3.0]
    assert server.times[1] - server.times[0] >= 0.4


def test_the_deadline_ends_a_call_and_keeps_what_has_come() -> None:
    def slow(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if body["responses"] == ["slow"]:
            time.sleep(30)
        lengths(handler, body)

    with serving(slow) as server:
        given = (f"{K}batch=1", f"{K}request_seconds=60", f"{K}deadline_seconds=6")
        found = score(config(server.url, *given), ["abc", "slow"])
    assert found.values[0] == 3.0
    assert found.reasons[1] == "remote reward: no answer within 6 s in all"


def test_requests_run_at_the_same_time_up_to_the_limit() -> None:
    running, most, lock = [0], [0], threading.Lock()

    def counted(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.1)
        with lock:
            running[0] -= 1
        lengths(handler, body)

    with serving(counted) as server:
        score(config(server.url, f"{K}batch=1", f"{K}concurrency=3"), ["a"] * 12)
    assert most == [3]


def test_a_key_is_sent_and_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def told(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        send(handler, {"error": f"not {handler.headers['authorization']}"}, 403)

    monkeypatch.setenv("SCORE_KEY", "s3cret-value")
    with serving(told) as server:
        run = config(server.url, f"{K}key_variable=SCORE_KEY")
        spec = reward_spec(run, "", "policy")
        found = score(run, ["a"])
    assert server.heads[0]["authorization"] == "Bearer s3cret-value"
    assert "***" in found.words[0]
    for said in (*found.words, *found.reasons, repr(spec), repr(run), caplog.text):
        assert "s3cret-value" not in said
    monkeypatch.delenv("SCORE_KEY")
    with pytest.raises(RehearsalError, match="SCORE_KEY"):
        list(CHECKS["reward"](run, None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "where", "said"),
    [
        (["reward.kind=remote"], f"{K}url", "is not set"),
        (["reward.kind=remote", f"{K}url=ftp://a/b"], f"{K}url", "no plain http"),
        (["reward.kind=remote", f"{K}url=http://u:pw@a/b"], f"{K}url", "no plain http"),
        (["reward.kind=remote", f"{K}url=http://a/b?key=1"], f"{K}url", "no plain http"),
        (["reward.kind=remote", f"{K}url=http://a/b", f"{K}batch=0"], f"{K}batch", "batch=0"),
        (["reward.kind=remote", f"{K}url=http://a/b", f"{K}retries=-1"], f"{K}retries", "-1"),
        (
            ["reward.kind=remote", f"{K}url=http://a", f"{K}protocol=grpc"],
            f"{K}protocol",
            "Literal",
        ),
        (["reward.kind=remote", f"{K}url=http://a", f"{K}label=x"], f"{K}label", "openrlhf"),
        (["reward.kind=remote", f"{K}url=http://a", f"{K}columns=[x]"], "data.keep_columns", "'x'"),
        (
            ["reward.kind=remote", f"{K}url=http://a", f"{K}deadline_seconds=9000"],
            f"{K}deadline_seconds",
            "per batch",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_the_plan(overrides: list[str], where: str, said: str) -> None:
    with pytest.raises(RehearsalError, match=said) as caught:
        check_reward(composed("+experiment=pocket_tiny", *overrides))
    assert caught.value.where == where
    assert "pw@" not in str(caught.value)


def test_calls_overlap_only_where_a_source_waits() -> None:
    assert reward_spec(config("http://a/b"), "", "p").overlaps
    assert not reward_spec(composed("+experiment=pocket_tiny"), "m", "p").overlaps


@pytest.mark.parametrize(
    ("after", "date", "seconds"),
    [("3", "", 3.0), ("-1", "", 0.0), ("nan", "", 0.0), ("soon", "", 0.0),
     ("Wed, 21 Oct 2015 07:28:10 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", 10.0)],
)  # fmt: skip
def test_when_to_ask_again(after: str, date: str, seconds: float) -> None:
    assert seconds_of(after, date) == seconds
