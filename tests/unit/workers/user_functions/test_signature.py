"""Which arguments a reward function or a judge gets."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest

from workers.errors import ConfigError
from workers.user_functions.signature import JUDGE, REWARD, bind

NAMES = ("prompts", "responses", "messages", "rendered", "finished", "rows")
GIVEN = {name: [name] for name in NAMES}
P, R, M, T, F, W = (GIVEN[name] for name in GIVEN)


class Scorer:
    def __call__(self, messages: Any, responses: Any) -> Any:
        return messages, responses

    def method(self, prompts: Any, responses: Any) -> Any:
        return prompts, responses


@functools.wraps(lambda prompts, responses: None)
def decorated(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def only_by_name(*, responses: Any, finished: Any) -> Any:
    return responses, finished


@pytest.mark.parametrize(
    ("function", "gets"),
    [
        (lambda prompts, responses: (prompts, responses), (P, R)),
        (lambda questions, answers: (questions, answers), (P, R)),
        (lambda responses, prompts: (prompts, responses), (P, R)),
        (lambda responses: responses, R),
        (lambda messages, responses: (messages, responses), (M, R)),
        (lambda rendered, responses, finished: (rendered, responses, finished), (T, R, F)),
        (lambda x, y, messages=None: (x, y, messages), (P, R, M)),
        (lambda prompts, responses, rows: (responses, rows), (R, W)),
        (lambda x, y, rows: (x, y, rows), (P, R, W)),
        (lambda x, y, weight=2.0: (x, y, weight), (P, R, 2.0)),
        (lambda prompts, responses, messages=None: messages, M),
        (lambda prompts, answers=None: (prompts, answers), (P, R)),
        (lambda *lists: lists, (P, R)),
        (lambda *lists, **named: (lists, named), ((P, R), {})),
        (lambda prompts, responses, **named: named, {}),
        (functools.partial(lambda k, p, r: (k, p, r), 3), (3, P, R)),
        (functools.partial(lambda prompts, responses, k: (prompts, k), k=3), (P, 3)),
        (only_by_name, (R, F)),
        (decorated, ((), {"prompts": P, "responses": R})),
        (Scorer(), (M, R)),
        (Scorer().method, (P, R)),
        (lambda prompts, responses, /: (prompts, responses), (P, R)),
        (lambda responses, prompts, /: (prompts, responses), (P, R)),
        (lambda prompts, /, responses: (prompts, responses), (P, R)),
        (lambda *lists, finished: (lists, finished), ((P, R), F)),
        (lambda prompt, response: (prompt, response), (P, R)),
        (lambda query, outputs: (query, outputs), (P, R)),
    ],
)
def test_names_choose_the_arguments_and_others_get_prompts_and_responses(
    function: Callable[..., Any], gets: object
) -> None:
    assert bind(function, REWARD, "reward.function")(GIVEN) == gets


def test_a_judge_gets_prompts_and_both_answers() -> None:
    given = {name: [name] for name in ("prompts", "a", "b", "messages", "rendered")}
    assert bind(lambda x, y, z: x + y + z, JUDGE, "")(given) == ["prompts", "a", "b"]
    assert bind(lambda b, a: a + b, JUDGE, "")(given) == ["a", "b"]
    assert bind(lambda messages, a, b: messages + b, JUDGE, "")(given) == ["messages", "b"]


def test_a_function_that_does_not_tell_its_parameters_gets_them_in_order() -> None:
    assert bind(math.hypot, REWARD, "").positional == ("prompts", "responses")


async def later(prompts: Any, responses: Any) -> Any: ...


class Later:
    async def __call__(self, prompts: Any, responses: Any) -> Any: ...


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda: [], r"takes \(\), and is called with \(prompts, responses\)"),
        (lambda prompts: prompts, r"takes \(prompts\)"),
        (lambda a, b, c: a, r"takes \(a, b, c\).*missing a required argument: 'c'"),
        (lambda a, b, *, key: a, "missing a required .*argument: 'key'"),
        (lambda responses, other: other, "names mean other arguments"),
        (lambda response, prompt: response, "names mean other arguments"),
        (lambda completions, questions: completions, "names mean other arguments"),
        (lambda x, query: x, "names mean other arguments"),
        (lambda completions, **named: completions, r"takes \(completions, named\)"),
        (later, "must be awaited"),
        (Later(), "must be awaited"),
        (functools.partial(later), "must be awaited"),
        (functools.partial(functools.partial(Later())), "must be awaited"),
        (Scorer, "Scorer is a class"),
        (Scorer.method, r"takes \(self, prompts, responses\)"),
    ],
)
def test_a_function_that_cannot_be_called_so_is_refused(
    function: Callable[..., Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        bind(function, REWARD, "reward.function")
    assert caught.value.where == "reward.function"
    assert caught.value.fix
