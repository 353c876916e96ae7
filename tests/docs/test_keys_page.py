"""docs/keys.md lists every key of the schema, with unit and purpose, as the schema has them."""

from __future__ import annotations

import dataclasses
import re

import pytest
from documented import ROOT

from orchestrator import keys
from orchestrator.command_line.key_help import all_keys
from orchestrator.command_line.key_types import schema_types
from orchestrator.command_line.key_units import named_units, unit_of
from orchestrator.command_line.keys_page import keys_page

PAGE = ROOT / "docs" / "keys.md"
ROWS = re.findall(r"^\| `([\w.]+)` \|(.*)\|$", PAGE.read_text(encoding="utf-8"), flags=re.M)


def test_the_page_is_the_schema_of_today() -> None:
    """If this fails: .venv/bin/rehearsal keys --markdown > docs/keys.md."""
    assert PAGE.read_text(encoding="utf-8") == keys_page()


def test_every_leaf_of_the_schema_has_a_row_with_a_sentence() -> None:
    leaves = {key for key, kind in schema_types().items() if not dataclasses.is_dataclass(kind)}
    assert leaves <= {name for name, _ in ROWS}
    assert len(ROWS) == len(list(all_keys()))
    for name, row in ROWS:
        purpose = re.split(r"(?<!\\)\|", row)[-1].strip()
        assert re.match(r'[\w"`].*\.', purpose), name


def test_every_row_has_six_cells() -> None:
    for name, row in ROWS:
        assert len(re.split(r"(?<!\\)\|", row)) == 5, name


@pytest.mark.parametrize(
    ("key", "unit"),
    [("run.call_seconds", "seconds"), ("algorithm.kl.coefficient", "reward per nat"),
     ("algorithm.ptx.coefficient", "none"), ("algorithm.prompts_per_iteration", "prompts"),
     ("run.checkpoint.stage_steps.ppo", "iterations"), ("algorithm.clip_high", "none"),
     ("rollout.parity_tolerance", "nats"), ("run.dir", ""), ("stages", "")],
)  # fmt: skip
def test_a_number_has_its_unit(key: str, unit: str) -> None:
    assert unit_of(key, schema_types()[key]) == unit


def test_a_number_whose_unit_nobody_knows_is_an_error() -> None:
    with pytest.raises(LookupError, match=r"algorithm\.zeal is a number without a unit"):
        unit_of("algorithm.zeal", float | None)


def test_no_unit_is_listed_for_a_name_that_no_key_has() -> None:
    names = [key.name for key in all_keys() if unit_of(key.name, key.kind)]
    stale = [each for each in named_units() if not any(f".{n}".endswith(f".{each}") for n in names)]
    assert stale == []


def test_the_command_prints_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert keys.main(["--markdown"]) == 0
    assert capsys.readouterr().out == keys_page()
