"""Cache of a judge's verdicts on disk, so that no question is sent twice."""

from __future__ import annotations

import json
from collections.abc import Container
from hashlib import sha256
from pathlib import Path

from workers.errors import ConfigError
from workers.process.disk import writing

_VERDICTS = ("A", "B", "C")


def question_key(*parts: str) -> str:
    """Hash of everything that a verdict depends on: address, model, instruction, request, texts."""
    return sha256(json.dumps(parts).encode()).hexdigest()


class VerdictCache:
    """One JSON line per verdict, appended immediately and read at the start.

    A killed process leaves at most one incomplete line. Such lines, and lines without one of the
    allowed verdicts, are ignored. Several runs may append to one file. Keys are hashes: neither
    texts nor credentials are written.
    """

    def __init__(
        self,
        folder: Path,
        verdicts: Container[str] = _VERDICTS,
        where: str = "evaluate.endpoint.cache",
    ) -> None:
        """Read the verdicts of earlier runs.

        Args:
            folder: Where they are kept.
            verdicts: All that there may be.
            where: The configuration key of the folder, for errors.

        Raises:
            ConfigError: the folder cannot be created or written.
        """
        self.path = folder / "verdicts.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise ConfigError(
                f"the judge's cache cannot be opened: {error.strerror}",
                where=f"{where}={folder}",
                fix="name a folder that can be written",
            ) from error
        self._stream.seek(0)
        found = self._stream.read()
        lines = (_verdict(line, verdicts) for line in found.split(b"\n"))
        self._verdicts = dict(each for each in lines if each)
        if found and not found.endswith(b"\n"):
            self._stream.write(b"\n")  # the next verdict starts on a new line

    def get(self, key: str) -> str | None:
        """The verdict on a question, or None if it is unknown."""
        return self._verdicts.get(key)

    def put(self, key: str, verdict: str) -> None:
        """Store a verdict with a single write, so that lines of several runs do not mix.

        Raises:
            CheckpointError: the disk is full or read-only.
        """
        self._verdicts[key] = verdict
        with writing(self.path, "a verdict"):
            self._stream.write(json.dumps({"key": key, "verdict": verdict}).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _verdict(line: bytes, verdicts: Container[str]) -> tuple[str, str] | None:
    try:
        fields = json.loads(line)
        key, verdict = str(fields["key"]), fields["verdict"]
    except (ValueError, KeyError, TypeError):
        return None
    return (key, verdict) if isinstance(verdict, str) and verdict in verdicts else None
