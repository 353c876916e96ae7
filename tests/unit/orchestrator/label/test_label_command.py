"""The command line: a project from file to file, and what is refused."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.labeling import invited, made

from orchestrator.label.command import main
from orchestrator.label.export import majority
from orchestrator.label.records import FLAGS, Rating, Verdict
from orchestrator.label.schema import connect, serving
from orchestrator.label.store import Store, opened
from orchestrator.pages.address import Address
from workers.errors import ConfigError, DataError

ROWS = [
    {"id": i, "prompt": f"{i}?", "completions": ["a", "b", "c"], "models": ["x", "y", "z"],
     "completion_tokens": [[1], [2], [3]], "source": "s"}
    for i in range(3)
]  # fmt: skip
RATINGS = tuple(Rating(n, dict.fromkeys(FLAGS, False)) for n in (7, 5, 1))


def judged(project: Path, *said: tuple[str, int, tuple[int, ...]]) -> None:
    """Judgments (labeler, task, ranks) of people who are invited."""
    with opened(project) as store, store.transaction():
        ids = {each.name: each.id for each in store.labelers()}
        for name, task, ranks in said:
            store.judge(task, ids[name], Verdict(ranks, RATINGS), (2, 1, 0), 30.0)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    made_ = made(tmp_path, ROWS, "--overlap", "1", "--judgments", "3")
    invited(made_, "ann", "ben", "eve")
    invited(made_, "cleo", role="reviewer")
    judged(made_, ("ann", 1, (1, 2, 3)), ("ben", 1, (1, 3, 2)), ("eve", 1, (2, 1, 2)),
           ("ann", 2, (1, 1, 2)))  # fmt: skip
    with opened(made_) as store, store.transaction():
        store.adjudicate(2, 4, Verdict((3, 2, 1), RATINGS))
    return made_


def exported(project: Path, *options: str) -> list[dict]:
    path = project.with_name("out.jsonl")
    assert main(["export", str(project), str(path), *options]) == 0
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_export_has_one_line_per_judgment_and_the_final_verdict(project: Path) -> None:
    lines = exported(project)
    assert [(x["id"], x["annotator"], x["ranks"], x["resolved"]) for x in lines] == [
        ("0", "ann", [1, 2, 3], "judgment"), ("0", "ben", [1, 3, 2], "judgment"),
        ("0", "eve", [2, 1, 2], "judgment"), ("1", "cleo", [3, 2, 1], "adjudicated"),
    ]  # fmt: skip
    assert lines[0]["completion_tokens"] == [[1], [2], [3]]
    assert lines[0]["models"] == ["x", "y", "z"]
    assert lines[0]["likert"] == [7, 5, 1]
    assert lines[0]["likert_conflict"] is False
    assert lines[3]["likert_conflict"] is True
    assert list(lines[0]["flags"][0]) == list(FLAGS)


def test_all_judgments_or_one_per_task(project: Path) -> None:
    every = exported(project, "--resolve", "all")
    assert [(x["id"], x["ranks"]) for x in every][3] == ("1", [1, 1, 2])
    most = exported(project, "--resolve", "majority")
    assert [(x["id"], x["annotator"], x["ranks"]) for x in most] == [
        ("0", "majority", [1, 2, 3]), ("1", "cleo", [3, 2, 1]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rankings", "expected"),
    [
        ([(1, 2, 3), (1, 3, 2), (2, 1, 2)], (1, 2, 3)),  # by hand: a>b 2:1, a>c 2:0, b>c 2:1
        ([(1, 2), (2, 1)], (1, 1)),
        ([(1, 2, 3), (2, 3, 1), (3, 1, 2)], (1, 1, 1)),  # a circle
    ],
)
def test_the_majority_of_each_pair(rankings: list, expected: tuple) -> None:
    assert majority(rankings) == expected


def test_status_tells_progress_and_agreement(project: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["status", str(project)]) == 0
    said = capsys.readouterr().out
    assert "1 of 3 tasks are done: 4 of 9 judgments; 0 skipped, 0 flagged, 1 adjudicated" in said
    # pairs ab, ac, bc: ann <<<, ben <<>, eve >=<; ann-ben agree on 2, ann-eve on 1, ben-eve on 0
    assert "labelers agree on 33.3% of pairs" in said
    assert main(["status", str(project), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agreement"]["judgements"] == 9


def test_links_are_shown_once_and_kept_as_hashes(
    project: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["invite", str(project), "dan", "--reviewer", "ida"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in lines] == ["dan", "ida"]
    tokens = [link.rpartition("/enter/")[2] for _, link in lines]
    with opened(project) as store:
        found = [store.labeler(token) for token in tokens]
    assert [(f.name, f.role) for f in found if f] == [("dan", "labeler"), ("ida", "reviewer")]
    log = project.with_name("tasks.db-wal")
    content = project.read_bytes() + (log.read_bytes() if log.exists() else b"")
    assert not any(token.encode() in content for token in tokens)
    assert main(["invite", str(project), "dan"]) == 2
    assert main(["invite", str(project), "dan", "--renew"]) == 0
    assert main(["invite", str(project), "--revoke", "ida"]) == 0
    with opened(project) as store:
        assert [store.labeler(token) for token in tokens] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["make", "P", "T"], 2),  # is there already
        (["make", "NEW", "NONE"], 3),
        (["make", "nowhere/x.db", "T"], 2),
        (["make", "NEW", "T", "--compare", "a"], 2),
        (["make", "NEW", "T", "--overlap", "2"], 2),
        (["make", "NEW", "T", "--judgments", "6"], 2),
        (["make", "NEW", "T", "--order", "uncertain"], 3),
        (["make", "NEW", "T", "--instructions", "NONE"], 2),
        (["invite", "P"], 2),
        (["invite", "P", "a b"], 2),
        (["invite", "P", "--revoke", "nobody"], 2),
        (["status", "NONE"], 2),
        (["status", "T"], 3),
        (["export", "EMPTY", "out.jsonl"], 3),
        (["serve", "P", "--host", "0.0.0.0"], 2),
        (["serve", "P", "--port", "70000"], 2),
        (["serve", "P", "--tls-cert", "T"], 2),
        (["serve", "P", "--lease-minutes", "0"], 2),
        (["serve", "P", "--url", "labels"], 2),
    ],
)
def test_bad_input_ends_in_a_message(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], code: int
) -> None:
    (tmp_path / "empty").mkdir()
    empty = made(tmp_path / "empty", ROWS)
    names = {"P": project, "T": tmp_path / "tasks.jsonl", "NEW": tmp_path / "new.db",
             "NONE": tmp_path / "none", "EMPTY": empty}  # fmt: skip
    assert main([str(names.get(word, word)) for word in arguments]) == code
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "new.db").exists()


def test_a_second_server_and_a_newer_file_are_refused(project: Path) -> None:
    with serving(project), pytest.raises(ConfigError, match="another server"), serving(project):
        pass
    with sqlite3.connect(project) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="version 99"):
        connect(project)
    other = project.with_name("other.db")
    sqlite3.connect(other).execute("CREATE TABLE t (a)")
    with pytest.raises(DataError, match="no labeling project"):
        connect(other)


def test_a_project_is_written_to_the_disk_at_each_commit(project: Path) -> None:
    connection = connect(project)
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert connection.execute("PRAGMA foreign_keys").fetchone()[0] == 1


def test_of_writes_in_one_commit_only_the_failed_is_undone(project: Path) -> None:
    store = Store(connect(project))
    with store.transaction():
        assert store.attempt(lambda s: s.skip(3, 1, "", flagged=False)) is None
        assert isinstance(store.attempt(lambda s: s.skip(99, 1, "", flagged=False)), Exception)
        assert store.attempt(lambda s: s.skip(3, 2, "", flagged=False)) is None
    assert [(p.task, p.labeler) for p in store.passes()] == [(3, 1), (3, 2)]


def test_names_of_hosts_that_are_ours() -> None:
    assert Address().hosts(8711) == ["127.0.0.1:8711", "[::1]:8711", "localhost:8711"]
    behind = Address(url="https://labels.example.org")
    assert "labels.example.org" in behind.hosts(8711)
    assert behind.base(8711) == "https://labels.example.org"


def test_the_command_loads_no_framework() -> None:
    code = (
        "import sys, orchestrator.label.command\n"
        "print([m for m in ('torch', 'ray', 'vllm', 'transformers', 'hydra', 'matplotlib')"
        " if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": "."},
                         capture_output=True, text=True, check=True)  # fmt: skip
    assert run.stdout.strip() == "[]"
