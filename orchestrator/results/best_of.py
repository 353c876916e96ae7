"""What the best of n samples is expected to be, estimated from one set of N samples per prompt.

Names of such models end with @n: `sft@4` is the best of 4 answers of the model sft.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # pages that only need the names start without it
    import numpy as np
    import numpy.typing as npt

_MARK = "@"


def best_of_weights(rewards: npt.NDArray[np.floating], n: int) -> npt.NDArray[np.float64]:
    """(N,) probability that each sample is the best of n of the N, drawn without replacement.

    Of the samples ordered by reward, the r-th from below is the best of n with probability
    `C(r - 1, n - 1) / C(N, n)`. The sum of weights and any figure of the samples is an unbiased
    estimate of that figure of the best of n (WebGPT, arXiv 2112.09332, appendix I), and all N
    samples serve every n.

    Args:
        rewards: (N,) rewards by which the best is chosen; of equal ones the first is the better.
        n: 1 <= n <= N.
    """
    import numpy as np

    total = len(rewards)
    assert 1 <= n <= total, "the best of more samples than there are"
    places = np.arange(total, 0, -1)  # N .. 1: places from below of samples, best first
    by_place = np.zeros(total)
    weight = n / total
    for place in range(total, n - 1, -1):
        by_place[place - 1] = weight
        weight *= (place - n) / (place - 1) if place > 1 else 0.0
    order = np.lexsort((np.arange(total), -rewards.astype(np.float64)))
    weights = np.empty(total)
    weights[order] = by_place[places - 1]
    return weights


def kl_bound(n: int) -> float:
    """Nats, upper bound of the KL of the best of n to the model that is sampled.

    `log n - (n - 1) / n` (Stiennon et al., arXiv 2009.01325, appendix G.3); it is exact where no
    two samples are equal, and an upper bound otherwise (Beirami et al., arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n


def name_of(model: str, n: int) -> str:
    """The name of the best of n answers of a model."""
    return f"{model}{_MARK}{n}"


def parts_of(name: str) -> tuple[str, int]:
    """The model of a name, and its n; 0 = the name is that of a model."""
    model, _, number = name.partition(_MARK)
    return model, int(number) if number.isdecimal() else 0
