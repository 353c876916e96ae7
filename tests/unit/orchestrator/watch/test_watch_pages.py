"""The pages of a run over HTTP: what they show and refuse, and what a model's text can do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes.watched import folder_at, read, sample, write_answers, write_metrics, write_samples
from starlette.testclient import TestClient

from orchestrator.run_files.folder import RunFolder
from orchestrator.watch.followed import Followed
from orchestrator.watch.web.app import build

HOSTILE = "<script>alert(1)</script>\n</pre><img src=x onerror=a()> \u202egnp.exe\u0000 {{7*7}}"
PAGES = ("/", "/metrics", "/rollouts", "/health", "/log")


@contextmanager
def pages(folder: RunFolder, key: str = "") -> Iterator[TestClient]:
    followed = read(folder)
    app = build(followed, ["testserver"], key, follow=False)
    with TestClient(app, follow_redirects=False) as client:
        yield client
    followed.close()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    found = folder_at(tmp_path / "run")
    write_metrics(found, {
        "ppo/score_mean": [0.5, 1.5], "ppo/kl_sequence": [0.1, 0.2], "ppo/generated": [4, 4],
        "ppo/trained": [4, 3], "ppo/dropped": [0, 1], "ppo/dropped/no_reward": [0, 1],
        "ppo/idle_share/policy": [0.4, 0.25], "ppo/busy_seconds/policy": [1, 2],
        "ppo/step_seconds": [3, 4],
    })  # fmt: skip
    write_metrics(found, {"sft/loss": [2.0]}, "sft")
    write_samples(found, [sample(n) for n in range(30)])
    write_samples(found, [sample(30, response=HOSTILE, prompt=HOSTILE, dropped="<b>no reward")])
    write_answers(found, [{"id": 0, "prompt": "Which is 1?", "answers": {"sft": "A cat."}}])
    return found


def test_every_page_is_one_of_html_without_anything_inline_or_from_elsewhere(
    folder: RunFolder,
) -> None:
    with pages(folder) as client:
        for address in (*PAGES, "/rollouts/31", "/nowhere"):
            answer = client.get(address)
            assert answer.status_code == (404 if address == "/nowhere" else 200)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert not re.search(r"<script(?! src=\"/static/)", answer.text)
            tags = "".join(re.findall(r"<[^>]*>", answer.text))
            assert not re.search(r"\son\w+=|style=|https?://", tags)
        for file in ("page.css", "watch.css", "watch.js"):
            assert client.get(f"/static/{file}").status_code == 200


def test_the_overview_draws_what_was_measured(folder: RunFolder) -> None:
    with pages(folder) as client:
        page = client.get("/").text
        assert page.count('<figure class="chart">') == 3  # score, KL, SFT loss
        assert "Score of the reward" in page
        assert "<b>1.5</b>" in page
        assert "32 sequences" in page
        shown = client.get("/metrics?stage=ppo&text=DROPPED").text
        assert shown.count('<figure class="chart">') == 2
        assert client.get("/metrics?stage=<b>").status_code == 200


def test_sequences_are_filtered_by_the_form_without_scripts(folder: RunFolder) -> None:
    with pages(folder) as client:
        page = client.get("/rollouts?text=owl&reward_from=5&order=best").text
        found = re.findall(r"reward (\d+)", page)
        assert found == ["26", "14"]
        assert 'value="owl"' in page
        assert 'value="5"' in page
        assert "2 of 32 recorded sequences" in page
        assert "page 2 of 2" in client.get("/rollouts?page=2").text
        wrong = client.get("/rollouts?reward_from=<script>")
        assert wrong.status_code == 200
        assert "reward_from is ignored: &#39;&lt;script&gt;&#39; cannot be used" in wrong.text


def test_every_field_of_the_filter_has_a_label(folder: RunFolder) -> None:
    with pages(folder) as client:
        page = client.get("/rollouts").text
    labelled = "".join(re.findall(r"<label.*?</label>", page, re.S))
    for tag in re.findall(r"<(?:input|select)[^>]*>", page):
        assert tag in labelled or "aria-label=" in tag


def test_text_of_a_model_is_shown_and_never_markup(folder: RunFolder) -> None:
    with pages(folder) as client:
        for address in ("/rollouts", "/rollouts/31", "/rollouts?dropped=*"):
            page = client.get(address).text
            assert "<script>alert" not in page
            assert "<img" not in page
            assert "<b>no reward" not in page
            assert "{{7*7}}" in page
            assert "\u202e" not in page
            assert "\x00" not in page
            assert page.count('<b class="mark">U+202E</b>') == 2  # prompt and response
            assert "&lt;b&gt;no reward" in page


def test_a_text_of_100_kilobytes_is_cut_in_the_list_and_folded_on_its_page(
    tmp_path: Path,
) -> None:
    folder = folder_at(tmp_path / "run")
    write_samples(folder, [sample(n, response="x" * 100_000) for n in range(25)])
    with pages(folder) as client:
        page = client.get("/rollouts").text
        assert len(page) < 100_000
        assert "99,400 more characters" in page
        whole = client.get("/rollouts/1").text
        assert whole.count("x") > 100_000
        assert "Show the other 96,000 characters" in whole


def test_versions_of_one_prompt_stand_side_by_side(folder: RunFolder) -> None:
    with pages(folder) as client:
        link = re.search(r"/prompts/\d+", client.get("/rollouts?text=which is 1").text)
        assert link
        page = client.get(link[0]).text
        # ten versions and the model of the evaluation: first, last and two between
        assert page.count('type="checkbox"') == 11
        assert re.findall(r"<h3>(.*?)</h3>", page) == [
            "PPO: version 0", "PPO: version 3", "PPO: version 7", "evaluate: SFT",
        ]  # fmt: skip
        chosen = client.get(f"{link[0]}?show=ppo:4&show=evaluate:sft").text
        assert re.findall(r"<h3>(.*?)</h3>", chosen) == ["PPO: version 4", "evaluate: SFT"]
        assert "A cat." in chosen
        for wrong in ("/prompts/7", f"/prompts/{10**30}", f"/rollouts/{10**30}", "/rollouts/0"):
            assert client.get(wrong).status_code == 404


def test_processes_losses_and_the_ledger_are_shown(folder: RunFolder) -> None:
    folder.workers.write_text(json.dumps([
        {"role": "policy", "rank": 0, "pid": 2**22 + 5, "node": "elsewhere", "device": "cpu"},
    ]))  # fmt: skip
    folder.losses.write_text(
        json.dumps({"time": 1.8e9, "lost": ["policy rank 0"], "stage": "ppo", "step": 2,
                    "error": "<i>gone", "discarded_replies": 0})
        + "\n{broken\n"
    )  # fmt: skip
    with pages(folder) as client:
        page = client.get("/health").text
    assert "on another machine" in page
    assert "&lt;i&gt;gone" in page
    row = re.search(r"<tr><td>PPO</td>(.*?)</tr>", page)
    assert row
    assert re.findall(r"<td>(.*?)</td>", row[1]) == ["8", "7", "1", "0", "no reward 1"]
    assert re.search(r"<td>policy</td><td>2.00</td><td>-</td><td>-</td><td>25 %</td>", page)
    assert "losses.jsonl:2" in page


def test_logs_are_shown_by_their_names_alone(folder: RunFolder, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    folder.log.write_text("10:00:00 note: \x1b[2Jhello\n")
    logs = folder.path / "logs"
    logs.mkdir()
    (logs / "judge.log").write_text("x" * 70_000 + "\nlast line\n")
    (logs / "link.log").symlink_to(secret)
    with pages(folder) as client:
        page = client.get("/log").text
        assert 'note: <b class="mark">U+001B</b>[2Jhello' in page
        assert "link.log" not in page
        end = client.get("/log?name=logs/judge.log").text
        assert "last line" in end
        assert "70,001 bytes before it are left out" in end
        for name in ("../secret", "logs/link.log", "config.yaml", "/etc/passwd", str(secret)):
            answer = client.get("/log", params={"name": name})
            assert (answer.status_code, "secret" in answer.text.replace(name, "")) == (404, False)


def test_a_run_that_waits_for_people_says_what_to_do_on_every_page(folder: RunFolder) -> None:
    folder.waiting.write_text("label waits for <b>people</b>\n  fix: rank, and go on\n")
    with pages(folder) as client:
        for address in ("/", "/metrics", "/rollouts", "/health", "/log"):
            text = client.get(address).text
            assert '<p class="state waiting"><b>waiting</b>' in text
            assert "label waits for &lt;b&gt;people&lt;/b&gt;\n  fix: rank, and go on</pre>" in text


def test_what_is_damaged_is_noted_and_the_rest_is_shown(folder: RunFolder) -> None:
    with folder.metrics.open("a") as file:
        file.write('{"stage": 1}\n{"stage": "ppo", "st')
    with folder.rollouts.open("ab") as file:
        file.write(b"\xff\xfe\n")
    with pages(folder) as client:
        page = client.get("/").text
    assert "metrics.jsonl:20: there is no &#39;value&#39;" in page
    assert "metrics.jsonl: its last line is not complete (20 bytes)" in page
    assert "rollouts.jsonl:32" in page
    assert page.count('<figure class="chart">') == 3


def test_an_empty_folder_of_a_run_has_all_pages(tmp_path: Path) -> None:
    with pages(folder_at(tmp_path / "run")) as client:
        for address in PAGES:
            assert client.get(address).status_code == 200
        assert "no metrics yet" in client.get("/").text


def test_a_run_that_goes_on_refreshes_by_itself_and_can_be_paused(folder: RunFolder) -> None:
    with pages(folder) as client:
        assert "data-refresh" not in client.get("/").text
        with folder.locked():
            page = client.get("/metrics?stage=sft").text
            assert "<b>running</b>" in page
            assert '<noscript><meta http-equiv="refresh" content="10"></noscript>' in page
            assert 'href="?stage=sft&amp;refresh=0"' in page
            paused = client.get("/metrics?stage=sft&refresh=0").text
            assert "data-refresh" not in paused
            assert "refresh by itself" in paused
            assert "data-refresh" not in client.get("/rollouts").text  # is read, not watched


def test_only_our_names_and_only_reading(folder: RunFolder) -> None:
    with pages(folder) as client:
        assert client.get("/", headers={"host": "evil.example"}).status_code == 421
        for method in ("POST", "PUT", "DELETE"):
            assert client.request(method, "/").status_code == 405


def test_a_key_is_asked_for_once(folder: RunFolder) -> None:
    with pages(folder, key="abc") as client:
        assert client.get("/rollouts").status_code == 403
        assert client.get("/?key=abd").status_code == 403
        answer = client.get("/?key=abc")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert "HttpOnly" in answer.headers["set-cookie"]
        assert client.get("/rollouts").status_code == 200


def test_nothing_is_written_into_the_run_folder(folder: RunFolder) -> None:
    def state() -> list[tuple]:
        return [(str(p), p.stat().st_mtime_ns) for p in sorted(folder.path.rglob("*"))]

    before = state()
    with pages(folder) as client:
        for address in (*PAGES, "/rollouts?text=owl", "/rollouts/3"):
            client.get(address)
    assert state() == before


def test_a_folder_is_followed_in_the_background(folder: RunFolder) -> None:
    followed = Followed(folder)
    with TestClient(build(followed, ["testserver"])) as client:
        for _ in range(500):
            if "32 of 32" in client.get("/rollouts").text:
                break
        else:
            pytest.fail("the sequences did not come")
    followed.close()
