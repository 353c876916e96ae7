"""How the processes of a run are, as far as its folder and this machine's process table tell.

The beats of workers stay in the memory of the run: what shows here is which processes there are,
when the run last recorded something, what was lost, and where the time of the last step went.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from orchestrator.report.measured import Measured
from orchestrator.run_files.damage import Damage, require_list, verified
from orchestrator.run_files.folder import LOCK, RunFolder
from orchestrator.run_files.lock import holder
from workers.records.processes import RoleInfo

T = TypeVar("T")
_SHOWN = 50  # losses and skipped updates, the newest
_CLOCK_SECONDS = 2.0  # by which a file's time and a process's may differ
_MOST_REQUEST = 4_000  # characters of what a waiting run asks of people


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker, and whether its process is there."""

    info: RoleInfo
    process: str  # "runs", "gone", or "on another machine"
    losses: int


@dataclass(frozen=True, slots=True)
class Loss:
    """A line of losses.jsonl."""

    time: float  # seconds since 1970
    workers: str
    for_good: bool  # the run continued without
    stage: str
    step: int
    error: str


@dataclass(frozen=True, slots=True)
class Culprit:
    """A line of samples/non_finite.jsonl: what made an update not finite."""

    stage: str
    step: int
    what: str
    ids: int


@dataclass(frozen=True, slots=True)
class RoleTime:
    """Where the time of a role's workers went in the newest step, seconds."""

    role: str
    busy: float | None
    transfer: float | None
    waiting: float | None
    idle_share: float | None


@dataclass(frozen=True, slots=True)
class Sequences:
    """The ledger of a PPO stage, summed over its recorded steps."""

    stage: str
    generated: int
    trained: int
    dropped: int
    open: int
    causes: dict[str, int]

    @property
    def settled(self) -> bool:
        """Whether generated = trained + dropped + open."""
        return self.generated == self.trained + self.dropped + self.open


@dataclass(frozen=True, slots=True)
class Health:
    """What the page of the processes shows."""

    workers: list[Worker]
    losses: list[Loss]
    culprits: list[Culprit]
    times: list[RoleTime]
    sequences: list[Sequences]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class State:
    """Whether a run is going on."""

    word: str  # "running", "waiting", "finished", "failed" or "stopped"
    process: int | None  # of the driver, if it is on this machine
    quiet_seconds: float | None  # since the run last wrote a metric
    request: str = ""  # what a waiting run asks of people


def state_of(folder: RunFolder) -> State:
    """Whether a run is going on: it holds the lock of its folder until its process ends."""
    process = holder(folder.path / LOCK)
    quiet = age(folder.metrics)
    if process is not None:
        return State("running", process, quiet)
    if folder.summary.is_file():
        return State("finished", None, quiet)
    return State(folder.ended_early or "stopped", None, quiet, _request(folder))


def _request(folder: RunFolder) -> str:
    """What a waiting run asks of people; "" of others, or if it cannot be read."""
    try:
        with folder.waiting.open(encoding="utf-8", errors="replace") as file:
            return file.read(_MOST_REQUEST).strip()
    except OSError:
        return ""


def age(file: Path) -> float | None:
    """Seconds since a file was written; None if it is not there."""
    try:
        return max(0.0, time.time() - file.stat().st_mtime)  # noqa: TID251  a time of the disk
    except OSError:
        return None


def health_of(folder: RunFolder, measured: Measured) -> Health:
    """Read what the folder tells about the processes of a run."""
    damage = Damage()
    infos = _items(folder.workers, RoleInfo, damage)
    losses = _lines(folder.losses, _loss, damage)
    return Health(
        workers=_workers(folder, infos, losses),
        losses=losses[-_SHOWN:][::-1],
        culprits=_lines(folder.non_finite, _culprit, damage)[-_SHOWN:][::-1],
        times=_times(measured),
        sequences=[_sequences(measured, s) for s in measured.stages()
                   if measured.series(s, "ppo/generated")],
        notes=damage.notes(),
    )  # fmt: skip


def _items(file: Path, kind: Callable[..., T], damage: Damage) -> list[T]:
    text = damage.text(file) if os.path.lexists(file) else None
    if text is None:
        return []
    return damage.part(
        file, "it", lambda: [verified(kind(**item)) for item in require_list(json.loads(text))], []
    )


def _lines(file: Path, make: Callable[[Any], T], damage: Damage) -> list[T]:
    return list(damage.lines(file, make)) if os.path.lexists(file) else []


def _loss(fields: Any) -> Loss:
    lost = fields.get("lost") or [fields["given_up"]]
    return verified(
        Loss(
            float(fields["time"]), ", ".join(map(str, require_list(lost))), "given_up" in fields,
            fields["stage"], fields["step"], fields["error"],
        )
    )  # fmt: skip


def _culprit(fields: Any) -> Culprit:
    ids = require_list(fields["ids"])
    return verified(Culprit(fields["stage"], fields["step"], fields["what"], len(ids)))


def _workers(folder: RunFolder, infos: list[RoleInfo], losses: list[Loss]) -> list[Worker]:
    lost = Counter(name for loss in losses for name in loss.workers.split(", "))
    written = age(folder.workers)
    now = time.time()  # noqa: TID251  compared with the start of processes
    since = now - written if written is not None else now
    return [
        Worker(info, _process(info, since), lost[f"{info.role} rank {info.rank}"]) for info in infos
    ]


def _process(info: RoleInfo, since: float) -> str:
    """Whether the process of a worker is there; one that began later only has its number."""
    if info.node != platform.node():
        return "on another machine"
    try:
        began = psutil.Process(info.pid).create_time()
    except (psutil.Error, ValueError, OverflowError):
        return "gone"
    return "runs" if began <= since + _CLOCK_SECONDS else "gone"


def _times(measured: Measured) -> list[RoleTime]:
    stages = [stage for stage in measured.stages() if measured.series(stage, "ppo/step_seconds")]
    if not stages:
        return []
    stage = stages[-1]
    prefix = "ppo/idle_share/"
    roles = [s.name[len(prefix) :] for s in measured.of_stage(stage) if s.name.startswith(prefix)]
    kinds = ("busy_seconds", "transfer_seconds", "waiting_seconds", "idle_share")
    return [
        RoleTime(r, *(measured.last(stage, f"ppo/{kind}/{r}") for kind in kinds)) for r in roles
    ]


def _sequences(measured: Measured, stage: str) -> Sequences:
    prefix = "ppo/dropped/"
    names = [s.name for s in measured.of_stage(stage) if s.name.startswith(prefix)]
    generated, trained, dropped = (
        _count(measured.total(stage, f"ppo/{name}")) for name in ("generated", "trained", "dropped")
    )
    return Sequences(
        stage=stage,
        generated=generated,
        trained=trained,
        dropped=dropped,
        open=_count(measured.last(stage, "ppo/open") or 0.0),
        causes={name[len(prefix) :]: _count(measured.total(stage, name)) for name in names},
    )


def _count(value: float) -> int:
    return round(value) if math.isfinite(value) else 0
