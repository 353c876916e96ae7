"""Judgments as rankings: the file that a reward model trains on, and that an evaluation reads."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

from orchestrator.label.records import Judgment, Task, Verdict, dense
from orchestrator.label.store import Store
from orchestrator.run_files.folder import write_text
from workers.errors import EmptyDatasetError

Resolve = Literal["all", "adjudicated", "majority"]


def export(store: Store, path: Path, resolve: Resolve = "adjudicated") -> int:
    """Write one line per ranking; tasks of known answer are left out.

    Args:
        store: The project.
        path: The file; replaced.
        resolve: all = every labeler's judgment; adjudicated = the same, but of an adjudicated task
            only the reviewer's verdict; majority = one ranking per task, the reviewer's or what
            most labelers say of each pair.

    Returns:
        The number of lines.

    Raises:
        EmptyDatasetError: nobody has judged anything.
        CheckpointError: the disk is full or read-only.
    """
    lines = [json.dumps(line, ensure_ascii=False) for line in _lines(store, resolve)]
    if not lines:
        raise EmptyDatasetError(
            "there is no judgment to export", where=str(path), fix="let people judge tasks first"
        )
    write_text(path, "\n".join(lines) + "\n")
    return len(lines)


def _lines(store: Store, resolve: Resolve) -> Iterator[dict[str, object]]:
    names = {labeler.id: labeler.name for labeler in store.labelers()}
    final = store.adjudications()
    judgments: dict[int, list[Judgment]] = defaultdict(list)
    for judgment in store.judgments():
        judgments[judgment.task].append(judgment)
    for task in store.tasks():
        if task.gold is not None:
            continue
        given = judgments[task.id]
        if task.id in final and resolve != "all":
            decided = final[task.id]
            yield _line(task, decided.verdict, names[decided.reviewer], decided.at, "adjudicated")
        elif resolve == "majority":
            if given:
                ranks = majority([j.verdict.ranks for j in given])
                yield _line(task, Verdict(ranks, ()), "majority", given[-1].at, "majority")
        else:
            for j in given:
                line = _line(task, j.verdict, names[j.labeler], j.at, "judgment")
                yield line | {"shown": list(j.shown), "seconds": j.seconds}


def _line(
    task: Task, verdict: Verdict, annotator: str, at: str, resolved: str
) -> dict[str, object]:
    asked = "prompt" if isinstance(task.prompt, str) else "messages"
    tokens = [answer.tokens for answer in task.answers]
    line: dict[str, object] = {
        "id": task.name,
        asked: task.prompt,
        "completions": [answer.text for answer in task.answers],
        "ranks": list(verdict.ranks),
        "annotator": annotator,
        "resolved": resolved,
        "at": at,
    }
    if all(row is not None for row in tokens):
        line["completion_tokens"] = tokens
    if any(answer.model for answer in task.answers):
        line["models"] = [answer.model for answer in task.answers]
    if verdict.ratings:
        line["likert"] = [rating.likert for rating in verdict.ratings]
        line["flags"] = [rating.flags for rating in verdict.ratings]
        line["likert_conflict"] = verdict.likert_conflict
    optional = {"strength": verdict.strength, "comment": verdict.comment, "source": task.source}
    return line | {name: value for name, value in optional.items() if value}


def majority(rankings: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """One ranking of several: answers by the number of others that most labelers put below them.

    An answer gets 1 for each other that more labelers put below it than above it, and -1 for the
    reverse (A. H. Copeland, 1951); equal sums are ties.
    """
    k = len(rankings[0])
    sums = [0] * k
    for a, b in combinations(range(k), 2):
        margin = sum((r[a] < r[b]) - (r[a] > r[b]) for r in rankings)
        sums[a] += (margin > 0) - (margin < 0)
        sums[b] -= (margin > 0) - (margin < 0)
    return dense([-total for total in sums])
