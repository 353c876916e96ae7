"""People in a page: the run stops with their tasks made, and goes on with what they said."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config.schema import Config
from orchestrator.process.program import invocation
from orchestrator.stages.labels.labeler import Labeler, Verdict, Verdicts
from workers.data.formats.jsonl_file import scan_jsonl
from workers.data.formats.line import Line
from workers.errors import DataLineError, WaitingError

if TYPE_CHECKING:
    from orchestrator.session.session import Session
    from orchestrator.stages.labels.tasks import Task

_OTHER = "export the project that was made of the tasks of this run and round"


def _rank(session: Session, stage: str, tasks: Sequence[Task]) -> Verdicts:
    path = session.folder.labels_of(stage)
    if not path.exists():
        raise _waiting(session, stage, len(tasks))
    found = read_export(path, tasks)
    ranked = {verdict.task for verdict in found}
    left = {n: "nobody ranked them" for n in range(len(tasks)) if n not in ranked}
    return Verdicts(found, left)


def _waiting(session: Session, stage: str, number: int) -> WaitingError:
    folder = session.folder
    project = folder.path / f"{stage}.db"
    label, run = invocation("label", "orchestrator.label"), invocation("run", "orchestrator.run")
    commands = (
        f"{label} make {_q(project)} {_q(folder.tasks_of(stage))}",
        f"{label} invite {_q(project)} NAME ...",
        f"{label} serve {_q(project)}",
        f"{label} status {_q(project)}",
        f"{label} export {_q(project)} {_q(folder.labels_of(stage))}",
        f"{run} resume={_q(folder.path)}",
    )
    return WaitingError(
        f"{stage} waits for people to rank {number:,} prompts' answers; everything is saved",
        where=str(folder.tasks_of(stage)),
        fix="let them rank, export, and go on:" + "".join(f"\n    {each}" for each in commands),
    )


def _q(path: Path) -> str:
    return shlex.quote(str(path))


def read_export(path: Path, tasks: Sequence[Task]) -> list[Verdict]:
    """The verdicts of a file that `python -m orchestrator.label export` wrote.

    Args:
        path: The file.
        tasks: Those that people had, in the order of the result's places.

    Raises:
        DataLineError: a line is no ranking, or one of other prompts or answers than the tasks'.
    """
    places = {str(task.prompt.id): n for n, task in enumerate(tasks)}
    found: list[Verdict] = []
    for line in scan_jsonl(str(path)):
        if isinstance(line, DataLineError):
            raise line
        found.append(_verdict(line.without_nulls(), places, tasks))
    return found


def _verdict(line: Line, places: Mapping[str, int], tasks: Sequence[Task]) -> Verdict:
    name = line.name("id")
    if name not in places:
        line.fail(f'"id" is {name!r}, and the run has no such task', _OTHER)
    task = tasks[places[name]]
    if line.texts("completions") != task.texts:
        line.fail(f"the answers are others than those of task {name}", _OTHER)
    ranks = [line.optional_rank(rank, f"ranks[{i}]") for i, rank in enumerate(line.list("ranks"))]
    given = tuple(rank for rank in ranks if rank is not None)
    if len(given) != len(task.texts):
        line.fail(f'"ranks" has {len(given)} ranks for {len(task.texts)} answers')
    return Verdict(places[name], given, line.name("annotator"), _likert(line, len(given)))


def _likert(line: Line, count: int) -> tuple[int, ...] | None:
    """The quality of each answer; None where somebody, such as a majority, rated none."""
    if "likert" not in line.fields:
        return None
    given = [line.optional_rank(each, f"likert[{i}]") for i, each in enumerate(line.list("likert"))]
    rated = tuple(each for each in given if each is not None)
    if len(rated) != count or not all(each <= 7 for each in rated):
        line.fail('"likert" must have a number from 1 to 7 for each answer')
    return rated


def _check(config: Config, where: str) -> None:
    """Nothing can be wrong before they have ranked."""
    del config, where


LABELER = Labeler(_rank, _check)
