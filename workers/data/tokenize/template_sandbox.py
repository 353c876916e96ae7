"""A sandbox for chat templates, which are untrusted code: bounded computation, a fixed date.

Templates get the same variables as in `apply_chat_template` of transformers. The sandbox refuses
random choices, which differ from run to run, and large numbers in powers, repetitions, formats and
calls, by which a few characters could allocate gigabytes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from workers.process.caught_errors import Caught

_MOST = 1_000_000  # limit for numbers in calls, and for characters or bits of an operator's result
_WIDE = re.compile(r"[*]|\d{5}")  # refused widths in a format
_RANDOM = {"globals": ("lipsum",), "filters": ("random",)}
_WORDS = 120  # characters of an error message that are shown
_MOST_SOURCE = 2**20
_LONGEST = 2**26  # limit for the length of a text or list, at any time
_SPARE = 2**22  # characters that a template may add to a dialogue, see `Template.render`


class BrokenTemplateError(Exception):
    """The template is not valid Jinja, or fails on a dialogue; the argument says how."""


class RefusalError(Exception):
    """The template refuses a dialogue by `raise_exception`; the argument is its message."""


class Template:
    """A compiled chat template.

    Args:
        source: Jinja.
        special: Names and texts of the tokenizer's special tokens.
        now: The time that `strftime_now` formats.

    Raises:
        BrokenTemplateError: It does not compile.
    """

    def __init__(self, source: str, special: Mapping[str, str], now: datetime) -> None:
        if len(source) > _MOST_SOURCE:
            raise BrokenTemplateError(f"longer than {_MOST_SOURCE:,} characters")
        self._given: dict[str, object] = dict(special)
        self._given["strftime_now"] = now.strftime
        caught = Caught(Exception)  # the compiler evaluates constant expressions of the template
        with caught:
            self._template = _environment().from_string(source)
        if caught.error is not None:
            raise BrokenTemplateError(_words(caught.error)) from caught.error

    def render(self, messages: Sequence[Mapping[str, Any]], *, to_reply: bool) -> str:
        """The text of a dialogue.

        Args:
            messages: Role and content of each turn.
            to_reply: Whether the assistant speaks next (`add_generation_prompt`).

        Raises:
            RefusalError: The template refuses the dialogue.
            BrokenTemplateError: It fails in any other way.
        """
        from jinja2 import TemplateError

        text = ""
        caught = Caught(Exception)
        with caught:
            text = self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=to_reply,
                **self._given,
            )
        if type(caught.error) is TemplateError:  # raise_exception; its subclasses are failures
            raise RefusalError(_words(caught.error)) from caught.error
        if caught.error is not None:
            raise BrokenTemplateError(_words(caught.error)) from caught.error
        content = sum(len(str(message)) for message in messages)
        if len(text) > _SPARE + 8 * content:
            raise BrokenTemplateError(
                f"it writes {len(text):,} characters for a dialogue of {content:,}"
            )
        return text


def _words(error: BaseException) -> str:
    lines = str(error).encode(errors="replace").decode().split("\n")
    first = lines[0].strip()[:_WORDS]
    return first or type(error).__name__


def _environment() -> Any:
    """The Jinja environment of transformers, with limits."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    made: Any = _compile_jinja_template("").environment.overlay()
    made.filters = {
        name: _bounded_filter(filter_)
        for name, filter_ in made.filters.items()
        if name not in _RANDOM["filters"]
    }
    made.globals = {k: v for k, v in made.globals.items() if k not in _RANDOM["globals"]}
    made.code_generator_class = _generator()
    made.concat = _joined
    made.intercepted_binops = frozenset({"*", "**", "%", "+"})
    made.binop_table = made.binop_table | {
        "+": functools.partial(_operator, made.binop_table["+"], _check_sum),
        "*": functools.partial(_operator, made.binop_table["*"], _check_product),
        "**": functools.partial(_operator, made.binop_table["**"], _check_power),
        "%": functools.partial(_operator, made.binop_table["%"], _check_format),
    }
    made.call = functools.partial(_call, made.call)
    return made


def _generator() -> Any:
    from jinja2.compiler import CodeGenerator, Frame
    from jinja2.nodes import Concat

    class Generator(CodeGenerator):
        def visit_Concat(self, node: Concat, frame: Frame) -> None:  # noqa: N802 - Jinja's name
            self.write("environment.concat(map(str, (")
            for each in node.nodes:
                self.visit(each, frame)
                self.write(", ")
            self.write(")))")

    return Generator


def _joined(parts: Iterable[str]) -> str:
    """Join the output of a template or the operands of `~`, with a limit on the length."""
    kept: list[str] = []
    size = 0
    for part in parts:
        size += len(part)
        if size > _LONGEST:
            raise _too_large()
        kept.append(part)
    return "".join(kept)


def _bounded_filter(filter_: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(filter_)  # attributes of the filter tell Jinja which arguments to pass
    def bounded(*arguments: object, **named: object) -> object:
        _check_numbers((*arguments, *named.values()))
        name = getattr(filter_, "__name__", "")
        if name == "do_format":
            _check_format(arguments[0], arguments[1:])
        elif name in ("do_replace", "do_join", "sync_do_join"):
            _check_spread(arguments)
        return filter_(*arguments, **named)

    return bounded


def _call(
    call: Callable[..., object], context: object, called: object, /, *given: object, **named: object
) -> object:
    _check_numbers((*given, *named.values()))
    method = getattr(called, "__wrapped__", called)  # the sandbox wraps `format` and `format_map`
    name, of = getattr(method, "__name__", ""), getattr(method, "__self__", "")
    if name in ("format", "format_map"):
        _check_format(of, (*given, *named.values()))
    elif name in ("replace", "join"):
        _check_spread((of, *given))
    return call(context, called, *given, **named)


def _operator(
    operator: Callable[[Any, Any], object],
    check: Callable[[object, object], None],
    left: object,
    right: object,
) -> object:
    check(left, right)
    return operator(left, right)


def _check_numbers(values: Sequence[object]) -> None:
    if any(isinstance(value, int) and abs(value) > _MOST for value in values):
        raise _too_large()


def _check_product(left: object, right: object) -> None:
    for many, times in ((left, right), (right, left)):
        if isinstance(times, int):
            bits = many.bit_length() + times.bit_length() if isinstance(many, int) else 0
            if _size(many) * times > _MOST or bits > _MOST:
                raise _too_large()


def _check_power(left: object, right: object) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _MOST:
        raise _too_large()


def _check_sum(left: object, right: object) -> None:
    if _size(left) + _size(right) > _LONGEST:
        raise _too_large()


def _check_spread(values: Sequence[object]) -> None:
    """Bound the result of replace and join, which may repeat one text per piece of another."""
    sizes = sorted(map(_size, values))
    if sizes[-1] * max([1, *sizes[:-1]]) > 4 * _LONGEST:
        raise _too_large()


def _check_format(form: object, values: object) -> None:
    if not isinstance(form, str):
        return
    size = sum(map(_size, values if isinstance(values, tuple) else (values,)))
    if _WIDE.search(form) or (1 + form.count("{") + form.count("%")) * size > 4 * _LONGEST:
        raise _too_large()


def _size(value: object) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


def _too_large() -> Exception:
    from jinja2.exceptions import SecurityError

    return SecurityError(f"a number or a text over {_MOST:,} in a template")
