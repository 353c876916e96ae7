"""People label in a real browser, and a reward model trains on what they said."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
from fakes.labeling import invited, made, served

from orchestrator.label.command import main
from orchestrator.label.store import opened

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(
    (p for p in ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
     if Path(p).exists()), "",
)  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed"),
]
WORDS = ["cat", "dog", "owl", "fox", "hen", "cow", "pig", "ram", "bee", "ant", "eel", "yak"]
NAMES = ("ann", "ben", "eve")


@pytest.fixture
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def _answers(n: int) -> list[str]:
    """The 4 to 9 answers of task n, each unlike all others."""
    return [f"It is a {WORDS[(n + i) % 12]}, {i} of {n}." for i in range(4 + n % 6)]


def _tasks() -> list[dict]:
    return [
        {
            "id": f"t{n}",
            "prompt": f"Which animal is number {n}?",
            "completions": _answers(n),
        }
        for n in range(20)
    ]  # fmt: skip


def _ranks(name: str, texts: list[str]) -> dict[str, int]:
    """What a labeler says: some draw of a rank per answer, with ties, fixed by name and text."""
    drawn = {t: random.Random(f"{name} {t}").randint(1, len(texts)) for t in texts}
    if len(set(drawn.values())) == 1:
        drawn[texts[0]] = drawn[texts[0]] % len(texts) + 1
    return drawn


def _enter(browser: sync_api.Browser, address: str, token: str, **options) -> sync_api.Page:
    page = browser.new_context(**options).new_page()
    page.goto(f"{address}/enter/{token}")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/task" if "review" not in options else "**/review")
    return page


def _texts(page: sync_api.Page) -> dict[str, str]:
    return {
        article.locator("h2").inner_text().split()[-1]: article.locator("pre").first.inner_text()
        for article in page.locator("article").all()
    }


def _judge(page: sync_api.Page, name: str) -> int:
    """Rank the answers of a page by keys; returns how many were pressed."""
    texts = _texts(page)
    ranks = _ranks(name, list(texts.values()))
    keys = [str(random.Random(f"likert {t}").randint(1, 7)) for t in texts.values()]
    keys += [str(ranks[text]) for text in texts.values()]
    for key in [*keys, "Enter"]:
        page.keyboard.press(key)
    return len(keys) + 1


def _dense(ranks: list[int]) -> list[int]:
    return [sorted(set(ranks)).index(rank) + 1 for rank in ranks]


@pytest.mark.timeout(1200)
def test_three_people_rank_by_keyboard_and_a_reward_model_trains_on_the_file(
    browser: sync_api.Browser, tmp_path: Path
) -> None:
    project = made(tmp_path, _tasks(), "--overlap", "1", "--judgments", "3")
    tokens, (cleo,) = invited(project, *NAMES), invited(project, "cleo", role="reviewer")
    rankings = tmp_path / "rankings.jsonl"
    with served(project) as address:
        for name, token in zip(NAMES, tokens, strict=True):
            page = _enter(browser, address, token)
            for n in range(20):
                title, count = page.locator("h1").inner_text(), len(_texts(page))
                assert _judge(page, name) == 2 * count + 1
                done = f"text={title} is saved" if n < 19 else "text=All done"
                page.wait_for_selector(done)
                page.wait_for_load_state("load")
        decided = _adjudicate(browser, address, cleo)
        assert main(["export", str(project), str(rankings)]) == 0
    lines = [json.loads(line) for line in rankings.read_text().splitlines()]
    by_task = {row["id"]: row for row in _tasks()}
    assert len(lines) == 3 * 18 + 2
    kept = tied = 0
    for line in lines:
        texts = by_task[line["id"]]["completions"]
        assert line["completions"] == texts
        if line["resolved"] == "adjudicated":
            expected = decided[line["id"]]
        else:
            drawn = _ranks(line["annotator"], texts)
            expected = _dense([drawn[text] for text in texts])
        assert line["ranks"] == expected
        pairs = list(combinations(expected, 2))
        kept += sum(a != b for a, b in pairs)
        tied += sum(a == b for a, b in pairs)
    assert _trained(tmp_path, rankings) == (kept, tied)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_pages_work_without_scripts_and_fit_a_phone(
    browser: sync_api.Browser, tmp_path: Path, width: int
) -> None:
    project = made(tmp_path, _tasks()[5:6] + _tasks()[:1])  # 9 and 4 answers
    (token,) = invited(project, "ann")
    with served(project) as address:
        page = browser.new_context(
            java_script_enabled=False, viewport={"width": width, "height": 700}
        ).new_page()
        page.goto(f"{address}/enter/{token}")
        page.click("text=Start")
        boxes = [label.bounding_box() for label in page.locator("#likert-A-1, #likert-A-7").all()]
        assert boxes[0]["y"] == boxes[1]["y"]  # the scale is one line
        right = [label.bounding_box() for label in page.locator("fieldset label").all()]
        assert max(box["x"] + box["width"] for box in right) <= width
        page.locator("#likert-B-6").focus()
        page.keyboard.press("Space")
        page.keyboard.press("Enter")  # with fields missing
        page.wait_for_selector(".problems")
        assert page.locator(".problems li").count() == 9 + 8
        assert page.locator("#likert-B-6").is_checked()
        for letter in "ABCDEFGHI":
            page.locator(f"#likert-{letter}-4").check()
            page.locator(f"#rank-{letter}-{'ABCDEFGHI'.index(letter) // 2 + 1}").check()
        page.keyboard.press("Enter")
        page.wait_for_selector("text=Task 1 is saved")
        page.click("text=Change it")
        assert page.locator("#rank-I-5").is_checked()
    with opened(project) as store:
        (kept,) = store.judgments()
    assert [kept.verdict.ranks[i] for i in kept.shown] == [1, 1, 2, 2, 3, 3, 4, 4, 5]


def test_text_of_a_model_changes_nothing_in_the_browser(
    browser: sync_api.Browser, tmp_path: Path
) -> None:
    hostile = [
        "</pre></article><script>document.title = 'owned'</script><img src=x onerror=alert(1)>",
        "\u202eevil\u2066 \u0007\x1b[2J" + "x" * 100_000,
        "<a href='javascript:alert(1)'>click</a><form action='https://evil.example'>",
    ]
    project = made(tmp_path, [{"id": 1, "prompt": hostile[0], "completions": hostile}])
    (token,) = invited(project, "ann")
    with served(project) as address:
        page = browser.new_page()
        seen: list[str] = []
        page.on("dialog", lambda dialog: seen.append(dialog.message))
        page.on("request", lambda request: seen.append(request.url))
        page.on("console", lambda message: seen.append(message.text))
        page.goto(f"{address}/enter/{token}")
        page.click("text=Start")
        page.wait_for_load_state("load")
        assert page.title() == "Task 1"
        assert [url for url in seen if not url.startswith(address)] == []
        assert page.locator("main img, main form form, main pre a, main script").count() == 0
        assert page.locator("article").count() == 3
        assert sorted(_texts(page).values())[0].startswith("</pre>")
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def _adjudicate(browser: sync_api.Browser, address: str, token: str) -> dict[str, list[int]]:
    """Confirm one judgment and write another verdict, by keyboard; returns the final ranks."""
    page = browser.new_page()
    page.goto(f"{address}/enter/{token}")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/review")
    decided = {}
    for confirm in (True, False):
        page.locator("tbody a").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("text=Or decide otherwise")
        page.wait_for_load_state("load")
        texts = _texts(page)
        number = int(next(iter(texts.values())).rstrip(".").split()[-1])
        if confirm:
            rows = page.locator(".columns section").nth(1).locator("tbody tr").all()
            said = {row.locator("td").nth(0).inner_text(): row for row in rows}
            ranks = {
                texts[x]: int(row.locator("td").nth(1).inner_text()) for x, row in said.items()
            }
            while page.evaluate("document.activeElement.value") != "1" or (
                page.evaluate("document.activeElement.name") != "confirm"
            ):
                page.keyboard.press("Tab")
            page.keyboard.press("Enter")
        else:
            ranks = {text: i // 2 + 1 for i, text in enumerate(texts.values())}
            page.locator("#likert-A-1").focus()
            for key in ["4"] * len(texts) + [str(r) for r in ranks.values()] + ["Enter"]:
                page.keyboard.press(key)
        page.wait_for_url("**/review")
        decided[f"t{number}"] = _dense([ranks[text] for text in _answers(number)])
    return decided


def _trained(folder: Path, rankings: Path) -> tuple[int, int]:
    """Pairs apart and tied that a reward model trains on, or is measured on."""
    texts = folder / "texts.txt"
    texts.write_text("\n\n".join(f"Which animal is it? It is a {word}." for word in WORDS))
    shown = folder / "shown.jsonl"
    shown.write_text(
        "".join(json.dumps({"prompt": f"Is it a {w}?", "completion": "Yes."}) + "\n" for w in WORDS)
    )
    model, run = folder / "model", folder / "run"
    words = ("--vocabulary", "300", "--hidden-size", "64", "--layers", "1", "--heads", "2")
    subprocess.run(
        [sys.executable, "-m", "orchestrator.new_model", str(model), "--texts", str(texts), *words],
        check=True,
    )
    subprocess.run(
        [sys.executable, "-m", "orchestrator.run", "+experiment=small_reward_model",
         f"model.checkpoints.sft={model}", f"data.files.rankings={rankings}",
         f"data.files.demonstrations={shown}", "reward_model.prompts_per_step=1",
         "reward_model.optimizer.warmup_steps=1", "reward_model.bias_demonstrations=2",
         "data.heldout_fraction=.1", f"run.dir={run}"],
        check=True,
    )  # fmt: skip
    account = json.loads((run / "summary.json").read_text())["data"]["rankings"]
    return account["train_pairs"] + account["heldout_pairs"], account["tied_pairs"]
