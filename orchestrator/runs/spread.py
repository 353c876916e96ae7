"""Mean of a figure over the jobs of a sweep, with an interval over them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom; beyond, the normal one.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL = 1.960


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over jobs."""

    jobs: int
    mean: float
    low: float | None = None  # 95 % interval of Student's t over the jobs; None for one job
    high: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        mean, degrees = statistics.fmean(values), len(values) - 1
        if not degrees:
            return cls(1, mean)
        quantile = _T[degrees - 1] if degrees <= len(_T) else _NORMAL
        half = quantile * statistics.stdev(values) / math.sqrt(len(values))
        return cls(len(values), mean, mean - half, mean + half)

    def text(self, digits: int = 3) -> str:
        """The mean, and the interval if there is one."""
        mean = f"{self.mean:.{digits}f}"
        if self.low is None or self.high is None:
            return mean
        return f"{mean} [{self.low:.{digits}f}-{self.high:.{digits}f}]"
