"""origin.json: where a run comes from: its command, code, versions and machine."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from os.path import lexists
from pathlib import Path

from orchestrator.run_files.damage import Damage, whole
from orchestrator.run_files.folder import RunFolder, write_json

_SECONDS = 5.0  # that git may take


@dataclass(frozen=True, slots=True)
class Origin:
    """The process that wrote a run folder last; a run that went on has several."""

    command: str = ""  # as a shell would read it
    commit: str = ""  # of this repository, with "+changes"; "" = installed from a package
    began: str = ""  # ISO 8601, UTC
    cores: int = 0
    memory_gib: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)  # Python, processor and packages


def write_origin(
    folder: RunFolder, words: Sequence[str], versions: dict[str, str], home: Path
) -> None:
    """Write origin.json.

    Args:
        folder: The run folder.
        words: The command line, the program first.
        versions: Of Python, processor and packages.
        home: Folder of the code.

    Raises:
        CheckpointError: The disk is full or read-only.
    """
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    made = Origin(
        command=shlex.join(words),
        commit=commit_of(home),
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(pages / 2**30, 1),
        versions=versions,
    )
    write_json(folder.origin, asdict(made))


def read_origin(folder: RunFolder, damage: Damage) -> Origin:
    """The origin of a run; an empty one if an earlier version wrote the folder."""
    if not lexists(folder.origin):
        return Origin()
    text = damage.text(folder.origin, 1 << 20)
    if text is None:
        return Origin()
    return damage.part(folder.origin, "it", lambda: whole(Origin, json.loads(text)), Origin())


def commit_of(home: Path) -> str:
    """The commit of a checkout, with "+changes" if files differ from it; "" if it is none."""
    if not (home / ".git").exists():
        return ""
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(home), *words],
                capture_output=True, text=True, check=True, timeout=_SECONDS,
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):  # no git, or a checkout of someone else
        return ""
    return f"{head}+changes" if changes else head
