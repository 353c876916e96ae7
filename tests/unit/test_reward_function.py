import math

import numpy as np
import pytest
import torch

from workers.errors import ConfigError
from workers.reward_function import load_function, score_texts

PROMPTS, RESPONSES = ["a", "b", "c"], ["1", "2", "3"]


def scored(function) -> tuple[list[float], list[str]]:
    values, reasons = score_texts(function, PROMPTS, RESPONSES)
    assert values.dtype == np.float32
    return values.tolist(), reasons


def test_numbers_pass() -> None:
    assert scored(lambda _, r: [float(x) for x in r]) == ([1.0, 2.0, 3.0], ["", "", ""])


def test_a_number_that_is_not_finite_fails_alone() -> None:
    values, reasons = scored(lambda *_: [1.0, math.nan, math.inf])
    assert values[0] == 1.0
    assert np.isnan(values[1:]).all()
    assert reasons == ["", "reward function: not finite", "reward function: not finite"]


def test_the_culprit_of_an_exception_fails_alone() -> None:
    def touchy(prompts: list[str], responses: list[str]) -> list[float]:
        if "b" in prompts:
            raise TimeoutError("no answer")
        return [float(r) for r in responses]

    values, reasons = scored(touchy)
    assert (values[0], values[2]) == (1.0, 3.0)
    assert np.isnan(values[1])
    assert reasons == ["", "reward function raised TimeoutError", ""]


def test_a_wrong_number_of_numbers_says_nothing_about_any() -> None:
    values, reasons = scored(lambda *_: [0.0, 0.0])
    assert np.isnan(values).all()
    assert reasons == ["reward function returned 2 numbers for 3 sequences"] * 3


def test_what_is_no_number_fails() -> None:
    values, reasons = scored(lambda *_: [1, None, "x"])
    assert values[0] == 1.0
    assert reasons == [
        "", "reward function returned a NoneType", "reward function returned a str"
    ]  # fmt: skip


def test_a_number_too_large_for_a_score_fails_alone() -> None:
    values, reasons = scored(lambda *_: [1.0, -1e300, 10**400])
    assert values[0] == 1.0
    assert np.isnan(values[1:]).all()
    assert reasons == ["", "reward function: not finite", "reward function returned a int"]


def test_a_tensor_of_several_numbers_fails_alone() -> None:
    values, reasons = scored(lambda *_: [1.0, torch.tensor([1.0, 2.0]), torch.tensor(3.0)])
    assert (values[0], values[2]) == (1.0, 3.0)
    assert reasons == ["", "reward function returned a Tensor", ""]


def test_a_mistake_in_the_function_ends_the_run() -> None:
    def broken(*_: object) -> list[float]:
        raise ModuleNotFoundError("numpie")

    with pytest.raises(ModuleNotFoundError):
        scored(broken)


@pytest.mark.parametrize("path", ["nothing", "math:", ":f", "no_such:f", "math:pi", "math:x"])
def test_a_path_that_leads_nowhere(path: str) -> None:
    with pytest.raises(ConfigError):
        load_function(path)


def test_a_function_is_found() -> None:
    assert load_function("math:dist") is math.dist
