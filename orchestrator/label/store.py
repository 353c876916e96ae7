"""Reading and writing a labeling project: plain statements, no decisions."""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.label.queue import Waiting
from orchestrator.label.records import (
    Adjudication,
    Answer,
    Judgment,
    Labeler,
    Pass,
    Rating,
    Role,
    Task,
    Verdict,
)
from orchestrator.label.schema import connect, created
from workers.errors import ConfigError

_LATEST = """FROM judgment AS j WHERE revision =
    (SELECT max(revision) FROM judgment WHERE task = j.task AND labeler = j.labeler)"""


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    """A project, closed at the end of the block."""
    store = Store(connect(path))
    try:
        yield store
    finally:
        store.close()


def make(path: Path, tasks: Sequence[Task], settings: dict[str, str]) -> None:
    """Write a new project.

    Raises:
        ConfigError: there is a file of this name.
    """
    rows = [
        (
            t.id, t.kind, t.name, _dumped(t.prompt), _dumped([_answer(a) for a in t.answers]),
            None if t.gold is None else _dumped(t.gold), t.needed, t.priority, t.source,
        )
        for t in tasks
    ]  # fmt: skip
    with created(path) as connection:
        connection.executemany("INSERT INTO project VALUES (?, ?)", settings.items())
        connection.executemany("INSERT INTO task VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", [
            (i, kind, name, prompt, answers, gold, needed, priority, source)
            for i, kind, name, prompt, answers, gold, needed, priority, source in rows
        ])  # fmt: skip


