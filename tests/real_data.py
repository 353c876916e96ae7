"""Where the real data sets are: $REHEARSAL_DATA, or a folder `shared/data` beside the clone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def real_data(name: str) -> Path:
    """The path of one file; skips the test where it is absent."""
    path = Path(os.environ.get("REHEARSAL_DATA", _BESIDE)) / name
    if not path.is_file():
        pytest.skip(f"no real data file {path}; set REHEARSAL_DATA to its folder")
    return path
