"""The environments of many sequences in one process; the other side is `environment_process`.

Each message names a sequence with its row, its seed and all texts that the policy has said. An
environment that is not there, because its process is new, is made and gets the earlier texts again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypedDict

from workers.environments.tools import tools_factory
from workers.environments.turn import Environment, Factory
from workers.errors import ConfigError
from workers.process.user_code import describe, kind_of, load_function

WHERE = "environment.factory"
TOOLS = "tools "  # begins the path of an environment of tools; JSON follows


class Asked(TypedDict):
    """A message of the other side."""

    id: int
    row: dict[str, Any]
    seed: int
    texts: list[str]


def tools_path(names: tuple[str, ...], style: str) -> str:
    """The path by which `load_players` finds an environment of tools."""
    return TOOLS + json.dumps([list(names), style])


def load_factory(path: str, folder: str = "") -> Factory:
    """The factory at an import path, or that of tools.

    Raises:
        ConfigError: It cannot be imported, is not callable, or there is no such tool.
    """
    if path.startswith(TOOLS):
        names, style = json.loads(path.removeprefix(TOOLS))
        return tools_factory(names, style, folder)
    return load_function(path, WHERE, folder)


def load_players(path: str, folder: str = "") -> Players:
    """The environments made by a factory; see `load_factory`."""
    return Players(load_factory(path, folder))


class Players:
    """The environments of this process, by sequence."""

    def __init__(self, make: Factory) -> None:
        self._make = make
        self._there: dict[int, tuple[Environment, int]] = {}  # and how many texts each was given

    def answer(self, asked: Asked) -> dict[str, Any]:
        """The turns that were played now, or why there are none; without `id`, forget all."""
        if "id" not in asked:
            self._there.clear()
            return {}
        name, texts = asked["id"], asked["texts"]
        environment, played = self._there.pop(name, (None, 0))
        turns: list[list[object]] = []
        try:
            if environment is None or played >= len(texts):
                environment, played = self._made(asked["row"], asked["seed"]), 0
            turns = [_fields(environment.step(text)) for text in texts[played:]]
        except (Exception, SystemExit) as error:  # noqa: BLE001  user code may raise anything
            return {"reason": f"environment raised {kind_of(error)}", "words": describe(error)}
        if not turns[-1][2]:
            self._there[name] = (environment, len(texts))
        return {"turns": turns}

    def _made(self, row: Mapping[str, Any], seed: int) -> Environment:
        made: Any = self._make(row, seed)
        if not callable(getattr(made, "step", None)):
            raise TypeError(f"the factory returned {type(made).__name__}, which has no step(text)")
        return made


def _fields(turn: Any) -> list[object]:
    """An answer as [observation, reward, done]; raises TypeError or ValueError if it is none."""
    observation: object = getattr(turn, "observation", None)
    reward: object = getattr(turn, "reward", None)
    done: object = getattr(turn, "done", None)
    known = isinstance(observation, str) and isinstance(done, bool)
    if not known or isinstance(reward, bool) or not isinstance(reward, int | float):
        raise TypeError(
            f"step returned {type(turn).__name__}: it must be a Turn (observation: str, "
            "reward: float, done: bool)"
        )
    if not math.isfinite(float(reward)):
        raise ValueError(f"the reward of a turn is {float(reward)}")
    return [observation, float(reward), done]


def try_factory(path: str, folder: str = "") -> None:
    """Import a factory, as `load_factory`, and check that it takes a row and a seed.

    Raises:
        ConfigError: It cannot be imported, or takes something else.
    """
    import inspect

    factory = load_factory(path, folder)
    try:
        inspect.signature(factory).bind({}, 0)
    except ValueError:  # built-in code without a signature
        return
    except TypeError as error:
        raise ConfigError(
            f"{path!r} cannot be called as (row, seed): {error}",
            where=WHERE,
            fix="def make(row, seed): return an object with step(text) -> Turn",
        ) from error
