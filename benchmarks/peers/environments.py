"""Environments of the peers: made from pins, one folder each, with this environment's torch."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from workers.errors import UnsupportedPlatformError

_SHARED_FOLDER, _MARKER = "shared", "installed.json"
_SHARED = ("torch", "sympy", "networkx", "mpmath")  # torch, and what only torch needs


@dataclass(frozen=True, slots=True)
class Peer:
    """A program that is installed from the package index.

    transformers is the version of this environment, so that both compute a model in the same way.
    """

    pins: tuple[str, ...]


# TRL's GRPO and RLOO import requests, which it does not declare.
PEERS = {"trl": Peer(("trl==1.12.0", "datasets==5.2.0", "requests==2.34.2"))}


def default_cache() -> Path:
    """Where environments are kept between calls."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rehearsal" / "peers"


def installed(name: str, cache: Path) -> Path | None:
    """The Python of a peer's environment; None if there is none, or one with other versions."""
    folder = cache.resolve() / name
    python, marker = folder / "bin" / "python", folder / _MARKER
    there = marker.is_file() and python.exists()
    same = there and json.loads(marker.read_text(encoding="utf-8")) == contents(PEERS[name])
    return python if same else None


def ensure(name: str, cache: Path) -> tuple[Path, dict[str, str]]:
    """Install a peer, unless the folder holds the same versions.

    Returns:
        The environment's Python, and what it consists of, for the record.

    Raises:
        UnsupportedPlatformError: There is no uv, or the installation failed.
    """
    folder, content = cache.resolve() / name, contents(PEERS[name])
    if installed(name, cache) is None:
        shutil.rmtree(folder, ignore_errors=True)
        for command in commands(PEERS[name], folder, _uv()):
            _run(command, name)
        _share_torch(folder)
        (folder / _MARKER).write_text(json.dumps(content), encoding="utf-8")
    return folder / "bin" / "python", content


def contents(peer: Peer) -> dict[str, str]:
    """Pins, and versions of the packages that are shared."""
    shared = {f"shared {name}": importlib.metadata.version(name) for name in _SHARED}
    pins = [*peer.pins, f"transformers=={importlib.metadata.version('transformers')}"]
    return {"pins": " ".join(pins), "python": sys.version.split()[0], **shared}


def commands(peer: Peer, folder: Path, uv: str) -> list[list[str]]:
    """Make the environment, and install the pins without torch, which is shared."""
    python = str(folder / "bin" / "python")
    return [
        [uv, "venv", "--quiet", "--python", sys.executable, str(folder)],
        [uv, "pip", "install", "--quiet", "--python", python,
         "--override", str(_overrides(folder)), *contents(peer)["pins"].split()],
    ]  # fmt: skip


def _overrides(folder: Path) -> Path:
    """A file beside the environment that leaves out shared packages."""
    path = folder.with_name(f"{folder.name}.overrides.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{name}; sys_platform == 'never'" for name in _SHARED]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _share_torch(folder: Path) -> None:
    """Link the shared packages into a folder that the environment's Python searches, too."""
    shared = folder / _SHARED_FOLDER
    shared.mkdir()
    for name in _SHARED:
        files = importlib.metadata.files(name) or []
        for part in sorted({file.parts[0] for file in files}):
            top = Path(str(importlib.metadata.distribution(name).locate_file(part)))
            if part not in ("..", "__pycache__") and not (shared / part).exists():
                (shared / part).symlink_to(top)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "shared_packages.pth").write_text(f"{shared}\n", encoding="utf-8")


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if found is None:
        raise UnsupportedPlatformError(
            "there is no uv, which makes the peers' environments",
            where="PATH",
            fix="install it: .venv/bin/python -m pip install uv",
        )
    return found


def _run(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    if done.returncode != 0:
        raise UnsupportedPlatformError(
            f"{name} cannot be installed: {done.stderr.strip()[-1000:]}",
            where=" ".join(command),
            fix="check the package index that pip and uv are configured for",
        )
