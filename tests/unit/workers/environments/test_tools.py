"""Tools: what a turn calls, what a mistake of the policy reads, and what is a fault of the tool."""

from __future__ import annotations

import json
from typing import Any

import pytest

from workers.environments.own.calculator_tool import calculate
from workers.environments.tools import ToolError, tools_factory
from workers.environments.turn import Turn
from workers.errors import ConfigError

MODULE = """
from workers.environments.tools import ToolError
def search(query: str, row) -> str:
    if query == "nothing":
        raise ToolError("there is nothing of this name")
    if query == "fault":
        raise OSError("the index is gone")
    return 7 if query == "number" else f"{query} in {row['topic']}"
class Shop:
    @staticmethod
    def search(query):
        return query
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("tools")
    (made / "my_tools.py").write_text(MODULE)
    return str(made)


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def test_a_turn_without_a_call_is_the_answer(folder: str) -> None:
    made = tools_factory(["calculator", "my_tools:search"], "json", folder)({"topic": "t"}, 0)
    assert made.step("it is 7.") == Turn(done=True)
    said = made.step(f"Let me see. {call('calculator', expression='2*(3+4)')}")
    assert said == Turn("14")
    both = call("search", query="a") + call("calculator", expression="1/4")
    assert made.step(both).observation == "a in t\n0.25"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<tool_call>{", "no end"),
        ("<tool_call>{]</tool_call>", "no call"),
        ("<tool_call>[1]</tool_call>", "no call"),
        ('<tool_call>{"name": "search", "arguments": 3}</tool_call>', "no call"),
        (call("find", query="x"), "there is no tool 'find'; there is calculator, search"),
        (call("search", word="x"), "search: missing a required argument: 'query'"),
        (call("search", query="x", row="mine"), "x in t"),  # a row is not the policy's to give
        (call("search", query="nothing"), "search: there is nothing of this name"),
        (call("calculator", expression="import os"), "no arithmetic"),
        (call("calculator", expression="9**9**9"), "too large"),
        (call("calculator", expression="1/0"), "division by zero"),
    ],
)
def test_a_mistake_of_the_policy_is_answered(text: str, said: str, folder: str) -> None:
    made = tools_factory(["calculator", "my_tools:search"], "json", folder)({"topic": "t"}, 0)
    turn = made.step(text)
    assert said in turn.observation
    assert (turn.done, turn.reward) == (False, 0.0)


@pytest.mark.parametrize(("query", "error"), [("fault", OSError), ("number", TypeError)])
def test_a_fault_of_a_tool_is_an_error(query: str, error: Any, folder: str) -> None:
    made = tools_factory(["my_tools:search"], "json", folder)({"topic": "t"}, 0)
    with pytest.raises(error):
        made.step(call("search", query=query))


def test_a_call_in_words_begins_with_the_tool(folder: str) -> None:
    made = tools_factory(["calculator"], "words", folder)({}, 0)
    assert made.step("calculator 3 - 5").observation == "-2"
    assert made.step(" calculator").observation == "calculator: this is no arithmetic expression"
    assert made.step("the calculator 3").done


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        (["kalkulator"], "did you mean calculator"),
        (["my_tools:find"], "no 'find'"),
        (["my_tools:search", "my_tools:Shop.search"], "two tools are called 'search'"),
        (["my_tools:MODULE"], "no 'MODULE'"),
    ],
)
def test_tools_that_cannot_be_used_are_refused(tools: list[str], words: str, folder: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")) as caught:
        tools_factory(tools, "json", folder)
    assert caught.value.where == "environment.tools" or "did you mean" in str(caught.value)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2 + 3 * 4", "14"), ("-7 // 2", "-4"), ("2 ** 10", "1024"), ("7 % 4", "3"), ("1e3", "1000"),
     ("(1 + 2) / 4", "0.75"), ("+5", "5"), ("0.1 + 0.2", "0.3")],
)  # fmt: skip
def test_values_by_hand(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression", ["", "x", "1 if 1 else 2", "(" * 150, "True", "1j", "'a' * 9"]
)
def test_what_is_no_arithmetic_is_refused(expression: str) -> None:
    with pytest.raises(ToolError):
        calculate(expression)
