"""A chat model as reward: ratings, comparisons in both orders, kept verdicts, a biased judge."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing import composed
from test_remote_reward import send, serving

from orchestrator.config.schema import Config
from orchestrator.planning.checks.scoring import check_reward
from orchestrator.planning.worker_specs import reward_spec
from workers.data.rows.asked import Asked
from workers.errors import RehearsalError
from workers.scorers.rubric import (
    HELPFUL,
    comparison_question,
    comparison_reward,
    position_bias,
    rating_reward,
    verdict_in,
)
from workers.scorers.source import Batch, Scored, Scorer, make_scorer, scores_of
from workers.user_functions.reward_function import Exchange

K = "reward.settings."


def config(url: str, *overrides: str) -> Config:
    return composed("+experiment=pocket_tiny", "reward.kind=endpoint", f"{K}url={url}",
                    f"{K}model=judge", f"{K}retries=0", *overrides)  # fmt: skip


def scorer_of(run: Config) -> Scorer:
    spec = reward_spec(run, "", "policy")
    return make_scorer(spec, spec.terms[0])[0]


def score(scorer: Scorer, responses: list[str], reference: str = "") -> Scored:
    row = json.dumps({"best": reference}) if reference else ""
    texts = [Exchange(Asked(0, "q", "q", row), each, finished=True) for each in responses]
    return scores_of(scorer, Batch(responses, texts), "endpoint")  # type: ignore[arg-type]


def saying(judge: Callable[[str], str]) -> Any:
    """A server that answers chat requests with what a judge says of the question."""

    def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        assert body["model"] == "judge"
        said = judge(body["messages"][0]["content"])
        send(handler, {"choices": [{"message": {"role": "assistant", "content": said}}]})

    return answer


def qualities(question: str) -> list[int]:
    """The hidden quality that the fake answers name."""
    return [int(each) for each in re.findall(r"quality (\d+)", question)]


def test_a_rating_is_a_reward_from_0_to_1() -> None:
    with serving(saying(lambda q: f"fine. [[{qualities(q)[0]}]]")) as server:
        found = score(scorer_of(config(server.url)), ["quality 1", "quality 10", "quality 4"])
    np.testing.assert_allclose(found.values, [0.0, 1.0, 1 / 3], atol=1e-6)
    assert all(body["temperature"] == 0 for body in server.bodies)


def test_a_rubric_of_ones_own_is_in_the_question(tmp_path: Path) -> None:
    (tmp_path / "rubric.txt").write_text("Prefer {prompt} braces.")
    with serving(saying(lambda q: "[[5]]")) as server:
        run = config(server.url, f"{K}rubric={tmp_path / 'rubric.txt'}")
        score(scorer_of(run), ["{first} and {rubric}"])
    (body,) = server.bodies
    text = body["messages"][0]["content"]
    assert "Prefer {prompt} braces." in text
    assert "{first} and {rubric}" in text


@pytest.mark.parametrize("said", ["", "[[0]]", "[[11]]", "[[3]] or [[4]]", "7", "[[A]]"])
def test_a_rating_without_one_clear_number_is_a_failure(said: str) -> None:
    with serving(saying(lambda q: said)) as server:
        found = score(scorer_of(config(server.url)), ["a"])
    assert list(found.reasons) == ["judge: an answer without one clear verdict"]


def test_a_failed_endpoint_fails_the_sequence() -> None:
    with serving(lambda handler, body: send(handler, {}, 503)) as server:
        found = score(scorer_of(config(server.url)), ["a"])
    assert list(found.reasons) == ["judge: HTTP 503"]
    with serving(lambda handler, body: send(handler, [])) as server:
        found = score(scorer_of(config(server.url)), ["a"])
    assert list(found.reasons) == ["judge: the answer is no chat completion"]


def test_verdicts_are_kept_for_a_run_that_goes_on(tmp_path: Path) -> None:
    with serving(saying(lambda q: f"[[{qualities(q)[0]}]]")) as server:
        run = config(server.url, f"{K}cache={tmp_path / 'kept'}")
        scorer = scorer_of(run)
        first = score(scorer, ["quality 3", "quality 3", "quality 5"])
        assert len(server.bodies) == 2, "an equal question is asked once"
        score(scorer, ["quality 3"])
        again = score(scorer_of(run), ["quality 5", "quality 3"])  # another process
        assert len(server.bodies) == 2
    np.testing.assert_array_equal(again.values, first.values[[2, 0]])
    assert "quality" not in (tmp_path / "kept" / "verdicts.jsonl").read_text()


COMPARED = (f"{K}compare=reference", f"{K}column=best", "data.keep_columns=[best]")


def better(question: str) -> str:
    a, b = qualities(question)
    return "[[A]]" if a > b else "[[B]]" if b > a else "[[C]]"


def test_a_response_is_compared_with_the_reference_in_both_orders() -> None:
    with serving(saying(better)) as server:
        scorer = scorer_of(config(server.url, *COMPARED))
        found = score(scorer, ["quality 9", "quality 5", "quality 1"], "quality 5")
        none = score(scorer, ["quality 9"])
    assert found.values.tolist() == [1.0, 0.5, 0.0]
    assert list(none.reasons) == ["judge: the prompt's row has no reference answer"]


class BiasedJudge:
    """Prefers the better answer, but takes the first without looking in 20 % of the questions."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, question: str) -> str:
        rng = random.Random(question)  # the same question, the same verdict
        return "[[A]]" if rng.random() < self.share else better(question)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_both_orders_remove_the_bias_of_a_position_and_measure_it(
    share: float, caplog: pytest.LogCaptureFixture
) -> None:
    judge, count = BiasedJudge(share), 600
    responses = [f"quality {1 + 8 * (n % 2)} of {n}" for n in range(count)]  # half of them better
    with serving(saying(judge)) as server, caplog.at_level("WARNING"):
        run = config(server.url, *COMPARED, f"{K}concurrency=8", f"{K}request_seconds=600")
        found = score(scorer_of(run), responses, "quality 5")
    values = found.values.astype(np.float64)
    error = 1.96 * values.std() / count**0.5
    assert abs(values.mean() - 0.5) < error, "free of the position"
    assert set(values[1::2]) <= {1.0, 0.5}
    orders = [((r, "quality 5"), ("quality 5", r)) for r in responses]
    questions = [[comparison_question(HELPFUL, "q", *one).text for one in both] for both in orders]
    asked = [[verdict_in(judge(text), "ABC") for text in both] for both in questions]
    alone = np.mean([{"A": 1.0, "B": 0.0, "C": 0.5}[forward] for forward, _ in asked])
    assert (alone - 0.5 > error) == (share > 0), "one order alone is not"
    bias = position_bias([(a, b) for a, b in asked])
    assert bias is not None
    assert bias.low <= share <= bias.high
    (told,) = [r.getMessage() for r in caplog.records if "by their order" in r.getMessage()]
    share_told, low, high = (float(x) for x in re.findall(r"-?\d+\.\d", told.replace("95 %", "")))
    assert low <= 100 * share <= high
    assert low <= share_told <= high


