"""The driver's state of a run, as stored in a checkpoint and restored from it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.checkpoints import model_folder
from orchestrator.config.run import StageName
from orchestrator.planning.runs.expand import stage_of
from orchestrator.planning.runs.stage_run import whole
from orchestrator.planning.stage_graph import RANKING_STAGES
from orchestrator.results.findings import Findings
from orchestrator.run_files.dataclass_json import from_plain
from workers.process.disk import writing

if TYPE_CHECKING:
    from orchestrator.session.session import Session

LABEL = StageName.label


def capture(session: Session, stage: str, step: int, own: Mapping[str, Any]) -> dict[str, Any]:
    """Everything a resume needs beside the trainers' state; flushes all records to disk."""
    home = session.folder.path
    return {
        "stage": stage,
        "step": step,
        "own": dict(own),
        "finished": list(session.saves.finished),
        "scores": session.saves.scores.state(),
        "counters": session.counters(),
        "amends": session.corrections.state(),
        "seconds": time.monotonic() - session.started,
        "checkpoints": {name: str(path.relative_to(home)) for name, path in _made(session).items()},
        "findings": asdict(session.findings),
        "telemetry": session.telemetry.state(),
        "appended": session.telemetry.sync() | _settle_samples(session),
    }


def apply(session: Session, progress: Mapping[str, Any]) -> None:
    """Restore a captured state into a new session."""
    _apply_results(session, progress)
    session.started -= progress["seconds"]
    session.telemetry.restore(progress["telemetry"])


def go_back(session: Session, progress: Mapping[str, Any]) -> None:
    """Restore a captured state into the session that captured it; time spent since still counts."""
    session.telemetry.forget_open_steps()
    session.folder.reopen(progress["appended"])
    _apply_results(session, progress)


def _apply_results(session: Session, progress: Mapping[str, Any]) -> None:
    session.restore_counters(progress["counters"])
    session.corrections.restore(progress["amends"])
    for name, path in progress["checkpoints"].items():
        session.checkpoints[name] = str(session.folder.path / path)
    session.findings = from_plain(Findings, progress["findings"])


def products(session: Session, stage: str) -> list[Path]:
    """The files outside a checkpoint that it needs: manifests of finished stages' models."""
    files = [path / model_folder.MANIFEST for path in _made(session).values()]
    run = session.run
    kind = run.stage if run and run.name == stage else stage
    if kind in RANKING_STAGES and session.folder.rankings.exists():
        files.append(session.folder.rankings)
    return files + _labels(session, stage) + _revisions(session, stage)


def _labels(session: Session, stage: str) -> list[Path]:
    """What the stage runs of `label` made so far; the current one perhaps only its tasks."""
    run, folder = session.run, session.folder
    names = [n for n in session.saves.finished if stage_of(whole(session.config), n) is LABEL]
    made = [folder.rankings_of(name) for name in names]
    if run and run.stage is LABEL and run.name == stage:
        made += [f for f in (folder.tasks_of(stage), folder.rankings_of(stage)) if f.exists()]
    return made


def _revisions(session: Session, stage: str) -> list[Path]:
    """What the stage runs of `constitution` made so far, round by round."""
    run, folder, kind = session.run, session.folder, StageName.constitution
    names = [n for n in session.saves.finished if stage_of(whole(session.config), n) is kind]
    if run and run.stage is kind and run.name == stage:
        names.append(stage)
    return [f for name in names for f in sorted(folder.samples.glob(f"{name}_revisions_*.jsonl"))]


def _made(session: Session) -> dict[str, Path]:
    """The models that this run trained; given ones are in other folders."""
    home = session.folder.checkpoints
    paths = {name: Path(path) for name, path in session.checkpoints.items()}
    return {name: path for name, path in paths.items() if path.parent == home}


def _settle_samples(session: Session) -> dict[str, int]:
    """Flush the samples to disk; returns the size in bytes of each append-only file."""
    folder = session.folder
    sizes: dict[str, int] = {}
    with writing(folder.samples, "the samples"):
        file = folder.rollouts
        if file.exists():
            model_folder.flush(file)
        sizes[str(file.relative_to(folder.path))] = file.stat().st_size if file.exists() else 0
        model_folder.flush(folder.samples)  # the directory, for the names of new files
    return sizes
