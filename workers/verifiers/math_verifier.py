"""The response's formula is mathematically equal to the answer, by the library math-verify."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from workers.errors import ConfigError
from workers.verifiers.verifier import Check, Options, Verifier


def _make(_: Options) -> Check:
    if find_spec("math_verify") is None:
        raise ConfigError(
            "the verifier math needs the package math-verify, which is not installed",
            where="verifier",
            fix='install it on every node: uv pip install "rehearsal[verify]"',
        )
    return _not_here


def _not_here(_: str, __: Any) -> bool:
    raise AssertionError("the check runs in a process of its own")


VERIFIER = Verifier(_make, apart="workers.verifiers.math_function:score")
