"""`--help KEY` says for each key what it is, what it may be, and what it is for."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.command_line.key_help import field_texts, key_help
from orchestrator.command_line.key_types import schema_types
from orchestrator.config.cluster import Placement
from orchestrator.config.training import KLConfig
from workers.errors import ConfigError, UnknownKeyError


def _lines(*arguments: str) -> list[str]:
    text = key_help(arguments)
    assert text is not None
    return text.split("\n\n", maxsplit=1)[0].splitlines()


def test_a_section_lists_its_keys_with_default_range_and_purpose() -> None:
    lines = _lines("--help", "algorithm.kl")
    assert lines[1] == (
        "algorithm.kl.coefficient=0.05 (a number at least 0): Weight of the KL in the reward, in "
        "reward units per nat; the initial value when adaptive."
    )
    assert [line.split("=")[0] for line in lines] == [
        f"algorithm.kl.{each.name}" for each in dataclasses.fields(KLConfig)
    ]


def test_a_single_key_also_lists_what_each_value_means() -> None:
    assert _lines("-h", "cluster.placement") == [
        "cluster.placement=packed (one of packed, apart): How role groups share nodes.",
        "  packed: On as few nodes as possible.",
        "  apart: Each role group on separate nodes if there are enough.",
    ]


def test_all_lists_every_key_of_the_schema_and_each_has_a_sentence() -> None:
    lines = _lines("--help", "all")
    described = {line.split("=")[0] for line in lines}
    leaves = {key for key, kind in schema_types().items() if not dataclasses.is_dataclass(kind)}
    assert leaves <= described
    assert described - leaves == {
        f"data.sets.NAME.{name}"
        for name in ("kind", "path", "format", "columns", "split", "subset", "weight")
    }
    assert [line for line in lines if not line.endswith(".") or line.endswith(": .")] == []


def test_sections_have_a_sentence_too() -> None:
    missing = []
    for key, kind in [("", None), *schema_types().items()]:
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            texts = field_texts(kind)
            missing += [f"{key}.{e.name}" for e in dataclasses.fields(kind) if not texts[e.name]]
    assert missing == []


def test_help_without_a_key_and_other_commands_are_left_to_hydra() -> None:
    assert key_help(["--help"]) is None
    assert key_help(["--help", "algorithm.iterations=3"]) is None
    assert key_help(["algorithm.iterations=3"]) is None


def test_an_unknown_key_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(UnknownKeyError, match="algorithm") as caught:
        key_help(["--help", "algoritm"])
    assert "algorithm.kl" in caught.value.fix


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match="no flag --hepl"):
        key_help(["--help", "--hepl", "algorithm"])


def test_members_without_a_text_have_none() -> None:
    assert field_texts(Placement) == {
        "packed": "On as few nodes as possible.",
        "apart": "Each role group on separate nodes if there are enough.",
    }
