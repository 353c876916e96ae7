"""A reward model as a server: its scores, both protocols, keys, a bounded queue, refusals."""

from __future__ import annotations

import asyncio
import json
import threading
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from transformers import LlamaConfig, LlamaForTokenClassification

from orchestrator.serve_reward.app import MOST_BYTES, Batcher, FullError, build_app
from orchestrator.serve_reward.command import build, main
from workers.data.rows.asked import Asked
from workers.data.rows.examples import Message
from workers.pocket.tokenizer import build_tokenizer
from workers.pocket.words import VOCABULARY
from workers.records.arrays import Ragged
from workers.records.generation import Finish, RolloutBatch
from workers.records.specs import FrozenModelSpec, RewardSpec, TermSpec
from workers.roles.reward import RewardWorker
from workers.scorers.remote import Settings, body_of
from workers.scorers.served_model import Item, Score
from workers.user_functions.reward_function import Exchange

TEXTS = [("user : what does the owl eat ? reply :", "mice ."), ("owl", "the owl eats mice"),
         ("fox", "")]  # fmt: skip
OPTIONS = Namespace(dtype="float32", device="cpu", threads=1, batch_tokens=64, batch=2, queue=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, num_labels=1,
    )  # fmt: skip
    LlamaForTokenClassification(shape).save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with TestClient(build(folder, OPTIONS, "")) as found:
        yield found


def in_run(folder: Path, bridge: str) -> np.ndarray:
    """The scores of a run's reward worker."""
    model = FrozenModelSpec(str(folder), "float32", "cpu", 1, 64)
    worker = RewardWorker(0)
    worker.load(RewardSpec((TermSpec("model", {"bridge": bridge}),), "", str(folder), model))
    tokenizer, count = build_tokenizer(), len(TEXTS)
    asked = [tokenizer(prompt).input_ids for prompt, _ in TEXTS]
    replies = [
        [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        for _, text in TEXTS
    ]
    both = [[*a, *r] for a, r in zip(asked, replies, strict=True)]
    batch = RolloutBatch(
        np.arange(count), np.arange(count), Ragged.from_rows(both, np.int32),
        np.array([len(a) for a in asked]),
        Ragged.from_rows([np.zeros(len(r)) for r in replies], np.float32),
        np.full(count, Finish.STOP), np.zeros((count, 2), np.int64),
    )  # fmt: skip
    words = [Asked(n, prompt, prompt) for n, (prompt, _) in enumerate(TEXTS)]
    return worker.score(batch.ids, [batch], words).values


def post(client: TestClient, path: str, body: Any, **head: str) -> Any:
    return client.post(path, json=body, headers=head)


def test_the_answer_is_that_of_the_reward_model_in_a_run(folder: Path, client: TestClient) -> None:
    exchanges = [Exchange(Asked(n, p, p), r, finished=True) for n, (p, r) in enumerate(TEXTS)]
    body = body_of(Settings(url="http://a"), exchanges)
    found = [each["score"] for each in post(client, "/score", body).json()["scores"]]
    for bridge in ("tokens", "text"):
        np.testing.assert_allclose(found, in_run(folder, bridge), atol=1e-5)
    assert len({round(each, 4) for each in found}) == 3


def test_whole_sequences_of_the_other_protocol(folder: Path, client: TestClient) -> None:
    query = [f"<bos> {prompt} {text} <eos>" for prompt, text in TEXTS[:2]]
    found = post(client, "/get_reward", {"query": query, "prompts": [], "labels": []}).json()
    np.testing.assert_allclose(found["rewards"], in_run(folder, "tokens")[:2], atol=1e-5)


def test_a_dialogue_goes_through_the_chat_template(client: TestClient) -> None:
    talk = (Message("user", "what does the owl eat ?"),)
    exchange = Exchange(Asked(0, talk, ""), "mice .", finished=True)
    mine = post(client, "/score", body_of(Settings(url="http://a"), [exchange])).json()
    bare = {"prompts": [TEXTS[0][0]], "responses": [TEXTS[0][1]]}
    same = post(client, "/score", bare).json()
    assert mine["scores"][0]["score"] == pytest.approx(same["scores"][0]["score"], abs=1e-5)


def test_what_has_no_score_says_why(client: TestClient) -> None:
    body = {"prompts": ["owl", "fox"], "responses": ["owl " * 100, "mice"]}
    first, second = post(client, "/score", body).json()["scores"]
    assert first == {"error": "reward model: more than its 64 tokens"}
    assert isinstance(second["score"], float)
    long = post(client, "/get_reward", {"query": ["owl " * 100, "fox"]}).json()["rewards"]
    assert long[0] is None
    assert isinstance(long[1], float)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "must be an object"),
        ({}, "responses must be a list of texts"),
        ({"responses": ["a"]}, "prompts must be a list of texts"),
        ({"responses": ["a"], "prompts": []}, "0 entries for 1"),
        ({"responses": ["a"], "prompts": ["a"], "messages": [3]}, "list of turns"),
        ({"responses": ["a"], "prompts": ["a"], "messages": [[{}]]}, "role and content"),
        ({"responses": ["a"], "prompts": ["a"], "finished": [1]}, "true or false"),
    ],
)
def test_another_form_is_refused(client: TestClient, body: Any, said: str) -> None:
    answer = post(client, "/score", body)
    assert answer.status_code == 422
    assert said in answer.json()["error"]


