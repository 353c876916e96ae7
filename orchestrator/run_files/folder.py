"""One folder holds everything a run leaves behind; files that matter appear whole or not at all."""

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

_LOCK = ".lock"
# Hydra and the lock make these in the folder before the run looks into it.
_OWN_ENTRIES = frozenset({".hydra", "run.log", _LOCK})


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run. `create` must be called once before anything is written."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: every metric of every step."""
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
    def workers(self) -> Path:
        """Role, rank, process and node of every worker that stands now."""
        return self.path / "workers.json"

    @property
    def losses(self) -> Path:
        """One JSON object a line: each time that workers were lost, or left out for good."""
        return self.path / "losses.jsonl"

    @property
    def samples(self) -> Path:
        """Folder of sampled texts."""
        return self.path / "samples"

    @property
    def rollouts(self) -> Path:
        """One JSON object a line: sampled responses of PPO."""
        return self.samples / "rollouts.jsonl"

    @property
    def non_finite(self) -> Path:
        """One JSON object a line: each update that was left out for a number that is not finite."""
        return self.samples / "non_finite.jsonl"

    @property
    def plots(self) -> Path:
        """Folder of PNG plots."""
        return self.path / "plots"

    @property
    def checkpoints(self) -> Path:
        """Folder with one Hugging Face checkpoint folder a model."""
        return self.path / "checkpoints"

    @property
    def trace(self) -> Path:
        """Folder of traces in Chrome's trace-event format."""
        return self.path / "trace"

    @property
    def state(self) -> Path:
        """Folder of the checkpoints that a killed run goes on from."""
        return self.path / "state"

    @property
    def rankings(self) -> Path:
        """What the reward model learns from, as tokens, once it is sampled and labeled."""
        return self.state / "rankings.safetensors"

    @property
    def directories(self) -> tuple[Path, ...]:
        """The folders inside the run folder."""
        return (self.samples, self.plots, self.checkpoints, self.trace, self.state)

    def create(self, *, overwrite: bool = False) -> RunFolder:
        """Make the folder and its subfolders.

        With `overwrite`, what an earlier run recorded is removed, so that two runs never mix in one
        file. Its checkpoints stay (this run may start from them) and are replaced one by one.

        Raises:
            ConfigError: the path is a file or cannot be made, or the folder is not empty and
                `overwrite` is off.
            CheckpointError: the disk is full or read-only.
        """
        self._make()
        entries = [e for e in sorted(self.path.iterdir()) if not _is_own(e)]
        if self._was_given_up():  # nothing but what a refused attempt leaves
            entries = [e for e in entries if _holds_something(e)]
        found = [e.name for e in entries]
        if found and not overwrite:
            raise ConfigError(
                f"the run folder is not empty: it holds {_some(found)}",
                where=str(self.path),
                fix="choose another run.dir, or set run.overwrite=true to replace its results",
            )
        with writing(self.path, "the run folder"):
            self._clear_records()
            for directory in self.directories:
                directory.mkdir(exist_ok=True)
        return self

    def set_aside(self, kept: Collection[Path] = ()) -> Path | None:
        """Move all that an earlier attempt left into a new folder, RUN/earlier-N.

        Args:
            kept: Models that this run starts from; where they are in `checkpoints`, it stays.

        Returns:
            That folder; None where the attempt recorded nothing and made nothing.

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
        """Go on in the folder of a run that ended early, as it was when a checkpoint was saved.

        Args:
            appended: bytes that each file which only grows had then, by its path in the folder;
                what was written later is cut off, and will be written again.

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
            for file in (self.summary, self.report, self.error_log):
                file.unlink(missing_ok=True)
        return self

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against other processes, until this one ends in whatever way.

        The folder is made if it is not there. To be taken before anything in it is changed; the
        file stays where it is for ever, since a lock on a file that was deleted holds off nobody.

        Raises:
            ConfigError: another process works in it, or it cannot be made.
            CheckpointError: the disk is full or read-only.
        """
        self._make()
        with writing(self.path / _LOCK, "the run folder"):
            lock = (self.path / _LOCK).open("w")
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
        """Whether a run was begun here; a config.yaml of somebody's own is no sign of that."""
        return (self.path / _LOCK).is_file() and all(map(Path.is_dir, self.directories))

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
        for file in (*records, self.workers, self.losses):
            file.unlink(missing_ok=True)
        logs, events = self.path / "logs", self.path / "tensorboard"
        for directory in (self.samples, self.plots, self.trace, self.state, logs, events):
            if directory.is_dir():
                shutil.rmtree(directory)


def _cut_lines(path: Path, size: int) -> None:
    """Cut a file of lines to at most `size` bytes; of a shorter one its last, torn line."""
    with path.open("r+b") as file:
        if file.seek(0, os.SEEK_END) >= size:
            file.truncate(size)
        else:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def _is_own(entry: Path) -> bool:
    return entry.name in _OWN_ENTRIES or entry.name.startswith("earlier-")


def _holds_something(entry: Path) -> bool:
    """Whether it is more than what every run makes before its first stage."""
    if entry.is_dir():
        return any(_holds_something(each) for each in entry.iterdir())
    return (
        entry.name not in ("config.yaml", "workers.json", "error.log") and entry.stat().st_size > 0
    )


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file so that a reader, or a crash, sees the old file or the whole new one.

    Raises:
        CheckpointError: the disk is full or read-only; the old file is as it was.
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
    """Add rows to a file of JSON lines.

    Raises:
        CheckpointError: the disk is full or read-only.
    """
    with writing(path, what), path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_json(path: Path, value: object, *, sealed: bool = False) -> None:
    """Write a JSON file atomically; a sealed one, an object, carries a checksum of its bytes.

    Raises:
        NonFiniteError: a float is NaN or infinite, which JSON cannot hold.
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
