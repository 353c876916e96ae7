"""What a run folder tells about its run, without importing what trains."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.results.summary import Summary, read_summary
from orchestrator.run_files.damage import Damage
from orchestrator.run_files.folder import LOCK, RunFolder
from orchestrator.run_files.lock import holder
from workers.errors import ConfigError

_DEEPEST = 4  # folders below the root that are looked into: outputs/EXPERIMENT/TIME/JOB
_MOST_CONFIG = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class RunView:
    """One run as its folder shows it."""

    folder: RunFolder
    config: dict[str, Any]  # config.yaml; {} if it cannot be read
    summary: Summary  # empty until the run has ended
    state: str  # running | finished | failed | waiting | stopped
    place: str  # the newest checkpoint, "ppo 12"; "" without one
    damage: tuple[str, ...]

    @property
    def experiment(self) -> str:
        """The name that the run's results are filed under."""
        return str(self.config.get("experiment", ""))


def find_runs(root: Path) -> list[Path]:
    """Folders at or below `root` that hold a config.yaml of a run, the newest first.

    Raises:
        ConfigError: There is no such folder.
    """
    if not root.is_dir():
        raise ConfigError(
            "there is no such folder", where=str(root), fix="name the folder that holds the runs"
        )
    found: list[tuple[float, Path]] = []
    for folder, below, files in os.walk(root):
        path = Path(folder)
        if "config.yaml" in files and ("metrics.jsonl" in files or LOCK in files):
            found.append(((path / "config.yaml").stat().st_mtime, path))
            below.clear()
        if len(path.relative_to(root).parts) >= _DEEPEST:
            below.clear()
        below[:] = [name for name in below if not name.startswith(".")]
    return [path for _, path in sorted(found, reverse=True)]


def read_run(path: Path) -> RunView:
    """Read a run folder; what is damaged is left out, and said in `damage`.

    Raises:
        ConfigError: It is no folder of a run.
    """
    folder, damage = RunFolder(path), Damage()
    if not folder.config.is_file():
        raise ConfigError(
            "this folder holds no config.yaml", where=str(path), fix="name the folder of a run"
        )
    text = damage.text(folder.config, _MOST_CONFIG) or ""
    config = damage.part(folder.config, "it", lambda: _section(yaml.safe_load(text)), {})
    summary = read_summary(folder.summary, damage) if folder.summary.exists() else Summary()
    finished, place = _progress(folder)
    stages = [str(stage) for stage in config.get("stages") or []]
    if holder(path / LOCK) is not None:
        state = "running"
    else:
        ended = "finished" if stages and finished == stages else "stopped"
        state = folder.ended_early or ended
    return RunView(folder, config, summary, state, place, tuple(damage.notes()))


def _section(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("it is no section of keys")
    return value


def _progress(folder: RunFolder) -> tuple[list[str], str]:
    """The stages that the newest checkpoint has finished, and where it was saved."""
    for file in sorted(folder.state.glob("*/progress.json"), reverse=True):
        with suppress(OSError, ValueError, TypeError, KeyError):
            found = json.loads(file.read_text(encoding="utf-8"))
            return [str(name) for name in found["finished"]], f"{found['stage']} {found['step']}"
    return [], ""
