"""Translate Hydra's and OmegaConf's errors: which key is wrong, and which was probably meant."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from orchestrator.command_line.foreign_names import alias_words
from orchestrator.command_line.key_types import OPEN_SECTIONS, key_type, type_words
from orchestrator.config.data_sets import KEYS, unknown_set_key
from orchestrator.config.schema import Config
from workers.errors import ConfigError, UnknownKeyError

# How OmegaConf names a value that is not of the key's type; the rest speaks of types of Python.
_VALUE = re.compile(
    r"(?:Value|Invalid value|Incompatible value) '(.*?)'(?: of type|, expected| is not| for field)"
)


def schema_keys(owner: type = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema, sections included, in the order of declaration."""
    hints = typing.get_type_hints(owner)
    for each in dataclasses.fields(owner):
        key = f"{prefix}{each.name}"
        yield key
        if dataclasses.is_dataclass(hints[each.name]):
            yield from schema_keys(hints[each.name], f"{key}.")


def nearest_keys(key: str, count: int = 3) -> list[str]:
    """The valid keys most like `key`, best first; [] when none is close.

    A mistyped word is compared with whole keys; a right word in the wrong section is found by its
    last part.
    """
    keys = list(schema_keys())
    last = key.rpartition(".")[2]
    same_name = [each for each in keys if each.rpartition(".")[2] == last]
    close = difflib.get_close_matches(key, keys, n=count, cutoff=0.7)
    names = sorted({each.rpartition(".")[2] for each in keys})
    close_names = difflib.get_close_matches(last, names, n=2, cutoff=0.75)
    by_name = [each for each in keys if each.rpartition(".")[2] in close_names]
    by_name.sort(key=lambda each: -difflib.SequenceMatcher(None, key, each).ratio())
    return list(dict.fromkeys(same_name + close + by_name))[:count]


def unknown_key(key: str) -> UnknownKeyError:
    """The error for a key that the schema does not have."""
    near = nearest_keys(key)
    words = alias_words(key)
    if words is not None:
        fix = words
    elif near:
        fix = f"did you mean {' or '.join(near)}?"
    else:
        fix = "orchestrator/config/ declares every key; --cfg job prints them"
    return UnknownKeyError(f"unknown key {key}", where="configuration", fix=fix)


def reject_unknown_keys(composed: DictConfig) -> None:
    """Raise UnknownKeyError for the first key of `composed` that is not in the schema."""
    known = set(schema_keys())
    for key in _keys(OmegaConf.to_container(composed, resolve=False)):
        if key.startswith("data.sets."):
            _, _, name, *rest = key.split(".")
            if rest and rest[0] not in KEYS:
                raise unknown_set_key(name, rest[0])
        elif key not in known and not key.startswith(OPEN_SECTIONS):
            raise unknown_key(key)


def _keys(node: object, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{prefix}{name}"
            yield from _keys(value, f"{prefix}{name}.")


def explain(error: BaseException) -> ConfigError:
    """Translate a composition error into a ConfigError."""
    for each in _chain(error):
        if isinstance(each, ConfigError):
            return each
        if isinstance(each, MissingConfigException) and each.missing_cfg_file:
            return _unknown_option(each)
        if isinstance(each, (ConfigKeyError, ConfigAttributeError)) and each.full_key:
            return unknown_key(each.full_key)
    for each in _chain(error):
        if isinstance(each, OmegaConfBaseException):
            return _wrong_type(str(each.msg or each).splitlines()[0], str(each.full_key or ""))
    return ConfigError(
        str(error).strip(),
        where="command line",
        fix="overrides are written group=option, key=value or +experiment=NAME",
    )


def _wrong_type(words: str, key: str) -> ConfigError:
    kind = key_type(key)
    if kind is None:
        fix = "orchestrator/config/ declares the type of every key"
        return ConfigError(words, where=key or "configuration", fix=fix)
    empty = f"; for none write {key}=" if kind is str else ""
    if given := _VALUE.match(words):
        what = f"{key}={given[1]} is not {type_words(kind)}"
        return ConfigError(what, where=key, fix=f"set it to {type_words(kind)}{empty}")
    return ConfigError(f"{key}: {words}", where=key, fix=f"{key} is {type_words(kind)}{empty}")


def _unknown_option(error: MissingConfigException) -> ConfigError:
    wanted = str(error.missing_cfg_file)
    group, _, option = wanted.rpartition("/")
    options = [str(each) for each in error.options or ()]
    near = difflib.get_close_matches(option, options, n=1, cutoff=0.5)
    sign = "+" if group == "experiment" else ""
    fix = f"did you mean {sign}{group}={near[0]}? " if near else ""
    if options:
        fix += f"options of {group}: {', '.join(options)}"
    return UnknownKeyError(f"there is no {wanted}", where="configuration", fix=fix)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, outermost first."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__
