"""Runs the tests of a mutant in a fork of a process that has imported the slow libraries."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import hypothesis
import hypothesis.strategies
import numpy as np
import omegaconf
import pytest
import ray
import rich.live
import safetensors.torch
import torch
import transformers
import transformers.modeling_utils

from mutants.operators import Mutant

SLOW_LIBRARIES = (
    hypothesis, np, omegaconf, ray, rich, safetensors, torch, transformers.modeling_utils,
)  # fmt: skip


class _MutantLoader(importlib.machinery.SourceFileLoader):
    """Compiles the mutated text in place of the file."""

    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self._text = text

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._text, self.path, "exec", dont_inherit=True)


class _MutantFinder(importlib.abc.MetaPathFinder):
    def __init__(self, root: Path, mutant: Mutant) -> None:
        self._name = mutant.path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        self._path, self._text = str(root / mutant.path), mutant.source

    def find_spec(self, name, path=None, target=None):
        if name != self._name:
            return None
        loader = _MutantLoader(name, self._path, self._text)
        return importlib.util.spec_from_file_location(name, self._path, loader=loader)


@dataclass(frozen=True, slots=True)
class Child:
    """A process that runs the tests of one mutant."""

    pid: int
    limit: float  # of time.monotonic()

    def outcome(self) -> str | None:
        """One of killed, survived, timeout (as good as killed), error; None = not yet."""
        done, status = os.waitpid(self.pid, os.WNOHANG)
        if done:
            # 0 = passed, 1 = a test failed, 2 and 4 = an import failed, below 0 = it crashed
            code = os.waitstatus_to_exitcode(status)
            return {0: "survived", 5: "error"}.get(code, "killed")
        if time.monotonic() < self.limit:
            return None
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return "timeout"


def start_tests(root: Path, mutant: Mutant | None, tests: Sequence[str], seconds: float) -> Child:
    """Start the tests of a mutant.

    Args:
        root: of the repository, which must be the working directory.
        mutant: what is imported in place of its file; None = the file itself.
        tests: paths that pytest takes; those that kill most come first.
        seconds: after which a mutant counts as killed by its endlessness.
    """
    assert not any(name.split(".")[0] in ("workers", "orchestrator") for name in sys.modules)
    child = os.fork()  # this process has one thread: no lock is held by another
    if child == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        if mutant is not None:
            sys.meta_path.insert(0, _MutantFinder(root, mutant))
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore"]
        os._exit(int(pytest.main([*options, *tests])))
    return Child(child, time.monotonic() + seconds)
