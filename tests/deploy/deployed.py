"""Reads the deploy files the way that their readers do: Hydra, Ray's command line, misspellings."""

from __future__ import annotations

import copy
import functools
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from ray.scripts.scripts import cli

from orchestrator import run
from orchestrator.command_line.arguments import prepare
from orchestrator.config.schema import Config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RAY_PIN = re.search(r'"ray==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
assert RAY_PIN is not None
RAY_VERSION = RAY_PIN[1]


@functools.cache
def configured(*overrides: str) -> Config:
    """The checked configuration of `python -m orchestrator.run OVERRIDES`."""
    words = [run.may_add(each) for each in prepare(list(overrides))]
    with initialize_config_dir(version_base="1.3", config_dir=str(run.CONF)):
        composed = compose("config", overrides=words)
    config = run.to_config(composed)
    assert OmegaConf.select(composed, "resume") in ("auto", "")
    return config


def configured_by(command: str) -> Config:
    """The configuration that one shell command with `-m orchestrator.run` in it composes."""
    words = shlex.split(command)
    return configured(*words[words.index("orchestrator.run") + 1 :])


def ray_command(words: list[str]) -> dict[str, Any]:
    """The options that Ray's own command line reads; it refuses what it does not know."""
    name, command, rest = cli.resolve_command(click.Context(cli), list(words))
    assert command is not None
    return command.make_context(name, list(rest)).params


def ray_starts(commands: list[str]) -> list[dict[str, Any]]:
    """Options of each `ray start` among shell commands."""
    found = []
    for command in commands:
        for part in command.split(";"):
            words = shlex.split(part)
            while words and "=" in words[0]:
                words.pop(0)
            if words and words[0].endswith("ray"):
                options = ray_command(words[1:])
                if words[1] == "start":
                    found.append(options)
    return found


def misspelt(document: Any, free: set[str]) -> Iterator[tuple[str, Any]]:
    """One copy of the document for each of its keys, with this key misspelt.

    Args:
        document: What a YAML file holds.
        free: Names of mappings whose keys are names that the user makes up.
    """

    def walk(part: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if isinstance(part, dict):
            for key, value in part.items():
                if not free & set(path[-1:]):
                    yield (*path, key)
                yield from walk(value, (*path, key))
        elif isinstance(part, list):
            for index, value in enumerate(part):
                yield from walk(value, (*path, str(index)))

    for *path, key in walk(document, ()):
        broken = copy.deepcopy(document)
        part = broken
        for step in path:
            part = part[int(step)] if isinstance(part, list) else part[step]
        part[f"{key}x"] = part.pop(key)
        yield ".".join((*path, key)), broken


def refuses_each_misspelt_key(
    check: Callable[[Any], object],
    document: Any,
    errors: tuple[type[BaseException], ...],
    free: set[str],
) -> int:
    """Assert that `check` takes the document and refuses each misspelling; returns their number."""
    check(copy.deepcopy(document))
    keys = []
    for key, broken in misspelt(document, free):
        try:
            check(broken)
        except errors:
            keys.append(key)
        else:
            pytest.fail(f"a misspelt {key} passes")
    return len(keys)
