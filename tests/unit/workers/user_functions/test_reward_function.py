"""What a reward function is given, what it may return, and what becomes of whatever it does."""

from __future__ import annotations

import datetime
import math
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import torch

from workers.data.rows.asked import Asked
from workers.data.rows.examples import Message
from workers.user_functions.answers import Reply
from workers.user_functions.calls import Patience, late
from workers.user_functions.reward_function import Exchange, load_reward
from workers.user_functions.signature import Arguments

BARE = ("a", "b", "c")
DIALOGUE = (Message("system", "Be kind."), Message("user", "Hi"))
NAN = math.nan


def exchange(number: int, prompt: str) -> Exchange:
    return Exchange(Asked(number, prompt, f"<s>{prompt}"), str(number + 1), finished=number != 1)


THREE = [exchange(number, prompt) for number, prompt in enumerate(BARE)]
_named: dict[str, Callable[..., Any]] = {}


def __getattr__(name: str) -> Callable[..., Any]:  # functions of a test, by an import path
    if name in _named:
        return _named[name]
    raise AttributeError(name)


def replies(
    function: Callable[..., Any],
    patience: Patience | None = None,
    exchanges: list[Exchange] | None = None,
) -> list[Reply]:
    _named["tried"] = function
    return load_reward(f"{__name__}:tried").ask(exchanges or THREE, patience or Patience())


def scored(function: Callable[..., Any], **patience: float) -> tuple[list[float], list[str]]:
    found = replies(function, Patience(**patience))  # type: ignore[arg-type]
    return [reply.value for reply in found], [reply.reason for reply in found]


def same(found: list[float], wanted: list[float]) -> bool:
    return np.array_equal(found, wanted, equal_nan=True)


WELL = ["", "", ""]


