"""`--help KEY`: one line per key below it, from the text under each field of the schema."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
import typing
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any

from orchestrator.command_line.errors import unknown_key
from orchestrator.command_line.flags import read_flags
from orchestrator.command_line.key_types import type_words
from orchestrator.config.data_sets import DataSetConfig
from orchestrator.config.ranges import Range, limits_of
from orchestrator.config.schema import Config

EVERYTHING = "all"
_SET = "data.sets.NAME"
NOTE = "Values are the schema's; groups and experiments set others: --cfg job prints a run's.\n"


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """One key of the schema."""

    name: str  # dotted
    kind: Any
    default: Any  # dataclasses.MISSING: it must be given
    limits: Range | None
    text: str

    def line(self) -> str:
        """Key, default, what it may be, and what it is for."""
        allowed = type_words(self.kind)
        if self.limits is not None:
            allowed = f"{allowed} {self.limits.short()}".strip()
        given = "=..." if self.default is dataclasses.MISSING else f"={shown_value(self.default)}"
        return f"{self.name}{given} ({allowed}): {self.text}"


def key_help(arguments: Sequence[str]) -> str | None:
    """The help that `--help KEY ...` asks for; None if the arguments ask for something else.

    Raises:
        UnknownKeyError: there is no such key or section.
        ConfigError: a flag that there is not.
    """
    if not {"--help", "-h"} & set(arguments):
        return None
    asked = [word for word in read_flags(arguments)[1] if "=" not in word]
    if not asked:
        return None
    return described(asked)


def described(words: Sequence[str]) -> str:
    """One line per key that is, or is below, one of these; with the options of a single key.

    Raises:
        UnknownKeyError: there is no such key or section.
    """
    known = list(all_keys())
    lines: list[str] = []
    for word in words:
        found = [key for key in known if _is_below(key.name, word)]
        if not found:
            raise unknown_key(word)
        lines += [key.line() for key in found]
        if len(found) == 1:
            lines += _options(found[0].kind)
    return "\n".join([*lines, "", NOTE])


def _is_below(key: str, word: str) -> bool:
    return word == EVERYTHING or key == word or key.startswith(f"{word}.")


def all_keys() -> Iterator[Key]:
    """Every key that a command line can set, in the order of the schema."""
    yield from _below(Config, "")
    yield from _below(DataSetConfig, f"{_SET}.")


def _below(section: type, prefix: str) -> Iterator[Key]:
    hints, texts = typing.get_type_hints(section), field_texts(section)
    for each in dataclasses.fields(section):
        name, kind = f"{prefix}{each.name}", hints[each.name]
        if dataclasses.is_dataclass(kind):
            yield from _below(typing.cast(type, kind), f"{name}.")
            continue
        default = each.default
        if each.default_factory is not dataclasses.MISSING:
            default = each.default_factory()
        limits = limits_of(each)
        number = limits if isinstance(limits, Range) else None
        yield Key(name, kind, default, number, texts[each.name])


@functools.cache
def field_texts(owner: type) -> dict[str, str]:
    """Name of each field, or of each member of an enumeration -> the text below it."""
    texts: dict[str, str] = {}
    for base in reversed(owner.__bases__):
        if dataclasses.is_dataclass(base):
            texts |= field_texts(base)
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    body = typing.cast(ast.ClassDef, tree.body[0]).body
    for statement, below in itertools.pairwise(body):
        match statement, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = " ".join(text.split())
            case _:
                pass
    return texts


def _options(kind: Any) -> list[str]:
    """One indented line per member of an enumeration that has a text."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        return []
    texts = field_texts(kind)
    return [f"  {each.value}: {texts[each.name]}" for each in kind if each.name in texts]


def shown_value(value: Any) -> str:
    """A value as a command line writes it."""
    if isinstance(value, Enum):
        return str(value.value)
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f'"{value}"' if value == "" else str(value)