class Store:
    """An open project. One object per thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes of the block together, or none; on the disk when the block ends."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def attempt(self, work: Callable[[Store], object]) -> Exception | None:
        """Run `work` inside a transaction; if it fails, its writes are undone and not the others.

        Returns:
            Its exception, or None.
        """
        self._db.execute("SAVEPOINT one")
        try:
            work(self)
        except Exception as error:  # noqa: BLE001  handed to the caller that asked for the work
            self._db.execute("ROLLBACK TO one")
            return error
        finally:
            self._db.execute("RELEASE one")
        return None

    def setting(self, key: str) -> str:
        """A setting of the project."""
        return self._db.execute("SELECT value FROM project WHERE key = ?", (key,)).fetchone()[0]

    # tasks

    def task(self, number: int) -> Task | None:
        """A task by its number."""
        found = self._db.execute("SELECT * FROM task WHERE id = ?", (number,)).fetchone()
        return _task(found) if found else None

    def tasks(self) -> list[Task]:
        """All tasks."""
        return [_task(row) for row in self._db.execute("SELECT * FROM task ORDER BY id")]

    def waiting(self) -> list[Waiting]:
        """All tasks as the queue sees them."""
        rows = self._db.execute("SELECT id, needed, priority, gold IS NOT NULL FROM task")
        found = {i: Waiting(i, needed, priority, bool(gold)) for i, needed, priority, gold in rows}
        for task, labeler in self._db.execute("SELECT DISTINCT task, labeler FROM judgment"):
            found[task].judged.add(labeler)
        return list(found.values())

    def given(self) -> list[tuple[int, int]]:
        """Labeler and task of each task that is being worked on."""
        return self._db.execute("SELECT labeler, task FROM given").fetchall()

    def give(self, labeler: int, task: int) -> None:
        """Note which task a labeler has, and since when."""
        self._db.execute(
            "INSERT INTO given VALUES (?, ?, ?) ON CONFLICT (labeler) DO UPDATE SET "
            "task = excluded.task, at = excluded.at WHERE task <> excluded.task",
            (labeler, task, now()),
        )

    def given_at(self, labeler: int, task: int) -> str | None:
        """When a labeler got a task; None if this is not the labeler's task now."""
        found = self._db.execute(
            "SELECT at FROM given WHERE labeler = ? AND task = ?", (labeler, task)
        ).fetchone()
        return found[0] if found else None

    # people

    def invite(self, name: str, role: Role, *, renew: bool = False) -> str:
        """Add a person; returns the secret of the link, of which only a hash is kept.

        Args:
            name: Unique.
            role: What the person may do.
            renew: Replace the link of somebody who is there.

        Raises:
            ConfigError: the name is taken, or there is nobody of this name to renew.
        """
        token = secrets.token_urlsafe(24)
        known = self._db.execute("SELECT id FROM labeler WHERE name = ?", (name,)).fetchone()
        if renew and not known:
            raise ConfigError(
                f"nobody is called {name!r}", where="--renew", fix="invite them first"
            )
        if known and not renew:
            raise ConfigError(
                f"{name!r} has a link already", where="invite",
                fix="choose another name, or make a new link by --renew",
            )  # fmt: skip
        if renew:
            statement = "UPDATE labeler SET token_sha256 = ?, active = 1 WHERE name = ?"
            self._db.execute(statement, (hashed(token), name))
        else:
            self._db.execute(
                "INSERT INTO labeler (name, token_sha256, role, active) VALUES (?, ?, ?, 1)",
                (name, hashed(token), role),
            )
        return token

    def revoke(self, name: str) -> None:
        """Make a person's link invalid; what the person said stays.

        Raises:
            ConfigError: there is nobody of this name.
        """
        if not self._db.execute("UPDATE labeler SET active = 0 WHERE name = ?", (name,)).rowcount:
            raise ConfigError(f"nobody is called {name!r}", where="--revoke", fix="see `status`")

    def labeler(self, token: str) -> Labeler | None:
        """Whose link this is; None if nobody's."""
        found = self._db.execute(
            "SELECT id, name, role, active FROM labeler WHERE token_sha256 = ? AND active = 1",
            (hashed(token),),
        ).fetchone()
        return Labeler(found[0], found[1], found[2], bool(found[3])) if found else None

    def labelers(self) -> list[Labeler]:
        """All people, in the order in which they were invited."""
        rows = self._db.execute("SELECT id, name, role, active FROM labeler ORDER BY id")
        return [Labeler(i, name, role, bool(active)) for i, name, role, active in rows]

    # judgments

    def judge(
        self, task: int, labeler: int, verdict: Verdict, shown: Sequence[int], seconds: float
    ) -> None:
        """Keep a judgment as a new revision, unless it says the same as the last one."""
        last = self.judgment(task, labeler)
        if last is not None and last.verdict == verdict:
            return
        self._db.execute(
            "INSERT INTO judgment VALUES (?, ?, ?, ?, ?, ?, ?)",
            (task, labeler, last.revision + 1 if last else 1, _dumped(asdict(verdict)),
             _dumped(list(shown)), seconds, now()),
        )  # fmt: skip
        self._db.execute("DELETE FROM pass WHERE task = ? AND labeler = ?", (task, labeler))
        self._db.execute("DELETE FROM given WHERE task = ? AND labeler = ?", (task, labeler))

    def judgment(self, task: int, labeler: int) -> Judgment | None:
        """The last revision of a labeler's judgment of a task."""
        found = self._db.execute(
            "SELECT * FROM judgment WHERE task = ? AND labeler = ? ORDER BY revision DESC LIMIT 1",
            (task, labeler),
        ).fetchone()
        return _judgment(found) if found else None

    def judgments(self) -> list[Judgment]:
        """The last revision of every judgment, by task and labeler."""
        rows = self._db.execute(f"SELECT * {_LATEST} ORDER BY task, labeler")
        return [_judgment(row) for row in rows]

    def judgments_of(self, task: int) -> list[Judgment]:
        """The last revision of every judgment of a task."""
        rows = self._db.execute(f"SELECT * {_LATEST} AND task = ? ORDER BY labeler", (task,))
        return [_judgment(row) for row in rows]

    def history(self, labeler: int, most: int) -> list[Judgment]:
        """The newest judgments of a labeler, the newest first."""
        rows = self._db.execute(
            f"SELECT * {_LATEST} AND labeler = ? ORDER BY at DESC, task DESC LIMIT ?",
            (labeler, most),
        )
        return [_judgment(row) for row in rows]

    def revisions(self) -> int:
        """All rows of judgments, earlier revisions included."""
        return self._db.execute("SELECT count(*) FROM judgment").fetchone()[0]

    def skip(self, task: int, labeler: int, comment: str, *, flagged: bool) -> None:
        """Note that a labeler did not judge a task."""
        self._db.execute(
            "INSERT INTO pass VALUES (?, ?, ?, ?, ?) ON CONFLICT (task, labeler) DO UPDATE SET "
            "flagged = excluded.flagged, comment = excluded.comment, at = excluded.at",
            (task, labeler, int(flagged), comment, now()),
        )
        self._db.execute("DELETE FROM given WHERE task = ? AND labeler = ?", (task, labeler))

    def passes(self) -> list[Pass]:
        """Tasks that labelers skipped or flagged."""
        rows = self._db.execute("SELECT task, labeler, flagged, comment FROM pass ORDER BY 1, 2")
        return [Pass(task, labeler, bool(flag), comment) for task, labeler, flag, comment in rows]

    # adjudication

    def adjudicate(self, task: int, reviewer: int, verdict: Verdict) -> None:
        """Keep a reviewer's final verdict; the last one counts."""
        self._db.execute(
            "INSERT INTO adjudication (task, reviewer, verdict, at) VALUES (?, ?, ?, ?)",
            (task, reviewer, _dumped(asdict(verdict)), now()),
        )

    def adjudications(self) -> dict[int, Adjudication]:
        """The last adjudication of each adjudicated task."""
        rows = self._db.execute("SELECT task, reviewer, verdict, at FROM adjudication ORDER BY id")
        return {
            task: Adjudication(task, reviewer, _verdict(verdict), at)
            for task, reviewer, verdict, at in rows
        }


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def seconds_since(at: str) -> float:
    """Seconds since a time of `now`; 0 if the clock was set back in between."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds())


def hashed(token: str) -> str:
    """What is kept of a token: it is random, so a plain hash cannot be inverted."""
    return hashlib.sha256(token.encode()).hexdigest()


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _answer(answer: Answer) -> dict[str, object]:
    tokens = {"tokens": answer.tokens} if answer.tokens is not None else {}
    return {"text": answer.text, "model": answer.model, **tokens}


def _task(row: tuple) -> Task:
    number, kind, name, prompt, answers, gold, needed, priority, source = row
    return Task(
        number, kind, name, json.loads(prompt),
        tuple(
            Answer(a["text"], a["model"], tuple(a["tokens"]) if "tokens" in a else None)
            for a in json.loads(answers)
        ),
        needed, priority, None if gold is None else tuple(json.loads(gold)), source,
    )  # fmt: skip


def _judgment(row: tuple) -> Judgment:
    task, labeler, revision, verdict, shown, seconds, at = row
    return Judgment(
        task, labeler, revision, _verdict(verdict), tuple(json.loads(shown)), seconds, at
    )


def _verdict(text: str) -> Verdict:
    fields = json.loads(text)
    ratings = tuple(Rating(r["likert"], r["flags"]) for r in fields["ratings"])
    return Verdict(tuple(fields["ranks"]), ratings, fields["strength"], fields["comment"])