def test_the_estimate_of_the_bias_by_hand() -> None:
    consistent = [("A", "B"), ("B", "A"), ("C", "C")]
    found = position_bias(consistent)
    assert found is not None
    assert (found.share, found.low, found.high, found.pairs) == (0.0, 0.0, 0.0, 3)
    always = position_bias([("A", "A")] * 4)
    assert always is not None
    assert always.share == 1.0
    second = position_bias([("B", "B"), ("A", "B")])
    assert second is not None
    assert second.share == -0.5
    assert position_bias([("A", "B")]) is None


def test_rewards_by_hand() -> None:
    assert [rating_reward(each) for each in ("1", "10")] == [0.0, 1.0]
    pairs = [("A", "B"), ("B", "A"), ("A", "A"), ("C", "C"), ("C", "B")]
    assert [comparison_reward(*pair) for pair in pairs] == [1.0, 0.0, 0.5, 0.5, 0.75]


@pytest.mark.parametrize(
    ("overrides", "where", "said"),
    [
        ([f"{K}url=http://u:p@h/v1"], f"{K}url", "no plain http"),
        ([f"{K}model=''"], f"{K}model", "no judging model"),
        ([f"{K}compare=reference"], f"{K}column", "needs the column|compare=reference"),
        ([f"{K}column=best"], f"{K}column", "compare=none"),
        ([*COMPARED[:2]], "data.keep_columns", "not kept"),
        ([f"{K}request='[1]'"], f"{K}request", "no JSON object"),
        ([f"{K}rubric=none.txt"], f"{K}rubric=none.txt", "cannot be read"),
        ([f"{K}concurrency=0"], f"{K}concurrency", "concurrency=0"),
    ],
)
def test_what_cannot_be_is_refused_by_the_plan(overrides: list[str], where: str, said: str) -> None:
    with pytest.raises(RehearsalError, match=said) as caught:
        check_reward(config("http://h/v1", *overrides))
    assert caught.value.where == where
