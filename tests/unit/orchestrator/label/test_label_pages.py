"""The pages over HTTP: what is kept, what is refused, and what a model's text can do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.labeling import Form, Person, invited, made
from starlette.testclient import TestClient

from orchestrator.label.queue import Queue
from orchestrator.label.schema import connect
from orchestrator.label.store import Store
from orchestrator.label.web.app import Site, build
from orchestrator.label.web.review import routes
from orchestrator.label.writer import Writer

HOSTILE = "<script>alert(1)</script>\n</pre><img src=x onerror=a()> \u202egnp.exe\u0000 {{7*7}}"
ROWS = [
    {"id": "one", "prompt": HOSTILE, "completions": [HOSTILE, "\n\nb", "c"], "models": ["m1"] * 3},
    {"id": "two", "prompt": "Two?", "completions": ["d", "e"], "models": ["m1", "m2"]},
]


class World:
    """A project and clients of its pages."""

    def __init__(self, folder: Path, *options: str, rows: Any = ROWS) -> None:
        self.project = made(folder, rows, *options)
        self.store = Store(connect(self.project))
        queue = Queue(self.store.waiting())
        site = Site(self.store, Writer(Store(connect(self.project))), queue, 0, "Judge.", False)
        self.app = build(site, ["testserver"], routes())

    def client(self) -> TestClient:
        return TestClient(self.app, follow_redirects=False)

    def person(self, client: TestClient, name: str, role: str = "labeler") -> Person:
        (token,) = invited(self.project, name, role=role)
        return Person(client, token)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    with world.client() as found:
        yield found


def form_of(person: Person) -> Form:
    found = person.page()
    assert found is not None
    return found


def all_equal(form: Form) -> dict[str, str]:
    fields = {f"{kind}-{letter}": "1" for letter in form.texts for kind in ("rank", "likert")}
    return fields | {"proof": form.proof}


def test_a_judgment_is_kept_and_the_next_task_follows(world: World, client: TestClient) -> None:
    ann = world.person(client, "ann")
    form = form_of(ann)
    letters = list(form.texts)
    fields = {"proof": form.proof, "seconds": "12", "flag-A-opinion": "yes"}
    for i, letter in enumerate(letters):
        fields |= {f"rank-{letter}": str(i + 1), f"likert-{letter}": str(7 - i)}
    answer = ann.send(form.action, fields)
    assert (answer.status_code, answer.headers["location"]) == (303, "/task?saved=1")
    (kept,) = world.store.judgments()
    assert [kept.verdict.ranks[i] for i in kept.shown] == [1, 2, 3]
    assert [kept.verdict.ratings[i].likert for i in kept.shown] == [7, 6, 5]
    assert [kept.verdict.ratings[i].flags["opinion"] for i in kept.shown] == [True, False, False]
    assert kept.seconds == 12
    assert form_of(ann).task == 2


def test_a_form_that_is_sent_twice_is_one_judgment_and_a_change_is_a_revision(
    world: World, client: TestClient
) -> None:
    ann = world.person(client, "ann")
    form = form_of(ann)
    fields = {"proof": form.proof} | {
        f"{k}-{x}": "1" for x in form.texts for k in ("rank", "likert")
    }
    for _ in range(2):
        assert ann.send(form.action, fields).status_code == 303
    assert [j.revision for j in world.store.judgments()] == [1]
    page = ann.page("/task/1")
    assert page is not None
    assert page.page.count("checked") == 6
    assert ann.send(form.action, fields | {"likert-A": "5"}).status_code == 303
    assert [j.revision for j in world.store.judgments()] == [2]
    assert world.store.revisions() == 2


def test_what_is_missing_is_said_and_what_was_filled_in_stays(
    world: World, client: TestClient
) -> None:
    ann = world.person(client, "ann")
    form = form_of(ann)
    answer = ann.send(form.action, {"proof": form.proof, "likert-B": "6", "comment": "<b>hm"})
    assert answer.status_code == 422
    assert 'href="#rank-A-1"' in answer.text
    assert re.search(r'id="likert-B-6" value="6" data-key="6" checked', answer.text)
    assert "&lt;b&gt;hm" in answer.text
    assert world.store.judgments() == []


def test_text_of_a_model_is_shown_and_never_markup(world: World, client: TestClient) -> None:
    page = form_of(world.person(client, "ann")).page
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "{{7*7}}" in page
    assert "\u202e" not in page
    assert "\x00" not in page
    assert page.count('<b class="mark">U+202E</b>') == 2  # prompt and answer
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2
    assert '<pre class="text" dir="auto">\n\n\nb</pre>' in page  # the first line end is the tag's
    assert "m1" not in page


def test_a_page_runs_nothing_inline_and_loads_nothing_from_elsewhere(
    world: World, client: TestClient
) -> None:
    world.person(client, "ann")
    answer = client.get("/task")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert not re.search(r"<script(?! src=\"/static/)", answer.text)
    tags = "".join(re.findall(r"<[^>]*>", answer.text))
    assert not re.search(r"\son\w+=|style=|https?://", tags)


def test_every_field_of_a_form_has_a_label(world: World, client: TestClient) -> None:
    page = form_of(world.person(client, "ann")).page
    inside = "".join(re.findall(r"<label.*?</label>", page, re.S))
    fields = [
        tag for tag in re.findall(r"<(?:input|select|textarea)[^>]*>", page) if "hidden" not in tag
    ]
    assert len(fields) == 3 * (7 + 11 + 3) + 1
    assert all(tag in inside for tag in fields)
    assert page.count("<fieldset") == page.count("<legend") == 6
    assert len(re.findall(r'id="([^"]+)"', page)) == len(set(re.findall(r'id="([^"]+)"', page)))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"host": "evil.example"}, 421),
        ({"content-type": "application/json"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"origin": "http://testserver"}, 303),
    ],
)
def test_a_forged_request_is_refused(
    world: World, client: TestClient, headers: dict[str, str], status: int
) -> None:
    ann = world.person(client, "ann")
    form = form_of(ann)
    fields = {"proof": form.proof} | {
        f"{k}-{x}": "1" for x in form.texts for k in ("rank", "likert")
    }
    assert client.post(form.action, data=fields, headers=headers).status_code == status
    assert len(world.store.judgments()) == (status == 303)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 403), (b"proof=0", 403), (b"\xff\xfe", 400), (b"a=1&" * 300, 400),
        (b"comment=" + b"x" * 300_000, 413),
    ],
)  # fmt: skip
def test_a_broken_form_is_refused(
    world: World, client: TestClient, body: bytes, status: int
) -> None:
    form = form_of(world.person(client, "ann"))
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = client.post(form.action, content=body, headers=headers)
    assert answer.status_code == status
    assert client.request("DELETE", form.action).status_code == 405


def test_a_form_of_another_person_is_refused(world: World, client: TestClient) -> None:
    form = form_of(world.person(client, "ann"))
    ben = world.person(client, "ben")
    assert ben.send(form.action, {"proof": form.proof}).status_code == 403
    own = form_of(ben)
    assert own.task == 2
    assert ben.send("/task/1", {"proof": own.proof}).status_code == 404  # ann's task
    assert ben.client.get("/task/1").status_code == 404
    assert ben.client.get("/task/99").status_code == 404


def test_a_link_that_is_none_or_revoked_opens_nothing(world: World, client: TestClient) -> None:
    assert client.get("/task").status_code == 403
    assert client.get("/enter/nobody").status_code == 403
    assert client.post("/enter", data={"token": "nobody"}).status_code == 403
    ann = world.person(client, "ann")
    cookie = client.post("/enter", data={"token": client.cookies["rehearsal_label"]})
    said = cookie.headers["set-cookie"].lower()
    assert "httponly" in said
    assert "samesite=strict" in said
    with world.store.transaction():
        world.store.revoke("ann")
    assert ann.client.get("/task").status_code == 403


def test_a_labeler_cannot_review(world: World, client: TestClient) -> None:
    world.person(client, "ann")
    for path in ("/review", "/review/1", "/figures", "/figures.json"):
        assert client.get(path).status_code == 403
    assert client.post("/review/1", data={"confirm": "0"}).status_code == 403


def test_a_skipped_and_a_reported_task_go_on(world: World, client: TestClient) -> None:
    ann = world.person(client, "ann")
    proof = {"proof": form_of(ann).proof}
    assert ann.send("/task/1", proof | {"action": "flag"}).status_code == 422  # without a comment
    assert ann.send("/task/1", proof | {"action": "delete"}).status_code == 400
    said = {"action": "flag", "comment": "not English"}
    assert ann.send("/task/1", proof | said).status_code == 303
    assert ann.send("/task/2", proof | {"action": "skip"}).status_code == 404  # not given yet
    assert form_of(ann).task == 2
    assert ann.send("/task/2", proof | {"action": "skip"}).status_code == 303
    assert ann.page() is None
    assert [(p.task, p.flagged, p.comment) for p in world.store.passes()] == [
        (1, True, "not English"), (2, False, ""),
    ]  # fmt: skip
    world.person(client, "cleo", "reviewer")
    assert "not English" in client.get("/review").text


def test_a_lease_is_renewed_by_its_holder(world: World, client: TestClient) -> None:
    ann = world.person(client, "ann")
    proof = {"proof": form_of(ann).proof}
    assert ann.send("/task/1/renew", proof).status_code == 204
    assert ann.send("/task/2/renew", proof).status_code == 409
    assert ann.send("/task/1/renew", {"proof": "0"}).status_code == 403


def judged(world: World, client: TestClient, name: str, ranks: tuple[str, ...]) -> None:
    """Judge the first task; `ranks` are in the order of the task."""
    person = world.person(client, name)
    form = form_of(person)
    texts = {HOSTILE.split("\n")[0]: 0, "": 1, "c": 2}
    fields = {"proof": form.proof}
    for letter, text in form.texts.items():
        index = texts[text.split("\n")[0]]
        fields |= {f"rank-{letter}": ranks[index], f"likert-{letter}": "4"}
    assert person.send(form.action, fields).status_code == 303


def test_a_reviewer_confirms_a_judgment_or_decides_otherwise(tmp_path: Path) -> None:
    world = World(tmp_path, "--overlap", "1")
    with world.client() as client:
        judged(world, client, "ann", ("1", "2", "3"))
        judged(world, client, "ben", ("3", "2", "1"))
        cleo = world.person(client, "cleo", "reviewer")
        assert "100%" in client.get("/review").text  # all pairs differ
        page = client.get("/review/1").text
        assert "ann" not in page
        assert "ben" not in page
        assert page.count("What people said") == 1
        form = Form(page)
        assert cleo.send("/review/1", {"proof": form.proof, "confirm": "2"}).status_code == 400
        assert cleo.send("/review/1", {"proof": form.proof}).status_code == 422
        assert cleo.send("/review/99", {"proof": form.proof}).status_code == 404
        assert cleo.send("/review/1", {"proof": form.proof, "confirm": "0"}).status_code == 303
        assert world.store.adjudications()[1].verdict.ranks in ((1, 2, 3), (3, 2, 1))
        fields = {"proof": form.proof}
        for letter in form.texts:
            fields |= {f"rank-{letter}": "1", f"likert-{letter}": "4"}
        assert cleo.send("/review/1", fields).status_code == 303
        assert world.store.adjudications()[1].verdict.ranks == (1, 1, 1)
        figures = client.get("/figures.json").json()
        assert figures["progress"]["adjudicated"] == 1
        assert figures["agreement"]["rate"] == 0
        assert figures["paper"]["training labelers"] == [0.726, 0.015]
        shown = client.get("/figures").text
        assert "72.6%" in shown
        assert "77.3%" in shown
