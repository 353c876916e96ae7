"""The reports of four kinds of runs in a browser: no error, no dead link, no sideways scrolling."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
WIDTHS = (1280, 390)
KINDS = ("demo", "sft", "reward_model", "ppo_files")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no Chromium"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four finished runs; the first trains the models that the others begin with."""
    home = tmp_path_factory.mktemp("runs")
    prompts = home / "prompts.jsonl"
    lines = [{"prompt": f"user : what is {n % 5} ? reply :", "id": n} for n in range(60)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    models = home / "demo" / "checkpoints"
    base, sft = (
        f"model.checkpoints.base={models / 'base'}",
        f"model.checkpoints.sft={models / 'sft'}",
    )
    _run(home / "demo", "+experiment=pocket_tiny")
    _run(home / "sft", "+experiment=pocket_tiny", "stages=[sft]", base)
    _run(home / "reward_model", "+experiment=pocket_tiny", "stages=[reward_model]", base, sft)
    _run(
        home / "ppo_files", "+experiment=small_ppo", sft, f"data.files.prompts={prompts}",
        f"model.checkpoints.reward_model={models / 'reward_model'}", "data.chat_template=auto",
        "data.files.max_prompt_tokens=32", "data.files.max_completion_tokens=16",
        "rollout.max_prompt_tokens=32", "rollout.max_response_tokens=16", "algorithm.iterations=3",
        "algorithm.prompts_per_iteration=16", "algorithm.evaluation_prompts=4",
        "evaluate.prompts=4",
    )  # fmt: skip
    return home


def _run(folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "orchestrator.run", *words, f"run.dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.timeout(1200)
def test_pages_are_whole_at_both_widths(runs: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for kind in KINDS:
            for width in WIDTHS:
                page = browser.new_page(viewport={"width": width, "height": 900})
                said: list[str] = []
                page.on("console", lambda message, said=said: said.append(message.text))
                page.on("pageerror", lambda error, said=said: said.append(str(error)))
                page.goto((runs / kind / "report.html").as_uri())
                _check(page, kind, width)
                assert said == [], (kind, width)
                page.close()
        browser.close()


def _check(page, kind: str, width: int) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= width, (kind, width)
    links = page.eval_on_selector_all("a[href]", "all => all.map((a) => a.getAttribute('href'))")
    assert "#results" in links
    for link in links:
        assert link.startswith("#"), link
        assert page.query_selector(f"section{link}") is not None, (kind, link)
    columns = page.evaluate(
        "new Set([...document.querySelectorAll('figure')].map(f => Math.round(f.offsetLeft))).size"
    )
    assert (columns == 1) is (width == 390)
    page.hover("figure.chart > svg >> nth=0")
    assert page.text_content("figure.chart figcaption >> nth=0").rstrip()[-1].isdigit()
    if kind in ("demo", "ppo_files"):
        assert page.text_content("#count")
