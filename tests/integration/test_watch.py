"""The live view of a real run, while it goes on and afterwards, in a browser if there is one."""

from __future__ import annotations

import html
import json
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

CHROMIUM = next(
    (p for p in ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
     if Path(p).exists()), "",
)  # fmt: skip
PAGES = ("/", "/metrics", "/rollouts", "/health", "/log")


@contextmanager
def watched(folder: Path) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.watch", str(folder), "--port", "0"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 60)[0]
        yield process.stdout.readline().split()[0]
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()


def seen(address: str, path: str, text: str) -> str:
    """The page, once it holds a text."""
    end = time.monotonic() + 30
    while text not in (page := httpx.get(address + path).text):
        assert time.monotonic() < end, f"{path} does not show {text!r}: {page}"
        time.sleep(0.1)
    return page


@pytest.mark.timeout(600)
def test_a_run_is_watched_while_it_goes_on_and_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.run", "+experiment=pocket_tiny", f"run.dir={folder}",
         "samples.all=true"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + 300
        while not (folder / "metrics.jsonl").is_file() or not (folder / "workers.json").is_file():
            assert run.poll() is None
            assert time.monotonic() < end
            time.sleep(0.2)
        with watched(folder) as address:
            page = seen(address, "/health", "<b>running</b>")
            assert f"process {run.pid}" in page
            assert re.search(r"<td>runs</td>", page)
            assert run.wait(500) == 0
            seen(address, "/", "<b>finished</b>")
            _shows_the_whole_run(address, folder)
            if CHROMIUM:
                _fits_the_browser(address)
    finally:
        run.kill()


def _shows_the_whole_run(address: str, folder: Path) -> None:
    lines = (folder / "samples" / "rollouts.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    answers = (folder / "samples" / "answers.jsonl").read_text().splitlines()
    count = len(samples) + sum(len(json.loads(line)["answers"]) for line in answers)
    seen(address, "/rollouts", f"{count:,} of {count:,} recorded sequences")
    assert all(s["tokens"] > 0 and s["dropped"] == "" for s in samples)
    best = max((s for s in samples if s["stage"] == "ppo"), key=lambda s: s["score"])
    page = httpx.get(f"{address}/rollouts?stage=ppo&order=best").text
    assert best["response"] in html.unescape(page[: page.index("</article>")])
    summary = json.loads((folder / "summary.json").read_text())
    seen(address, "/health", f"<td>{summary['ledger']['trained'] // 2:,}</td>")
    seen(address, "/log", "ppo: done")
    for stage in ("pretrain", "sft", "reward_model", "ppo", "ppo_ptx"):
        assert '<figure class="chart">' in httpx.get(f"{address}/metrics?stage={stage}").text


def _fits_the_browser(address: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in (1280, 390):
            page = browser.new_context(viewport={"width": width, "height": 800}).new_page()
            wrong: list[str] = []
            page.on("console", lambda message, wrong=wrong: wrong.append(message.text))
            page.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error)))
            for path in PAGES:
                page.goto(address + path)
                assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            page.goto(f"{address}/rollouts")
            page.fill("input[name=text]", "the")
            page.select_option("select[name=order]", "long")
            page.keyboard.press("Enter")
            page.click("text=all responses to this prompt >> nth=0")
            assert page.locator("article").count() >= 1
            page.click("text=whole >> nth=0")
            assert "Sequence" in page.title()
            assert wrong == []
        browser.close()
