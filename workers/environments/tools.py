"""The environment of a policy that may call tools: functions that answer with a text.

A turn without a call is the answer, which ends the conversation. A call that cannot be understood,
or that a tool refuses (`ToolError`), is answered by a sentence that says why: it is the policy's
mistake. Any other error of a tool is the tool's own, and the sequence is dropped.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workers.environments.turn import Environment, Factory, Turn
from workers.errors import ConfigError
from workers.extensions.kinds import Kind
from workers.process.user_code import load_function

WHERE = "environment.tools"
CallStyle = Literal["json", "words"]
_CALLS = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_FORM = 'write <tool_call>{"name": "NAME", "arguments": {...}}</tool_call>'


class ToolError(Exception):
    """A call that a tool refuses; the policy reads the message."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool of ours: the constant TOOL of `workers.environments.own.NAME_tool`."""

    call: Callable[..., str]
    columns: tuple[str, ...] = ()  # of the prompt's row, which data.keep_columns must keep
    word: str = ""  # by which a call in words begins; "" = its name


KIND = Kind("tool", Tool, "workers.environments.own", "TOOL", "_tool")


@dataclass(frozen=True, slots=True)
class _Known:
    """A tool that was found."""

    name: str
    function: Callable[..., Any]
    takes_row: bool
    word: str


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool: by named arguments, or by the text that follows the name."""

    name: str
    named: Mapping[str, Any]
    text: str | None = None


def tools_factory(names: Sequence[str], style: CallStyle, folder: str = "") -> Factory:
    """The factory of environments with these tools.

    Args:
        names: Tools of ours, or `package.module:function`, which is called by its last name.
        style: How a turn calls: "json" as Hermes and Qwen do, "words": a tool's name comes first.
        folder: First folder of the search for modules of the user.

    Raises:
        ConfigError: There is no such tool, or two have one name.
    """
    tools: dict[str, _Known] = {}
    for each in names:
        found = _find(each, folder)
        if found.name in tools:
            raise ConfigError(
                f"two tools are called {found.name!r}",
                where=WHERE,
                fix="give one of the functions another name",
            )
        tools[found.name] = found
    read = _calls_in_json if style == "json" else _call_in_words(tools)
    return lambda row, _: _Tools(tools, read, row)


def _find(name: str, folder: str) -> _Known:
    if ":" not in name:
        ours = KIND.find(name, WHERE)
        return _known(name, ours.call, ours.word)
    return _known(name.rpartition(":")[2].rpartition(".")[2], load_function(name, WHERE, folder))


def _known(name: str, function: Callable[..., Any], word: str = "") -> _Known:
    try:
        takes_row = "row" in inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the parameters of the tool {name!r} cannot be read: {error}",
            where=WHERE,
            fix="name a Python function",
        ) from error
    return _Known(name, function, takes_row, word or name)


def needed_columns(names: Sequence[str]) -> tuple[str, ...]:
    """Columns of the prompt's row that tools of ours read.

    Raises:
        ConfigError: There is no such tool.
    """
    ours = [KIND.find(name, WHERE) for name in names if ":" not in name]
    return tuple(dict.fromkeys(column for tool in ours for column in tool.columns))


class _Tools(Environment):
    def __init__(
        self,
        tools: Mapping[str, _Known],
        read: Callable[[str], list[Call | str]],
        row: Mapping[str, Any],
    ) -> None:
        self._tools, self._read, self._row = tools, read, row

    def step(self, text: str) -> Turn:
        calls = self._read(text)
        if not calls:
            return Turn(done=True)
        return Turn("\n".join(each if isinstance(each, str) else self._say(each) for each in calls))

    def _say(self, call: Call) -> str:
        tool = self._tools.get(call.name)
        if tool is None:
            return f"there is no tool {call.name!r:.80}; there is {', '.join(self._tools)}"
        row = {"row": dict(self._row)} if tool.takes_row else {}
        given = () if call.text is None else (call.text,)
        named = {key: value for key, value in call.named.items() if key not in row}
        try:
            inspect.signature(tool.function).bind(*given, **named, **row)
        except TypeError as error:
            return f"{tool.name}: {error}"
        try:
            said: object = tool.function(*given, **named, **row)
        except ToolError as error:
            return f"{tool.name}: {error}"
        if not isinstance(said, str):
            raise TypeError(f"the tool {tool.name} returned {type(said).__name__}, not a text")
        return said


def _calls_in_json(text: str) -> list[Call | str]:
    """The calls of a turn, or what is wrong with each; [] if it has none."""
    if "<tool_call>" not in text:
        return []
    return [_call_in_json(body) for body in _CALLS.findall(text)] or [f"no end: {_FORM}"]


def _call_in_json(body: str) -> Call | str:
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    match found:
        case {"name": str(name), **rest}:
            named = rest.get("arguments", {})
            if isinstance(named, dict):
                return Call(name, named)
    return f"this is no call: {_FORM}"


def _call_in_words(tools: Mapping[str, _Known]) -> Callable[[str], list[Call | str]]:
    by_word = {tool.word: name for name, tool in tools.items()}

    def read(text: str) -> list[Call | str]:
        word, _, rest = text.strip().partition(" ")
        return [Call(by_word[word], {}, rest.strip())] if word in by_word else []

    return read
