"""Checks of arrays read from a file, before they are used."""

from __future__ import annotations

import numpy as np

from workers.records.arrays import Ragged


def check_values(name: str, values: np.ndarray, *, real: bool = False, dimensions: int = 1) -> None:
    """Raise ValueError unless an array has integers or, with `real`, finite floats."""
    if values.ndim != dimensions or values.dtype.kind != ("f" if real else "i"):
        raise ValueError(f"{name} are no {'numbers' if real else 'integers'} in {dimensions} axes")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} are not finite")


def check_rows(name: str, rows: Ragged, *, real: bool = False) -> None:
    """Raise ValueError unless the offsets are consistent and `check_values` accepts the values."""
    if not isinstance(rows, Ragged):
        raise ValueError(f"{name} lack the ends of their rows")
    check_values(name, rows.values, real=real)
    check_values(f"ends of {name}", rows.offsets)
    ends = rows.offsets
    if not len(ends) or ends[0] != 0 or ends[-1] != len(rows.values) or (np.diff(ends) < 0).any():
        raise ValueError(f"rows of {name} end outside of their values")
