"""Files that come with the package beside its code: conf/, requirements/ and pyproject.toml.

A checkout has them at its top, a wheel inside the package `orchestrator`.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(name: str) -> Path:
    """Path of a file or folder that comes with the package."""
    inside = _PACKAGE / name
    return inside if inside.exists() else _PACKAGE.parent / name