@pytest.mark.parametrize(
    "returned",
    [
        [1, 2.5, 0],
        (1.0, 2.5, 0.0),
        deque([1, 2.5, 0]),
        np.array([1, 2.5, 0]),
        np.array([1, 2.5, 0], object),
        [np.float32(1), np.float64(2.5), np.int8(0)],
        torch.tensor([1, 2.5, 0], requires_grad=True),
        torch.tensor([1, 2.5, 0], dtype=torch.bfloat16),
        [torch.tensor(1), torch.tensor(2.5), torch.tensor(False)],
        pd.Series([1, 2.5, 0], index=[2, 0, 1]),
        [True, Fraction(5, 2), Decimal(0)],
        [np.True_, 2.5, False],
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_real_number_a_response_in_their_order(returned: Any) -> None:
    assert scored(lambda *_: returned) == ([1.0, 2.5, 0.0], WELL)


def test_numbers_that_are_yielded_one_by_one_count_and_an_endless_stream_does_not() -> None:
    def each(prompts: list[str], responses: list[str]) -> Iterator[float]:
        for response in responses:
            yield float(response)

    def endless(*_: object) -> Iterator[float]:
        while True:
            yield 1.0

    assert scored(each) == ([1.0, 2.0, 3.0], WELL)
    values, reasons = scored(endless)
    assert same(values, [NAN] * 3)
    assert reasons == ["reward function returned the wrong number of values"] * 3


@pytest.mark.parametrize(
    ("returned", "form"),
    [
        ({"a": 1, "b": 2, "c": 3}, "a dict"),
        ({1.0, 2.0, 3.0}, "a set"),
        (frozenset({1.0, 2.0, 3.0}), "a frozenset"),
        ({1.0: 0, 2.0: 0, 3.0: 0}.keys(), "a dict_keys"),
        ("123", "a str"),
        (b"123", "a bytes"),
        (bytearray(b"123"), "a bytearray"),
        (memoryview(b"123"), "a memoryview of shape (3,)"),
        (None, "nothing (None)"),
        (2.0, "a float"),
        (np.ones((3, 1)), "a ndarray of shape (3, 1)"),
        (np.float32(1), "a float32"),
        (torch.ones(1, 3), "a Tensor of shape (1, 3)"),
        (pd.DataFrame({"x": [1, 2, 3]}), "a DataFrame of shape (3, 1)"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_does_not_say_which_number_is_whose_fails_for_all(returned: Any, form: str) -> None:
    values, reasons = scored(lambda *_: returned)
    assert same(values, [NAN] * 3)
    assert reasons == [f"reward function returned {form}, not a list of numbers"] * 3


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "returned nothing (None) for one item"),
        ("2", "returned a str for one item"),
        (b"2", "returned a bytes for one item"),
        ([2.0], "returned a list for one item"),
        (np.array([2.0]), "returned a ndarray of shape (1,) for one item"),
        (torch.tensor([2.0]), "returned a Tensor of shape (1,) for one item"),
        (2j, "returned a complex for one item"),
        (np.complex64(2), "returned a complex64 for one item"),
        (np.datetime64(2, "ns"), "returned a datetime64 for one item"),
        (datetime.timedelta(2), "returned a timedelta for one item"),
        (pd.NA, "returned a NAType for one item"),
        (np.ma.masked, "returned a MaskedConstant for one item"),
        (NAN, "returned NaN for one item"),
        (Decimal("sNaN"), "returned NaN for one item"),
        (math.inf, "returned a number out of range for one item"),
        (-1e300, "returned a number out of range for one item"),
        (10**400, "returned a number out of range for one item"),
    ],
    ids=repr,
)
def test_a_response_without_a_finite_number_fails_alone(value: Any, reason: str) -> None:
    values, reasons = scored(lambda *_: [1.0, value, 3.0])
    assert same(values, [1.0, NAN, 3.0])
    assert reasons == ["", f"reward function {reason}", ""]


class Lying(list):
    def __len__(self) -> int:
        return 3


class Longer(list):
    def __len__(self) -> int:
        return 10**12


class Endless:
    shape = (3,)

    def __iter__(self) -> Iterator[float]:
        return iter(lambda: 1.0, None)


@pytest.mark.parametrize(
    ("returned", "says"),
    [(Lying([1, 2]), "2 for 3"), (Endless(), "more than one each for 3"), ([0] * 9, "more than")],
    ids=["lying", "endless", "long"],
)
def test_what_iterating_gives_counts_and_no_length_or_shape(returned: Any, says: str) -> None:
    found = replies(lambda *_: returned)
    assert {reply.reason for reply in found} == {
        "reward function returned the wrong number of values"
    }
    assert all(reply.words.startswith(says) for reply in found)
    assert scored(lambda *_: Longer([1, 2, 3])) == ([1.0, 2.0, 3.0], WELL)


@pytest.mark.parametrize(
    "returned",
    [{1.0, 2.0, 3.0}, {1.0: 0, 2.0: 0, 3.0: 0}, {1: 1.0, 2: 2.0, 3: 3.0}.values(), b"123"],
    ids=repr,
)
def test_iterating_hides_no_form_that_does_not_say_which_number_is_whose(returned: Any) -> None:
    values, reasons = scored(lambda *_: iter(returned))
    assert same(values, [NAN] * 3)
    assert all("iterator, not a list of numbers" in reason for reason in reasons)


class Unwilling(float):
    def __float__(self) -> float:
        raise SystemExit(3)


def test_a_value_that_raises_when_it_is_read_fails_alone_in_the_same_call() -> None:
    calls: list[int] = []

    def numbers(prompts: list[str], responses: list[str]) -> list[Any]:
        calls.append(len(prompts))
        return [1.0, Unwilling(2), torch.tensor(3.0, device="meta")]

    found = replies(numbers)
    assert [reply.reason[:35] for reply in found] == [
        "", "reward function raised SystemExit a", "reward function raised RuntimeError",
    ]  # fmt: skip
    assert calls == [3]


def test_a_wrong_number_of_numbers_says_nothing_about_any() -> None:
    found = replies(lambda *_: [0.0, 0.0])
    assert [reply.words for reply in found] == ["2 for 3, in the last call"] * 3
    assert {reply.reason for reply in found} == {
        "reward function returned the wrong number of values"
    }


class OwnError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    def __reduce__(self) -> Any:
        raise TypeError("cannot be pickled")


class NoException(BaseException):
    pass


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (httpx.ConnectError("refused"), "refused"),
        (subprocess.CalledProcessError(3, "grade"), "Command 'grade' returned non-zero exit"),
        (MemoryError(), ""),
        (ModuleNotFoundError("numpie"), "numpie"),
        (NameError("undefined_name"), "undefined_name"),
        (OwnError(), "(its message cannot be shown)"),
        (NoException("odd"), "odd"),
        (SystemExit(2), "2"),
        (KeyboardInterrupt(), ""),
        (RecursionError("deep"), "deep"),
        (ValueError("line one\nline two"), "line one line two"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_it_raises_the_culprit_fails_alone_with_its_words(
    error: BaseException, words: str
) -> None:
    def touchy(prompts: list[str], responses: list[str]) -> list[float]:
        if "b" in prompts:
            raise error
        return [float(response) for response in responses]

    line = touchy.__code__.co_firstlineno + 2
    found = replies(touchy)
    assert same([reply.value for reply in found], [1.0, NAN, 3.0])
    wanted = f"reward function raised {type(error).__name__} at {__file__}:{line}"
    assert [reply.reason for reply in found] == ["", wanted, ""]
    assert found[1].words.startswith(words)
    assert bool(found[1].words) == bool(words)


def test_an_error_in_a_library_names_the_line_of_the_user_that_called_it() -> None:
    def parse(*_: object) -> list[float]:
        return [httpx.URL("http://host:port").port or 0]

    line = parse.__code__.co_firstlineno + 1
    _, reasons = scored(parse)
    assert set(reasons) == {f"reward function raised InvalidURL at {__file__}:{line}"}


def test_what_a_function_changes_is_its_own_copy() -> None:
    def thief(prompts: list[str], responses: list[str], messages: list[Any]) -> list[float]:
        found = [float(response) for response in responses]
        messages[0][0]["content"] = "changed"
        for given in (prompts, responses, messages):
            given.clear()
        return found if found != [1.0, 2.0, 3.0] else [NAN, 2.0, 3.0]

    assert scored(thief, retries=1) == ([1.0, 2.0, 3.0], WELL)


def test_what_fails_once_is_asked_again_and_the_rest_is_not() -> None:
    calls: list[list[str]] = []

    def flaky(prompts: list[str], responses: list[str]) -> list[float]:
        calls.append(prompts)
        return [NAN if p == "b" and len(calls) == 1 else 1.0 for p in prompts]

    assert scored(flaky, retries=1) == ([1.0, 1.0, 1.0], WELL)
    assert calls == [["a", "b", "c"], ["b"]]


def test_a_function_that_is_always_lost_is_not_called_each_time() -> None:
    calls: list[list[str]] = []

    def hangs(arguments: Arguments, count: int, seconds: float) -> Reply:
        calls.append(arguments["prompts"])
        return late("reward function")

    many = [exchange(0, str(n)) for n in range(50)]
    _named["tried"] = lambda *_: []
    caller = replace(load_reward(f"{__name__}:tried"), call=hangs)
    found = caller.ask(many, Patience(seconds=60.0))
    assert {reply.reason for reply in found} == {"reward function did not answer in time"}
    assert calls == [[str(n) for n in range(50)], ["0"], ["1"]]


def test_a_batch_takes_two_deadlines_and_the_starts_of_a_process_a_try_at_most() -> None:
    assert Patience(seconds=30.0, retries=2).most_seconds == 270.0
    assert Patience(seconds=0.0, retries=2).most_seconds == 0.0


def test_a_working_folder_that_it_leaves_is_restored(tmp_path: Path) -> None:
    def wanders(prompts: list[str], responses: list[str]) -> list[float]:
        os.chdir(tmp_path)
        return [1.0 for _ in prompts]

    before = Path.cwd()
    assert scored(wanders)[1] == WELL
    assert Path.cwd() == before


def test_it_may_print_leave_threads_and_end_its_children() -> None:
    def busy(prompts: list[str], responses: list[str]) -> list[float]:
        threading.Thread(target=threading.Event().wait, args=(0.2,), daemon=True).start()
        subprocess.run([sys.executable, "-c", "raise SystemExit(3)"], check=False)
        return [len("x" * 10**6) / 10**6 for _ in prompts]

    assert scored(busy) == ([1.0, 1.0, 1.0], WELL)


def test_a_function_may_ask_for_the_dialogue_the_rendered_prompt_and_whether_it_ended() -> None:
    seen: list[Any] = []

    def curious(
        prompts: Any, responses: Any, messages: Any, rendered: Any, finished: Any
    ) -> list[float]:
        seen.extend([prompts, responses, messages, rendered, finished])
        return [1.0, 2.0]

    asked = Asked(7, DIALOGUE, "<|im_start|>system\nBe kind.<|im_end|>")
    both = [Exchange(asked, "Hello", finished=False), THREE[0]]
    assert [reply.value for reply in replies(curious, exchanges=both)] == [1.0, 2.0]
    assert seen == [
        ["System:\nBe kind.\n\nUser:\nHi", "a"],
        ["Hello", "1"],
        [
            [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
            [{"role": "user", "content": "a"}],
        ],
        ["<|im_start|>system\nBe kind.<|im_end|>", "<s>a"],
        [False, True],
    ]
