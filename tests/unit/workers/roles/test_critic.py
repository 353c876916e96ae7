import math

import pytest

from workers.errors import NonFiniteError
from workers.roles.critic import CriticWorker


@pytest.mark.parametrize("mean", [math.nan, math.inf])
def test_a_mean_score_that_is_not_finite_never_reaches_the_bias(mean: float) -> None:
    with pytest.raises(NonFiniteError, match="mean score"):
        CriticWorker(0).shift_bias(mean)