def test_refusals_before_the_body_is_read(client: TestClient) -> None:
    assert client.post("/score", content=b"{}").status_code == 415
    head = {"content-type": "application/json"}
    assert client.post("/score", content=b"{", headers=head).status_code == 422
    assert client.post("/score", content=b"[" * 99_999, headers=head).status_code == 422
    long = b" " * (MOST_BYTES + 1)
    assert client.post("/score", content=long, headers=head).status_code == 413
    assert client.get("/score").status_code == 405
    assert post(client, "/score", {"prompts": [], "responses": []}).json() == {"scores": []}


def lengths(items: Sequence[Item]) -> list[Score]:
    return [Score(float(len(each.response))) for each in items if isinstance(each, Exchange)]


def test_a_key_is_asked_for() -> None:
    app = build_app(lengths, key="k3y", batch=4, queue=4)
    body = {"prompts": ["a"], "responses": ["bc"]}
    with TestClient(app) as client:
        assert client.get("/health").json() == {"status": "ok", "waiting": 0, "queue": 4}
        for head in ({}, {"authorization": "Bearer no"}, {"authorization": "Basic k3y"}):
            assert post(client, "/score", body, **head).status_code == 401
        found = post(client, "/score", body, authorization="Bearer k3y")
        assert found.json() == {"scores": [{"score": 2.0}]}


def test_a_full_queue_refuses_at_once_and_batches_join_requests() -> None:
    free, sizes = threading.Event(), list[int]()

    def slow(items: Sequence[Item]) -> list[Score]:
        sizes.append(len(items))
        free.wait(20)
        return lengths(items)

    async def run() -> None:
        batcher = Batcher(slow, batch=4, queue=5)
        working = asyncio.create_task(batcher.work())
        items = [Exchange(Asked(0, "a", "a"), "x" * n, True) for n in range(4)]
        first = asyncio.create_task(batcher.ask(items[:1]))
        while not sizes:  # the first is being scored
            await asyncio.sleep(0.01)
        rest = [asyncio.create_task(batcher.ask(items[n : n + 2])) for n in (0, 2)]
        await asyncio.sleep(0.05)
        assert batcher.waiting == 4
        with pytest.raises(FullError):
            await batcher.ask(items[:2])
        gone = asyncio.create_task(batcher.ask(items[3:]))
        await asyncio.sleep(0.05)
        gone.cancel()
        free.set()
        assert [s.value for s in await first] == [0.0]
        assert [s.value for each in rest for s in await each] == [0.0, 1.0, 2.0, 3.0]
        await asyncio.sleep(0.05)
        working.cancel()

    asyncio.run(run())
    assert sizes == [1, 4], "requests share a batch, and one whose client has gone is not computed"


def test_an_error_of_the_model_ends_the_request_and_not_the_server() -> None:
    def broken(items: Sequence[Item]) -> list[Score]:
        if len(items) > 1:
            raise RuntimeError("no memory")
        return lengths(items)

    app = build_app(broken, key="", batch=4, queue=4)
    with TestClient(app, raise_server_exceptions=False) as client:
        two = {"prompts": ["a", "b"], "responses": ["c", "d"]}
        assert post(client, "/score", two).status_code == 500
        assert post(client, "/score", {"prompts": ["a"], "responses": ["cd"]}).status_code == 200


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "99999"], "is no port"),
        (["--host", "0.0.0.0", "--without-tls"], "asks for no key"),
        (["--host", "0.0.0.0"], "without encryption"),
        (["--batch", "0"], "too few"),
        (["--key-variable", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        ([], "checkpoint"),
    ],
)
def test_wrong_options_end_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main([str(tmp_path / "none"), *options]) > 0
    assert said in capsys.readouterr().err


def test_scores_are_json() -> None:
    app = build_app(lambda items: [Score(float("nan"), "why")], key="", batch=1, queue=1)
    with TestClient(app) as client:
        found = post(client, "/score", {"prompts": ["a"], "responses": ["b"]})
    assert json.loads(found.content) == {"scores": [{"error": "why"}]}
