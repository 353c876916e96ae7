"""Reads a documented command by the program that it calls, or by what that program would read."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import re
import runpy
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from documented import ROOT, Command

from orchestrator.cli import VERBS
from orchestrator.command_line.composition import compose_run
from orchestrator.planning.plan import plan_stages

RUN = "orchestrator.run"
MODULES = {
    RUN, "orchestrator.data", "orchestrator.doctor", "orchestrator.label", "orchestrator.report",
    "orchestrator.watch", "orchestrator.serve_reward", *(verb.module for verb in VERBS.values()),
}  # fmt: skip
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


class Parsed(BaseException):
    """The module's own parser has read all words."""


def read(command: Command, patch: pytest.MonkeyPatch) -> None:
    """Fail unless the program that the command calls understands every word of it."""
    words = command.words()
    if command.is_span and (len(words) < 4 or re.search(r"[\[\]]|\.\.\.", command.text)):
        _name_exists(words)
        return
    READERS[Path(words[0]).name](words[1:], patch)


def _name_exists(words: list[str]) -> None:
    """For a part of a command: its verb, module or target."""
    if "-m" in words:
        for module in words[words.index("-m") + 1 :][:1]:
            assert module == "pytest" or module in MODULES or _benchmark(module).is_file(), module
    elif Path(words[0]).name == "rehearsal":
        verb = words[1] if len(words) > 1 else "VERB"
        assert verb in VERBS or verb.isupper() or verb.startswith("--"), words
    else:
        READERS[Path(words[0]).name](words[1:], pytest.MonkeyPatch())


def _python(words: list[str], patch: pytest.MonkeyPatch) -> None:
    if not words:
        return
    assert words[0] == "-m", words
    _, module, *rest = words
    if module == "pytest":
        _pytest(rest)
    elif module.startswith("benchmarks."):
        assert _benchmark(module).is_file(), module
        _parse(lambda: runpy.run_module(module, run_name="__main__"), module, rest, patch)
    else:
        assert module in MODULES, module
        _module(module, rest, patch)


def _rehearsal(words: list[str], patch: pytest.MonkeyPatch) -> None:
    verb, *rest = words
    if verb not in ("--help", "--version"):
        _module(VERBS[verb].module, rest, patch)


def _module(module: str, words: list[str], patch: pytest.MonkeyPatch) -> None:
    if module == RUN:
        _run(words)
        return
    main = importlib.import_module(f"{module}.__main__" if _is_package(module) else module).main
    _parse(lambda: main(words), module, words, patch)
    if module.startswith("orchestrator.doctor"):
        compose_run([word for word in words if not word.startswith("--")])


def _run(words: list[str]) -> None:
    """Compose the configuration and order its stages; the files it names need not be there."""
    flag = words.index("--config-dir") if "--config-dir" in words else None
    own = None if flag is None else Path(words[flag + 1])
    overrides = words if flag is None else words[:flag] + words[flag + 2 :]
    if "-m" in overrides:  # several jobs, of which the first is composed
        overrides = [_first(word) for word in overrides if word != "-m"]
    config = compose_run([word for word in overrides if word != "..."], own)
    if "..." in words:  # the models and files that the reader fills in
        return
    if config.cluster.unknown:
        config.cluster.sizes = "64x8+64x8+64x8+64x8"
    plan_stages(config)


def _first(override: str) -> str:
    """An override with the first of the values that a sweep goes through."""
    key, _, values = override.partition("=")
    return override if values[:1] in ("[", "{") else f"{key}={values.partition(',')[0]}"


def _parse(
    main: Callable[[], object], module: str, words: list[str], patch: pytest.MonkeyPatch
) -> None:
    """Call `main` up to the point where its parser has read the words."""
    strict = argparse.ArgumentParser.parse_args
    lenient = argparse.ArgumentParser.parse_known_args

    def parse_args(self, args=None, namespace=None):
        patch.setattr(argparse.ArgumentParser, "parse_known_args", lenient)
        raise Parsed(strict(self, args, namespace))

    def parse_known_args(self, args=None, namespace=None):
        raise Parsed(lenient(self, args, namespace))

    patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
    patch.setattr(sys, "argv", [module, *words])
    with pytest.raises(Parsed):
        main()


def _pytest(words: list[str]) -> None:
    for word in words:
        path = word.partition("::")[0]
        assert word.startswith("-") or "/" not in path or (ROOT / path).exists(), word
    assert {word for word in words if word.startswith("-")} <= {"-m", "-q", "-x"}


def _make(words: list[str], _patch: pytest.MonkeyPatch) -> None:
    for word in words:
        if "=" not in word and word.islower():
            assert f"\n{word}:" in (ROOT / "Makefile").read_text(), word


def _uv(words: list[str], _patch: pytest.MonkeyPatch) -> None:
    for extras in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), extras
    for flag, value in itertools.pairwise(words):
        assert flag not in ("--constraints", "--requirements") or (ROOT / value).is_file(), value
    assert words[:2] == ["pip", "install"] or words[0] == "build"


def _curl(words: list[str], _patch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:8000/v1/(chat/)?completions", words[0])
    request = json.loads(words[words.index("-d") + 1])
    assert request.keys() >= {"model"}


def _export(words: list[str], _patch: pytest.MonkeyPatch) -> None:
    """In the shell, `export NAME=VALUE` sets a variable."""
    assert len(words) == 1
    assert "=" in words[0]


def _ssh(words: list[str], _patch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"-L \d+:127\.0\.0\.1:\d+ [A-Z]+", " ".join(words))


def _installed(name: str) -> Callable[[list[str], pytest.MonkeyPatch], None]:
    def exists(_words: list[str], _patch: pytest.MonkeyPatch) -> None:
        assert (Path(sys.executable).parent / name).is_file()

    return exists


READERS: dict[str, Callable[[list[str], pytest.MonkeyPatch], None]] = {
    "python": _python, "rehearsal": _rehearsal, "make": _make, "uv": _uv, "curl": _curl,
    "export": _export, "ssh": _ssh, "vllm": _installed("vllm"),
}  # fmt: skip


def _benchmark(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def _is_package(module: str) -> bool:
    return (ROOT / module.replace(".", "/")).is_dir()
