"""The type of each key of the schema, and its name in messages."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from enum import Enum
from typing import Any

from orchestrator.config.data_sets import DataSetConfig
from orchestrator.config.schema import Config
from orchestrator.process.shipped import shipped

CONF = shipped("conf")
_NO_GROUPS = ("constitution",)  # principles, and no settings
# Sections whose keys the schema does not declare: Hydra must be told to add them.
OPEN_SECTIONS = ("data.sets.", "reward.settings.", "reward.terms.", "variants.")
# Settings of our reward sources that are texts with characters that Hydra would read.
_REWARD_TEXTS = ("function", "column", "pattern", "schema", "url", "rubric", "key_variable")
# Folders that Hydra itself writes into; jobs of a sweep get numbered folders in the second.
_HYDRA_TEXTS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")


@functools.cache
def schema_types() -> dict[str, Any]:
    """Dotted key -> declared type, in the order of declaration; sections are dataclasses."""
    return dict(_types(Config, ""))


def _types(owner: type, prefix: str) -> list[tuple[str, Any]]:
    hints = typing.get_type_hints(owner)
    found: list[tuple[str, Any]] = []
    for each in dataclasses.fields(owner):
        kind = hints[each.name]
        found.append((f"{prefix}{each.name}", kind))
        if dataclasses.is_dataclass(kind):
            found += _types(typing.cast(type, kind), f"{prefix}{each.name}.")
    return found


def key_type(key: str) -> Any:
    """The type of a key, also below `data.sets.NAME` and `variants.NAME`; None: there is none."""
    if key in _HYDRA_TEXTS:
        return str
    if key.startswith("data.sets."):
        parts = key.split(".")
        if len(parts) == 4:
            return typing.get_type_hints(DataSetConfig).get(parts[3])
        return str if len(parts) > 4 and parts[3] == "columns" else None
    if key.startswith("variants."):
        _, _, word, *below = (*key.split("."), "", "")
        own = ".".join(filter(None, below))
        if word == "rankings" and not own:
            return list[str]
        return schema_types().get(own) if word == "set" else str if word and not own else None
    if key.startswith(("reward.settings.", "reward.terms.")):
        return str if key.rpartition(".")[2] in _REWARD_TEXTS else None
    return schema_types().get(key)


def is_list(kind: object) -> bool:
    """Whether a type is a list of something."""
    return typing.get_origin(kind) is list


def type_words(kind: object) -> str:
    """A type in words, e.g. "a whole number"."""
    if isinstance(kind, types.UnionType):
        names = [type_words(each) for each in typing.get_args(kind) if each is not type(None)]
        return " or ".join([*names, "null"])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(each.value for each in kind)}"
    if is_list(kind):
        return "a list such as [a,b]"
    if dataclasses.is_dataclass(kind):
        return "a section of keys"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(kind, "a value")  # type: ignore[arg-type]


@functools.cache
def group_options() -> dict[str, tuple[str, ...]]:
    """Groups of configuration files, each with the names that it offers."""
    return {
        folder.name: tuple(sorted(file.stem for file in folder.glob("*.yaml")))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir() and folder.name not in _NO_GROUPS
    }
