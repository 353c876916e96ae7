"""The value of an arithmetic expression: numbers, + - * / // % ** and parentheses."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

from workers.environments.tools import Tool, ToolError

_LONGEST = 200  # characters
_LARGEST = 1e15  # of any number on the way; ** of larger ones would not end
_TWO: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}  # fmt: skip
_MOST_POWER = 64


def calculate(expression: str) -> str:
    """The value as text: a whole number without a point, another one to 10 digits."""
    if not isinstance(expression, str) or len(expression) > _LONGEST:
        raise ToolError(f"give an expression of at most {_LONGEST} characters")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ToolError("this is no arithmetic expression") from error
    except ArithmeticError as error:
        raise ToolError(str(error)) from error
    return str(int(value)) if value == int(value) else f"{value:.10g}"


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(number)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _value(inner)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _TWO:
            a, b = _value(left), _value(right)
            if isinstance(sign, ast.Pow) and abs(b) > _MOST_POWER:
                raise OverflowError("the power is too large")
            return _bounded(_TWO[type(sign)](a, b))
        case _:
            raise ValueError("not arithmetic")


def _bounded(number: object) -> float:
    if not isinstance(number, int | float) or not abs(number) <= _LARGEST:
        raise OverflowError("a number is too large")
    return number


TOOL = Tool(calculate)
