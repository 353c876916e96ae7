"""The judging endpoint against a server on this machine that answers well, badly, late or never."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.judge import Answer, Server, says

from workers.errors import ConfigError, DeadlineError, JudgeError
from workers.judging.interview import EndpointSpec
from workers.judging.judge_endpoint import AnswerPair, judge_pairs
from workers.scorers.http_calls import seconds_of
from workers.scorers.judge_cache import VerdictCache

KEY = "sk-secret-0123456789"


def texts(question: str) -> tuple[str, str, str]:
    """Prompt, first and second answer of a question that INSTRUCTION made."""
    prompt, first, second = question.split("|")
    return prompt, first, second


def prefers_longer(question: str) -> Answer:
    _, first, second = texts(question)
    order = (len(first) > len(second)) - (len(first) < len(second))
    return says("Because. [[" + {1: "A", -1: "B", 0: "C"}[order] + "]]")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    running = Server(prefers_longer)
    yield running
    running.close()


@pytest.fixture
def spec(server: Server) -> EndpointSpec:
    return EndpointSpec(
        url=server.url, model="judge-1", instruction="{prompt}|{first}|{second}",
        request='{"temperature": 0}', key=KEY, key_variable="JUDGE_KEY", concurrency=4,
        request_seconds=20.0, retries=3, backoff_seconds=0.01, deadline_seconds=60.0,
        failed_fraction=0.5,
    )  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[VerdictCache]:
    made = VerdictCache(tmp_path / "cache")
    yield made
    made.close()


PAIRS = [AnswerPair("q", "long answer", "no"), AnswerPair("q", "x", "longer"),
         AnswerPair("q", "ab", "cd")]  # fmt: skip


def test_both_orders_are_asked_and_a_verdict_names_the_same_answer_twice(
    server: Server, spec: EndpointSpec, cache: VerdictCache
) -> None:
    found = judge_pairs(spec, cache, PAIRS)
    assert found.outcomes == (1.0, 0.0, 0.5)
    assert (found.asked, found.cached, found.failed, found.order_dependent) == (6, 0, 0, 0)
    assert sorted(server.questions) == sorted(
        ["q|long answer|no", "q|no|long answer", "q|x|longer", "q|longer|x", "q|ab|cd", "q|cd|ab"]
    )
    assert server.keys == {f"Bearer {KEY}"}
    assert server.bodies[0]["model"] == "judge-1"
    assert server.bodies[0]["temperature"] == 0
    assert server.most_busy <= 4


def test_who_always_likes_the_first_answer_ties_everything(
    server: Server, spec: EndpointSpec, cache: VerdictCache
) -> None:
    server.answer = lambda _: says("[[A]]")
    found = judge_pairs(spec, cache, PAIRS)
    assert found.outcomes == (0.5, 0.5, 0.5)
    assert (found.order_dependent, found.failed) == (3, 0)


def test_a_rerun_asks_nothing_again(server: Server, spec: EndpointSpec, tmp_path: Path) -> None:
    for _ in range(2):
        cache = VerdictCache(tmp_path)
        found = judge_pairs(spec, cache, PAIRS)
        cache.close()
    assert len(server.questions) == 6
    assert (found.asked, found.cached) == (0, 6)
    assert found.outcomes == (1.0, 0.0, 0.5)
    text = (tmp_path / "verdicts.jsonl").read_text()
    assert KEY not in text
    assert "long answer" not in text
    # another address, model, instruction or request is another question
    cache = VerdictCache(tmp_path)
    for other in (
        replace(spec, url=server.url.replace("127.0.0.1", "localhost")),
        replace(spec, model="m"),
        replace(spec, instruction="?" + spec.instruction.replace("?", "")),
        replace(spec, request="{}"),
    ):
        assert judge_pairs(other, cache, PAIRS[:1]).asked == 2
    assert judge_pairs(replace(spec, url=server.url + "/"), cache, PAIRS[:1]).asked == 0
    cache.close()


def test_equal_answers_tie_unasked_and_repeated_pairs_are_asked_once(
    server: Server, spec: EndpointSpec, cache: VerdictCache
) -> None:
    pairs = [AnswerPair("q", "same", "same"), PAIRS[0], PAIRS[0], AnswerPair("q", "no", PAIRS[0].a)]
    found = judge_pairs(spec, cache, pairs)
    assert found.outcomes == (0.5, 1.0, 1.0, 0.0)
    assert len(server.questions) == 2


def test_texts_with_braces_stay_as_they_are(
    server: Server, spec: EndpointSpec, cache: VerdictCache
) -> None:
    judge_pairs(spec, cache, [AnswerPair("{first}", "{second} [[B]]", "{prompt}")])
    assert "{first}|{second} [[B]]|{prompt}" in server.questions


def failing_at_first(times: int, failure: Answer) -> Callable[[str], Answer]:
    """Every question fails so often before it is answered."""
    left: dict[str, int] = {}

    def answer(question: str) -> Answer:
        left.setdefault(question, times)
        left[question] -= 1
        return failure if left[question] >= 0 else prefers_longer(question)

    return answer


@pytest.mark.parametrize(
    "failure",
    [
        (500, {}, "oops"),
        (429, {"retry-after": "0"}, ""),
        (503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, ""),
        (200, {}, "{not json"),
        (200, {}, "[]"),
        (200, {}, '{"choices": []}'),
        (200, {"content-encoding": "gzip"}, "no gzip"),
    ],
)
def test_what_passes_is_tried_again(
    server: Server, spec: EndpointSpec, cache: VerdictCache, failure: Answer
) -> None:
    server.answer = failing_at_first(3, failure)
    assert judge_pairs(spec, cache, PAIRS).outcomes == (1.0, 0.0, 0.5)
    assert len(server.questions) == 6 * 4


def test_retry_after_holds_everybody_back(
    server: Server, spec: EndpointSpec, cache: VerdictCache
) -> None:
    server.answer = failing_at_first(1, (429, {"retry-after": "1"}, ""))
    began = time.monotonic()
    judge_pairs(replace(spec, concurrency=1), cache, PAIRS[:1])
    assert time.monotonic() - began >= 2.0  # at least: two questions, a second each


def test_a_date_to_wait_for_is_one_of_the_servers_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)  # ours stands in 1970
    at = "Wed, 21 Oct 2015 07:28:00 GMT"
    assert seconds_of("Wed, 21 Oct 2015 07:28:30 GMT", at) == 30.0
    assert seconds_of(at, "Wed, 21 Oct 2015 07:28:30 GMT") == 0.0
    assert seconds_of(at, "") == 0.0  # it does not say what time it has
    assert seconds_of("2.5", "") == 2.5


def test_a_wait_beyond_the_deadline_is_not_waited_for(
    server: Server, spec: EndpointSpec, cache: VerdictCache
) -> None:
    server.answer = lambda _: (429, {"retry-after": "86400"}, "")
    with pytest.raises(DeadlineError, match="asks to wait for '86400'") as caught:
        judge_pairs(spec, cache, PAIRS)
    assert str(cache.path) in caught.value.fix


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I cannot say.", "an answer without one"),
        ("[[A]] or [[B]]", "several verdicts"),
        ("[[D]]", "an answer without one"),
        (None, "no chat completion"),
    ],
)
def test_what_is_no_verdict_is_a_failure_and_never_a_tie(
    server: Server, spec: EndpointSpec, cache: VerdictCache, text: object, reason: str
) -> None:
    server.answer = lambda q: says(text) if "longer" in q else prefers_longer(q)
    found = judge_pairs(replace(spec, failed_fraction=0.7), cache, PAIRS)
    assert found.outcomes == (1.0, None, 0.5)
    assert (found.asked, found.failed, found.order_dependent) == (4, 1, 0)
    with pytest.raises(JudgeError, match=reason):
        judge_pairs(replace(spec, failed_fraction=0.0), cache, PAIRS)


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_without_end_is_read_no_further_than_a_limit(
    server: Server, spec: EndpointSpec, cache: VerdictCache, *, packed: bool
) -> None:
    text = says("[[A]]" + " " * (5 << 20))[2]
    if packed:  # 5 KiB on the wire
        headers = {"content-encoding": "gzip"}
        text = gzip.compress(text.encode()).decode("latin-1")
    else:
        headers = {"content-length": "1000000000000"}
    server.answer = lambda _: (200, headers, text)
    with pytest.raises(JudgeError, match="longer than 4 MiB"):
        judge_pairs(replace(spec, retries=0), cache, PAIRS)


def test_a_pair_both_of_whose_questions_fail_is_one_pair(
    server: Server, spec: EndpointSpec, cache: VerdictCache
) -> None:
    many = [AnswerPair(f"q{n}", "long answer", "no") for n in range(10)]
    server.answer = lambda q: prefers_longer(q) if q > "q2" else (400, {}, "")
    found = judge_pairs(replace(spec, failed_fraction=0.2), cache, many)  # 2 of 10 pairs
    assert found.failed == 2
    assert found.outcomes == (None, None, *[1.0] * 8)
    with pytest.raises(JudgeError, match="no verdict on 2 of 10 pairs"):
        judge_pairs(replace(spec, failed_fraction=0.19, concurrency=1), cache, many)


def test_after_too_many_failures_what_was_learnt_is_kept(
    server: Server, spec: EndpointSpec, tmp_path: Path
) -> None:
    many = [AnswerPair(f"q{n}", "long answer", "no") for n in range(40)]
    refused = (400, {}, json.dumps({"error": {"message": f"too long for {KEY}"}}))
    server.answer = lambda q: prefers_longer(q) if q < "q2" else refused
    one = replace(spec, concurrency=1)
    cache = VerdictCache(tmp_path)
    with pytest.raises(JudgeError) as caught:
        judge_pairs(one, cache, many)
    cache.close()
    assert "HTTP 400: too long for ***" in str(caught.value)
    assert KEY not in str(caught.value)
    known = len((tmp_path / "verdicts.jsonl").read_text().splitlines())
    assert known >= 4
    server.answer = prefers_longer
    before = len(server.questions)
    cache = VerdictCache(tmp_path)
    assert set(judge_pairs(one, cache, many).outcomes) == {1.0}
    cache.close()
    assert len(server.questions) - before == 80 - known


def test_twenty_failures_in_a_row_are_enough(
    server: Server, spec: EndpointSpec, cache: VerdictCache
) -> None:
    server.answer = lambda _: (500, {}, "")
    many = [AnswerPair(f"q{n}", "long answer", "no") for n in range(400)]
    with pytest.raises(JudgeError, match="20 in a row: 20 x HTTP 500"):
        judge_pairs(replace(spec, retries=0, failed_fraction=1.0), cache, many)
    assert len(server.questions) < 40


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "refuses the key"), (403, "refuses the key"), (404, "no model 'judge-1'")],
)
def test_a_wrong_key_or_model_is_a_mistake_of_the_configuration(
    server: Server, spec: EndpointSpec, cache: VerdictCache, status: int, says: str
) -> None:
    server.answer = lambda _: (status, {}, json.dumps({"error": {"message": f"bad key {KEY}"}}))
    with pytest.raises(ConfigError, match=says) as caught:
        judge_pairs(spec, cache, PAIRS)
    assert caught.value.fix
    assert KEY not in str(caught.value)
    assert KEY not in repr(spec)


def test_a_server_that_never_answers_meets_the_deadline(
    server: Server, spec: EndpointSpec, cache: VerdictCache
) -> None:
    def hang(question: str) -> Answer:
        server.released.wait()
        return says("[[A]]")

    server.answer = hang
    with pytest.raises(DeadlineError, match=r"within 0.5 s"):
        judge_pairs(replace(spec, deadline_seconds=0.5), cache, PAIRS)
    with pytest.raises(JudgeError, match=r"no answer within 0.1 s"):
        judge_pairs(replace(spec, request_seconds=0.1, retries=1), cache, PAIRS)


def test_nobody_at_the_address(spec: EndpointSpec, cache: VerdictCache, server: Server) -> None:
    server.close()
    with pytest.raises(JudgeError, match="no connection: ConnectError"):
        judge_pairs(spec, cache, PAIRS)


def test_an_address_that_no_client_understands(spec: EndpointSpec, cache: VerdictCache) -> None:
    with pytest.raises(ConfigError, match="address is none") as caught:
        judge_pairs(replace(spec, url="http://example.org:abc/v1"), cache, PAIRS)
    assert caught.value.fix


def test_a_torn_line_of_a_killed_run_is_passed_over(tmp_path: Path) -> None:
    first = VerdictCache(tmp_path)
    first.put("k1", "A")
    first.close()
    with first.path.open("a") as file:
        file.write('{"key": "k2", "verd')
    second = VerdictCache(tmp_path)
    assert (second.get("k1"), second.get("k2")) == ("A", None)
    second.put("k3", "B")
    second.close()
    third = VerdictCache(tmp_path)
    assert (third.get("k1"), third.get("k3")) == ("A", "B")
    third.close()


@pytest.mark.parametrize("verdict", ['"D"', '"a"', '""', '"AB"', "null", '["A"]', "{}"])
def test_a_line_with_another_verdict_is_passed_over(tmp_path: Path, verdict: str) -> None:
    (tmp_path / "verdicts.jsonl").write_text(f'{{"key": "k", "verdict": {verdict}}}\n')
    found = VerdictCache(tmp_path)
    assert found.get("k") is None
    found.close()


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be opened"):
        VerdictCache(tmp_path / "file")
