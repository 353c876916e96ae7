"""The settings of a variant: those of the run with its changes, checked in the same way."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.checkpoints.config_changes import READERS, flat, plain_config
from orchestrator.config.model import ModelConfig
from orchestrator.config.schema import Config
from orchestrator.config.variants import Variant, method_keys
from workers.errors import ConfigError, RehearsalError, UnknownKeyError

# What a variant may not change: what the run has once (its folder, its data, its processes and
# engines), the settings of stages that run once, and how rankings are labeled, which is done once.
FIXED = (
    "experiment", "seed", "resume", "rerun", "stages", "variants", "run", "data",
    *(f"model.{each.name}" for each in dataclasses.fields(ModelConfig) if each.name != "large"),
    "trainer", "rollout", "reward", "iterate", "collect", "evaluate", "samples", "overoptimization",
    "cluster",
    "logger",
    *(f"reward_model.{name}" for name in (
        "prompts", "heldout_prompts", "min_completions", "max_completions", "base_fraction",
        "temperature",
    )),
    *(key for key, readers in READERS.items() if readers is None),
)  # fmt: skip


def changed(config: Config, changes: Mapping[str, Any], where: str) -> Config:
    """A copy of the configuration with other values, checked as one from the command line is."""
    for key in changes:
        _check_key(key, where)
    # a plan expands its stage runs many times, and building the typed sections takes a tenth of a
    # second per variant
    given = repr(_sections(config)), repr(dict(changes))
    if given not in _made:
        _made[given] = _with_changes(config, changes)
    return dataclasses.replace(config, **copy.deepcopy(_made[given]))


_made: dict[tuple[str, str], dict[str, Any]] = {}


def _with_changes(config: Config, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that a variant may change, with its changes."""
    node = OmegaConf.structured(Config(**_sections(config)))
    for key, value in changes.items():
        try:
            OmegaConf.update(node, key, value)
        except OmegaConfBaseException as error:
            words = str(error.msg or error).splitlines()[0]
            raise ConfigError(f"{key}: {words}", where=key, fix="give another value") from error
    made = OmegaConf.to_object(node)
    assert isinstance(made, Config)
    return _sections(made)


def kept_of(config: Config, own: Variant) -> dict[str, Any]:
    """What a variant with a file of its own keeps of the run's algorithm, defaults left out."""
    if not own.algorithm:
        return {}
    mine, usual = flat(plain_config(config)), flat(plain_config(Config))
    keys = [key for key in method_keys() if key not in own.changes]
    return {key: mine[key] for key in keys if mine[key] != usual[key]}


def _sections(config: Config) -> dict[str, Any]:
    """The sections that a variant may change."""
    return {
        each.name: getattr(config, each.name)
        for each in dataclasses.fields(config)
        if each.name not in FIXED
    }


def _check_key(key: str, where: str) -> None:
    """Refuse a key that there is not, or that all stage runs share."""
    fixed = next((f for f in FIXED if key == f or key.startswith(f"{f}.")), "")
    if fixed:
        raise ConfigError(
            f"{where}.set.{key} cannot differ from the run: {fixed} is the same for all stages",
            where=f"{where}.set.{key}",
            fix=f"set {key} for the whole run, or leave it out",
        )
    known = _known_keys()
    if key in known:
        return
    close = difflib.get_close_matches(key, known, n=2, cutoff=0.6)
    close += [each for each in known if each.rpartition(".")[2] == key.rpartition(".")[2]]
    near = [f"{where}.set.{each}" for each in dict.fromkeys(close)]
    fix = f"did you mean {' or '.join(near[:3])}?" if near else "--help all prints every key"
    raise UnknownKeyError(f"unknown key {where}.set.{key}", where="configuration", fix=fix)


@cache
def _known_keys() -> tuple[str, ...]:
    below = tuple(f"{each}." for each in FIXED)
    keys = flat(plain_config(Config))
    return tuple(k for k in keys if k not in FIXED and not k.startswith(below))


@contextmanager
def named_keys(name: str, changes: Mapping[str, Any]) -> Iterator[None]:
    """Have errors name the keys of a variant, which changes those of the run."""
    try:
        yield
    except RehearsalError as error:
        for key in changes:
            alone, full = rf"(?<![\w.]){re.escape(key)}(?!\w)", f"variants.{name}.set.{key}"
            error.what = re.sub(alone, full, error.what)
            error.where = re.sub(alone, full, error.where)
            error.fix = re.sub(alone, full, error.fix)
        if f"variants.{name}" not in error.where:
            error.what = f"variant {name}: {error.what}"
        raise
