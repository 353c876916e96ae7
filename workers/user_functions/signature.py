"""Choice of a user function's arguments: by its parameter names, or in a fixed order."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

from workers.errors import ConfigError

Arguments = Mapping[str, list[Any]]

_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_VARIABLE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
# Other names with an unambiguous meaning. Such a parameter is not bound by name, but it is an error
# if the fixed order would give it another argument.
_PROMPTS = ("prompt", "question", "query", "queries", "instruction")
_RESPONSES = ("response", "completion", "answer", "output", "reply", "replies", "generation")


@dataclass(frozen=True, slots=True)
class Contract:
    """The arguments for one kind of function: lists with one item per sequence or pair."""

    order: tuple[str, ...]  # positional arguments of a function with other parameter names
    needed: frozenset[str]  # a function with all these parameters is called by name
    offered: frozenset[str]  # all available arguments

    def means(self, name: str) -> str:
        """The argument that a parameter of this name expects; "" if unclear."""
        if name in self.offered:
            return name
        for names, meant in ((_PROMPTS, "prompts"), (_RESPONSES, "responses")):
            if meant in self.offered and {name, name.removesuffix("s")} & {*names}:
                return meant
        return ""


REWARD = Contract(
    order=("prompts", "responses"),
    needed=frozenset({"responses"}),
    offered=frozenset(
        {"prompts", "responses", "messages", "rendered", "finished", "rows", "turns"}
    ),
)
JUDGE = Contract(
    order=("prompts", "a", "b"),
    needed=frozenset({"a", "b"}),
    offered=frozenset({"prompts", "a", "b", "messages", "rendered", "rows"}),
)
REVISER = Contract(
    order=("prompts", "responses"),
    needed=frozenset({"responses"}),
    offered=frozenset({"prompts", "responses", "principles", "messages", "rendered", "rows"}),
)
LABELER = Contract(
    order=("prompts", "completions"),
    needed=frozenset({"completions"}),
    offered=frozenset({"prompts", "completions", "messages", "rendered", "rows"}),
)


@dataclass(frozen=True, slots=True)
class Bound:
    """A function and the names of the arguments that it gets."""

    function: Callable[..., Any]
    positional: tuple[str, ...]
    keywords: tuple[str, ...]

    def __call__(self, arguments: Arguments) -> Any:
        """Call the function with the arguments that it takes."""
        named = {name: arguments[name] for name in self.keywords}
        return self.function(*[arguments[name] for name in self.positional], **named)


def bind(function: Callable[..., Any], contract: Contract, where: str) -> Bound:
    """Choose the arguments of a function.

    Args:
        function: A function, partial, method or object with `__call__`.
        contract: The available arguments.
        where: The configuration key that names it, for errors.

    Raises:
        ConfigError: It cannot be called with these arguments, or does not return values: a class,
            or a function that must be awaited.
    """
    called = function
    while isinstance(called, functools.partial):
        called = called.func
    calls = (called, type(called).__call__)
    if inspect.isclass(function):
        raise ConfigError(
            f"{function.__name__} is a class, so calling it makes an object and no numbers",
            where=where,
            fix="name a function, or an object that has __call__",
        )
    if any(inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in calls):
        raise ConfigError(
            "the function must be awaited (async def), and it is called like a plain one",
            where=where,
            fix="name a plain function that calls asyncio.run(...)",
        )
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some functions written in C have no signature
        return Bound(function, contract.order, ())
    return _by_name(function, parameters, contract) or _by_order(
        function, parameters, contract, where
    )


def _by_name(
    function: Callable[..., Any], parameters: list[Parameter], contract: Contract
) -> Bound | None:
    named = [p for p in parameters if p.name in contract.offered and p.kind not in _VARIABLE]
    required = {p.name for p in parameters if p.default is p.empty and p.kind not in _VARIABLE}
    names = {p.name for p in named}
    if not (contract.needed <= names and required <= names):
        return None
    first = tuple(p.name for p in named if p.kind is Parameter.POSITIONAL_ONLY)
    if first != tuple(p.name for p in parameters[: len(first)]):
        return None  # a positional parameter before it would be skipped
    return Bound(function, first, tuple(p.name for p in named if p.name not in first))


def _by_order(
    function: Callable[..., Any], parameters: list[Parameter], contract: Contract, where: str
) -> Bound:
    count = len(contract.order)
    taken = [p.name for p in parameters if p.kind in _BY_POSITION][:count]
    swapped = any(
        contract.means(name) not in ("", wanted)
        for name, wanted in zip(taken, contract.order, strict=False)
    )
    more = [
        p.name
        for p in parameters
        if p.name in contract.offered
        and p.name not in taken
        and p.kind not in (*_VARIABLE, Parameter.POSITIONAL_ONLY)
    ]
    bound = Bound(function, contract.order, tuple(more))
    signature = inspect.signature(function)
    try:
        signature.bind(*contract.order, **dict.fromkeys(more))
    except TypeError as error:
        raise _cannot(signature, contract, where, str(error)) from error
    if swapped:
        raise _cannot(signature, contract, where, "some of its names mean other arguments")
    return bound


def _cannot(signature: inspect.Signature, contract: Contract, where: str, why: str) -> ConfigError:
    order, takes = ", ".join(contract.order), ", ".join(signature.parameters)
    others = ", ".join(sorted(contract.offered - set(contract.order)))
    return ConfigError(
        f"the function takes ({takes}), and is called with ({order}): {why}",
        where=where,
        fix=f"it must take ({order}), and may take any of these names: {others}",
    )
