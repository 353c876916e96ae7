"""Many labelers at the same time, and a server that is killed: nothing is lost or asked twice."""

from __future__ import annotations

import random
import socket
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from fakes.labeling import Form, Person, invited, made, served, started

from orchestrator.label.store import opened

pytestmark = pytest.mark.slow
Said = dict[tuple[int, str], tuple[int, ...]]  # task and labeler -> ranks in the order of the page


class Worker(threading.Thread):
    """A labeler who judges until nothing is left; retries while the server is away."""

    def __init__(self, address: str, name: str, token: str, think: float) -> None:
        super().__init__(name=name)
        self.address, self.token, self.think = address, token, think
        self.acknowledged: Said = {}
        self.seconds: list[float] = []
        self.failed: list[str] = []
        self._rng = random.Random(name)

    def run(self) -> None:
        with httpx.Client(base_url=self.address, timeout=60) as client:
            client.cookies.set("rehearsal_label", self.token)
            person = Person(client)
            while self._one(person):
                pass

    def _one(self, person: Person) -> bool:
        try:
            began = time.perf_counter()
            page = person.client.get("/task")
            self.seconds.append(time.perf_counter() - began)
            form = Form(page.text) if 'id="judge"' in page.text else None
            if form is None:
                return False
            time.sleep(self._rng.expovariate(1 / self.think))
            ranks = {letter: self._rng.randint(1, len(form.texts)) for letter in form.texts}
            fields = {"proof": form.proof}
            for letter, rank in ranks.items():
                fields |= {f"rank-{letter}": str(rank), f"likert-{letter}": "4"}
            began = time.perf_counter()
            answer = person.send(form.action, fields)
            self.seconds.append(time.perf_counter() - began)
        except httpx.TransportError:
            time.sleep(0.05)
            return True
        if answer.status_code == 303:
            self.acknowledged[form.task, self.name] = tuple(ranks.values())
        else:
            self.failed.append(answer.text)
        return not self.failed


def _kept(project: Path) -> Said:
    with opened(project) as store:
        names = {each.id: each.name for each in store.labelers()}
        return {
            (j.task, names[j.labeler]): tuple(j.verdict.ranks[i] for i in j.shown)
            for j in store.judgments()
        }


def _dense(ranks: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(ranks)).index(rank) + 1 for rank in ranks)


def _tasks(count: int) -> list[dict]:
    return [
        {"id": n, "prompt": f"{n}?", "completions": [f"{n} {i}" for i in range(4)]}
        for n in range(count)
    ]


def test_forty_labelers_judge_fifty_tasks_each(tmp_path: Path) -> None:
    project = made(tmp_path, _tasks(2000))
    names = [f"l{n}" for n in range(40)]
    tokens = invited(project, *names)
    with served(project) as address:
        workers = [Worker(address, n, t, 1.0) for n, t in zip(names, tokens, strict=True)]
        for each in workers:
            each.start()
        for each in workers:
            each.join()
    said: Said = {}
    for each in workers:
        assert not each.failed
        said |= each.acknowledged
    times = sorted(t for each in workers for t in each.seconds)
    sys.stdout.write(f"requests {len(times)}, median {times[len(times) // 2] * 1e3:.1f} ms, "
          f"p95 {times[int(0.95 * len(times))] * 1e3:.1f} ms\n")  # fmt: skip
    assert _kept(project) == {key: _dense(ranks) for key, ranks in said.items()}
    assert sorted(task for task, _ in said) == list(range(1, 2001))


def test_every_acknowledged_judgment_outlives_a_killed_server(tmp_path: Path) -> None:
    project = made(tmp_path, _tasks(4000), "--overlap", ".2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ["ann", "ben", "eve", "dan"]
    tokens = invited(project, *names)
    rng = random.Random(5)
    address = f"http://127.0.0.1:{port}"
    workers = [Worker(address, n, t, 0.005) for n, t in zip(names, tokens, strict=True)]
    for each in workers:
        each.start()
    for _ in range(20):
        process, _ = started(project, "--port", str(port))
        time.sleep(rng.uniform(0.2, 1.2))
        process.kill()
        process.wait()
    with opened(project) as store:  # nobody may ask any more
        for name in names:
            with store.transaction():
                store.revoke(name)
    with served(project, "--port", str(port)):
        for each in workers:
            each.join(60)
    acknowledged: Said = {}
    for each in workers:
        acknowledged |= each.acknowledged
    kept = _kept(project)
    lost = {key for key, ranks in acknowledged.items() if kept.get(key) != _dense(ranks)}
    sys.stdout.write(f"{len(acknowledged)} acknowledged, {len(kept)} kept, {len(lost)} lost\n")
    assert len(acknowledged) > 100
    assert not lost
    with opened(project) as store:
        needed = {task.id: task.needed for task in store.tasks()}
    given: dict[int, int] = {}
    for task, _ in kept:
        given[task] = given.get(task, 0) + 1
    assert all(count <= needed[task] for task, count in given.items())
