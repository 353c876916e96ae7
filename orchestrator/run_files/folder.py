"""The run folder: its paths, creation and locking, and atomic writing of its files."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.run_files.sealed_json import dump, seal
from workers.errors import ConfigError, NonFiniteError
from workers.process.disk import writing

LOCK, _RESTORING, _LOG = ".lock", ".restoring", "run.log"
# Hydra and the lock create these before the run checks whether the folder is empty.
_OWN_ENTRIES = frozenset({".hydra", _LOG, LOCK, _RESTORING})


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run. `create` must be called once before anything is written."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def origin(self) -> Path:
        """Command, commit, versions and machine of the process that wrote the folder last."""
        return self.path / "origin.json"

    @property
    def metrics(self) -> Path:
        """Every metric of every step, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """The results of the run, written at its end."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """The self-contained page: tables, plots, samples, configuration."""
        return self.path / "report.html"

    @property
    def error_log(self) -> Path:
        """Traceback of the error that ended the run."""
        return self.path / "error.log"

    @property
    def waiting(self) -> Path:
        """What people are asked for, while the run waits for it (exit code 9)."""
        return self.path / "waiting.txt"

    @property
    def ended_early(self) -> str:
        """How the last process ended before the last stage: failed or waiting; "" of others."""
        if self.error_log.is_file():
            return "failed"
        return "waiting" if self.waiting.is_file() else ""

    @property
    def log(self) -> Path:
        """What the run said: starts and ends of stages, progress and notes, with their times."""
        return self.path / _LOG

    @property
    def workers(self) -> Path:
        """Role, rank, process and node of every worker that is running now."""
        return self.path / "workers.json"

    @property
    def prometheus(self) -> Path:
        """Where Prometheus finds the metrics of the running process, in its format for targets."""
        return self.path / "prometheus.json"

    @property
    def losses(self) -> Path:
        """Each loss or permanent removal of workers, one JSON object per line."""
        return self.path / "losses.jsonl"

    @property
    def samples(self) -> Path:
        """Folder of sampled texts."""
        return self.path / "samples"

    @property
    def rollouts(self) -> Path:
        """Sampled responses of PPO, one JSON object per line."""
        return self.samples / "rollouts.jsonl"

    @property
    def non_finite(self) -> Path:
        """Each update skipped because of a non-finite number, one JSON object per line."""
        return self.samples / "non_finite.jsonl"

    @property
    def plots(self) -> Path:
        """Folder of PNG plots."""
        return self.path / "plots"

    @property
    def checkpoints(self) -> Path:
        """Folder with one Hugging Face folder per model."""
        return self.path / "checkpoints"

    @property
    def trace(self) -> Path:
        """Folder of traces in Chrome's trace-event format."""
        return self.path / "trace"

    @property
    def state(self) -> Path:
        """Folder of the checkpoints from which a killed run resumes."""
        return self.path / "state"

    @property
    def rankings(self) -> Path:
        """The sampled and labeled training rankings of the reward model, as tokens."""
        return self.state / "rankings.safetensors"

    def revisions_of(self, stage: str, number: int) -> Path:
        """The answers of a run of the stage constitution after a round of revisions; 0 = none."""
        return self.samples / f"{stage}_revisions_{number}.jsonl"

    def answers_of(self, stage: str) -> Path:
        """Folder of a chat model's answers in a stage run, which are not asked for again."""
        return self.path / "answers" / stage

    def rankings_of(self, stage: str) -> Path:
        """The rankings that a run of the stage label made, as tokens."""
        return self.state / f"rankings-{stage}.safetensors"

    def tasks_of(self, stage: str) -> Path:
        """The answers that a run of the stage label has ranked, one prompt per line."""
        return self.samples / f"{stage}_tasks.jsonl"

    def labels_of(self, stage: str) -> Path:
        """What people said of these tasks, as `python -m orchestrator.label export` writes it."""
        return self.samples / f"{stage}_rankings.jsonl"

    @property
    def mirror(self) -> Path:
        """Identity with which the run uses its mirror."""
        return self.path / "mirror.json"

    @property
    def restoring(self) -> Path:
        """Folder of what is being fetched from a mirror."""
        return self.path / _RESTORING

    @property
    def directories(self) -> tuple[Path, ...]:
        """The folders inside the run folder."""
        return (self.samples, self.plots, self.checkpoints, self.trace, self.state)

    def create(self, *, overwrite: bool = False) -> RunFolder:
        """Create the folder and its subfolders.

        With `overwrite`, the records of an earlier run are removed, so that no file mixes two runs.
        Its models stay (this run may start from them) and are replaced one by one.

        Raises:
            ConfigError: the path is a file or cannot be created, or the folder is not empty and
                `overwrite` is off.
            CheckpointError: the disk is full or read-only.
        """
        self._make()
        if not overwrite and (found := self.found()):
            raise ConfigError(
                f"the run folder is not empty: it holds {found}",
                where=str(self.path),
                fix="choose another run.dir, or set run.overwrite=true to replace its results",
            )
        with writing(self.path, "the run folder"):
            self._clear_records()
            for directory in self.directories:
                directory.mkdir(exist_ok=True)
        return self

    def found(self) -> str:
        """What keeps the folder from being a new run's, for messages; "" = nothing."""
        if not self.path.is_dir():
            return ""
        entries = [e for e in sorted(self.path.iterdir()) if not _is_own(e)]
        if self._was_given_up():  # ignore the empty files of an attempt that was refused
            entries = [e for e in entries if _holds_something(e)]
        return _some([e.name for e in entries]) if entries else ""

    def set_aside(self, kept: Collection[Path] = ()) -> Path | None:
        """Move all files of an earlier attempt into a new folder, RUN/earlier-N.

        Args:
            kept: Models that this run starts from; if one is in `checkpoints`, that folder stays.

        Returns:
            That folder; None if the attempt wrote nothing.

        Raises:
            CheckpointError: the disk is full or read-only.
        """
        stays = self.checkpoints if any(self.checkpoints in p.parents for p in kept) else None
        left = [e for e in sorted(self.path.iterdir()) if not _is_own(e) and e != stays]
        if not any(map(_holds_something, left)):
            return None
        numbers = itertools.count(1)
        aside = next(p for n in numbers if not (p := self.path / f"earlier-{n}").exists())
        with writing(aside, "the folder of the earlier attempt"):
            aside.mkdir()
            for entry in left:
                entry.rename(aside / entry.name)
        return aside

    def reopen(self, appended: Mapping[str, int]) -> RunFolder:
        """Restore the folder of an interrupted run to its state at a checkpoint.

        Args:
            appended: size in bytes at the checkpoint of each append-only file, by its path in the
                folder; later lines are removed, because the resumed run writes them again.

        Raises:
            CheckpointError: the disk is full or read-only.
        """
        with writing(self.path, "the run folder"):
            for directory in self.directories:
                directory.mkdir(exist_ok=True)
            for name, size in appended.items():
                path = self.path / name
                if path.exists():
                    _cut_lines(path, size)
            for file in (self.summary, self.report, self.error_log, self.waiting):
                file.unlink(missing_ok=True)
        return self

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other processes until the context or this process ends.

        Creates the folder if it does not exist. Take the lock before changing anything in the
        folder. The lock file is never deleted: a lock on a deleted file would exclude nobody.

        Raises:
            ConfigError: another process has locked it, or it cannot be created.
            CheckpointError: the disk is full or read-only.
        """
        self._make()
        with writing(self.path / LOCK, "the run folder"):
            lock = (self.path / LOCK).open("w")
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    "another process works in this run folder",
                    where=str(self.path),
                    fix="wait until it has ended, or end it; two would overwrite each other",
                ) from error
            yield

    def _was_given_up(self) -> bool:
        """Whether a run was started here; a user's own config.yaml does not count."""
        return (self.path / LOCK).is_file() and all(map(Path.is_dir, self.directories))

    def _make(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(
                "the run folder is a file", where=str(self.path), fix="choose another run.dir"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the run folder cannot be made: {error.strerror}",
                where=str(self.path),
                fix="choose another run.dir",
            ) from error

    def _clear_records(self) -> None:
        records = (self.config, self.metrics, self.summary, self.report, self.error_log)
        others = (
            self.waiting,
            self.log,
            self.workers,
            self.losses,
            self.mirror,
            self.prometheus,
            self.origin,
        )
        for file in (*records, *others):
            file.unlink(missing_ok=True)
        logs, events = self.path / "logs", self.path / "tensorboard"
        for directory in (self.samples, self.plots, self.trace, self.state, logs, events):
            if directory.is_dir():
                shutil.rmtree(directory)


def _cut_lines(path: Path, size: int) -> None:
    """Truncate a file of lines to `size` bytes; from a shorter one remove an incomplete line."""
    with path.open("r+b") as file:
        if file.seek(0, os.SEEK_END) >= size:
            file.truncate(size)
        else:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def _is_own(entry: Path) -> bool:
    return entry.name in _OWN_ENTRIES or entry.name.startswith("earlier-")


def _holds_something(entry: Path) -> bool:
    """Whether an entry has content that no run writes before its first stage."""
    if entry.is_dir():
        return any(_holds_something(each) for each in entry.iterdir())
    unfilled = ("config.yaml", "origin.json", "workers.json", "error.log", "mirror.json",
                "prometheus.json")  # fmt: skip
    return entry.name not in unfilled and entry.stat().st_size > 0


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically: after a crash it is the old file or the complete new one.

    Raises:
        CheckpointError: the disk is full or read-only; the old file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path, "the file"):
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def append_lines(path: Path, rows: Iterable[object], what: str) -> None:
    """Append rows to a file of JSON lines.

    Raises:
        CheckpointError: the disk is full or read-only.
    """
    with writing(path, what), path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_json(path: Path, value: object, *, sealed: bool = False) -> None:
    """Write a JSON file atomically; `sealed` adds a checksum to the object `value`.

    Raises:
        NonFiniteError: a float is NaN or infinite, which JSON cannot represent.
        TypeError: a value is no JSON type.
    """
    try:
        text = seal(value) if sealed else dump(value)
    except ValueError as error:
        raise NonFiniteError(
            f"a figure is NaN or infinite: {error}",
            where=str(path),
            fix="metrics.jsonl shows which: its lines with the key nonfinite",
        ) from error
    write_text(path, text)


def _some(names: list[str], shown: int = 4) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")
