"""People who label: projects, a server in another process, and labelers without a browser."""

from __future__ import annotations

import html
import json
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from orchestrator.label.command import main
from orchestrator.label.store import opened

_START_SECONDS, _END_SECONDS = 60.0, 30.0


def made(folder: Path, rows: Sequence[dict[str, Any]], *options: str) -> Path:
    """A project of these tasks."""
    tasks, project = folder / "tasks.jsonl", folder / "tasks.db"
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["make", str(project), str(tasks), *options]) == 0
    return project


def invited(project: Path, *names: str, role: Any = "labeler") -> list[str]:
    """Links of new people: their secrets."""
    with opened(project) as store, store.transaction():
        return [store.invite(name, role) for name in names]


def started(project: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """A server in another process, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.label", "serve", str(project), "--port", "0",
         *options],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
    line = process.stdout.readline() if ready else ""
    if not line.startswith("http"):
        process.kill()
        raise AssertionError(f"the server did not start: {line!r}")
    return process, line.split()[0]


@contextmanager
def served(project: Path, *options: str) -> Iterator[str]:
    """The address of a server that ends with the block."""
    process, address = started(project, *options)
    try:
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(_END_SECONDS) == 0
        finally:
            process.kill()


class Person:
    """A labeler who fills in the forms of the pages over HTTP."""

    def __init__(self, client: httpx.Client, token: str = "") -> None:
        self.client = client  # without a token it has the cookie already
        if not token:
            return
        answer = client.post("/enter", data={"token": token})
        assert answer.status_code == 303, answer.text

    def page(self, path: str = "/task") -> Form | None:
        """The form of the next task; None when there is none."""
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return Form(answer.text) if 'id="judge"' in answer.text else None

    def send(self, path: str, fields: dict[str, str]) -> httpx.Response:
        return self.client.post(path, data=fields)


class Form:
    """The form of a page."""

    def __init__(self, page: str) -> None:
        self.page = page
        self.action = _one(r'<form method="post" action="([^"]*)" id="judge"', page)
        self.task = int(self.action.rpartition("/")[2])
        self.proof = _one(r'name="proof" value="([0-9a-f]+)"', page)
        found = re.findall(
            r'<h2 id="answer-([A-I])">.*?<pre class="text" dir="auto">\n(.*?)</pre>', page, re.S
        )
        self.texts = {letter: html.unescape(text) for letter, text in found}

    def filled(self, ranks: dict[str, int], likert: dict[str, int]) -> dict[str, str]:
        """The fields that rank answers, given by their texts."""
        fields = {"proof": self.proof}
        for letter, text in self.texts.items():
            fields[f"rank-{letter}"] = str(ranks[text])
            fields[f"likert-{letter}"] = str(likert[text])
        return fields


def _one(pattern: str, page: str) -> str:
    found = re.search(pattern, page)
    assert found, f"{pattern} is not in the page"
    return found[1]
