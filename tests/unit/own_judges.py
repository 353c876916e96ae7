"""Judges as users write them, in a module that a process of its own imports at once."""

from __future__ import annotations

import json
import os
from pathlib import Path


def longer(prompts: list[str], a: list[str], b: list[str]) -> list[float]:
    assert len(prompts) == len(a) == len(b)
    return [1.0 if n % 4 else 0.5 for n in range(len(a))]


def terse(prompts: list[str], a: list[str], b: list[str]) -> list[float]:
    return [1.0]


def crash(prompts: list[str], a: list[str], b: list[str]) -> list[float]:
    raise ModuleNotFoundError("numpie")


def boast(prompts: list[str], a: list[str], b: list[str]) -> list[float]:
    return [1.0, 2.0] * (len(prompts) // 2)


def ramble(prompts: list[str], a: list[str], b: list[str]) -> list[str]:
    return ["first"] * len(prompts)


def reader(prompts: list[str], a: list[str], b: list[str], messages: list) -> list[float]:
    seen = json.dumps(list(zip(prompts, messages, strict=True)))
    Path(os.environ["OWN_JUDGES_SEEN"]).write_text(seen)
    return [0.5 for _ in prompts]
