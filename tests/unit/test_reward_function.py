import math
import threading

import numpy as np
import pytest
import torch

from workers.errors import ConfigError
from workers.reward_function import Patience, load_function, score_texts

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


def test_what_fails_once_is_asked_again_and_the_rest_is_not() -> None:
    calls: list[list[str]] = []

    def flaky(prompts: list[str], responses: list[str]) -> list[float]:
        calls.append(prompts)
        return [math.nan if p == "b" and len(calls) == 1 else 1.0 for p in prompts]

    values, reasons = score_texts(flaky, PROMPTS, RESPONSES, Patience(retries=1))
    assert values.tolist() == [1.0, 1.0, 1.0]
    assert (reasons, calls) == (["", "", ""], [PROMPTS, ["b"]])


def test_what_keeps_failing_keeps_its_reason() -> None:
    values, reasons = score_texts(lambda *_: [], PROMPTS, RESPONSES, Patience(retries=2))
    assert np.isnan(values).all()
    assert reasons == ["reward function returned 0 numbers for 3 sequences"] * 3


def test_a_sequence_on_which_it_hangs_fails_alone() -> None:
    never = threading.Event()

    def stuck(prompts: list[str], responses: list[str]) -> list[float]:
        if "b" in prompts:
            never.wait()
        return [2.0 for _ in prompts]

    values, reasons = score_texts(stuck, PROMPTS, RESPONSES, Patience(seconds=0.2))
    assert (values[0], values[2]) == (2.0, 2.0)
    assert reasons == ["", "reward function did not answer in time", ""]
    never.set()


def test_a_function_that_always_hangs_is_not_waited_for_each_time() -> None:
    never, calls = threading.Event(), []

    def stuck(prompts: list[str], responses: list[str]) -> list[float]:
        calls.append(prompts)
        never.wait()
        return []

    many = [str(n) for n in range(50)]
    _, reasons = score_texts(stuck, many, many, Patience(seconds=0.05))
    assert reasons == ["reward function did not answer in time"] * 50
    assert calls == [many, ["0"], ["1"]]
    never.set()


def test_with_a_deadline_a_mistake_in_the_function_still_ends_the_run() -> None:
    def wrong(prompts: list[str], responses: list[str]) -> list[float]:
        return undefined_name  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(NameError):
        score_texts(wrong, PROMPTS, RESPONSES, Patience(seconds=10.0))
