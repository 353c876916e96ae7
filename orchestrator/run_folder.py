"""One folder holds everything a run leaves behind; files that matter appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from workers.errors import ConfigError

# Hydra makes these in the folder before the run sees it.
_HYDRA_ENTRIES = frozenset({".hydra", "run.log"})


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
    def samples(self) -> Path:
        """Folder of sampled texts."""
        return self.path / "samples"

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
    def directories(self) -> tuple[Path, ...]:
        """The folders inside the run folder."""
        return (self.samples, self.plots, self.checkpoints, self.trace)

    def create(self, *, overwrite: bool = False) -> RunFolder:
        """Make the folder and its subfolders.

        With `overwrite`, what an earlier run recorded is removed, so that two runs never mix in one
        file. Its checkpoints stay (this run may start from them) and are replaced one by one.

        Raises:
            ConfigError: the path is a file or cannot be made, or the folder is not empty and
                `overwrite` is off.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(
                "the run folder is a file", where=str(self.path), mend="choose another run.dir"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the run folder cannot be made: {error.strerror}",
                where=str(self.path),
                mend="choose another run.dir",
            ) from error
        found = sorted(e.name for e in self.path.iterdir() if e.name not in _HYDRA_ENTRIES)
        if found and not overwrite:
            raise ConfigError(
                f"the run folder is not empty: it holds {_some(found)}",
                where=str(self.path),
                mend="choose another run.dir, or set run.overwrite=true to replace its results",
            )
        self._clear_records()
        for directory in self.directories:
            directory.mkdir(exist_ok=True)
        return self

    def _clear_records(self) -> None:
        for file in (self.config, self.metrics, self.summary, self.report, self.error_log):
            file.unlink(missing_ok=True)
        logs, events = self.path / "logs", self.path / "tensorboard"
        for directory in (self.samples, self.plots, self.trace, logs, events):
            if directory.is_dir():
                shutil.rmtree(directory)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file so that a reader, or a crash, sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically.

    Raises:
        ValueError: a float is NaN or infinite, which JSON cannot hold.
        TypeError: a value is no JSON type.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _some(names: list[str], shown: int = 4) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")
