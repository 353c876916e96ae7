"""`data.sets` from the command line to the sets that are read."""

from __future__ import annotations

import sys

import pytest

from orchestrator import run
from orchestrator.command_line.errors import reject_unknown_keys
from orchestrator.config.data import DataConfig, FilesConfig, all_sets
from orchestrator.config.data_sets import data_set
from orchestrator.config.ranges import check_tree
from orchestrator.config.schema import Config
from workers.data.tokenize.data_sets import SetKind
from workers.errors import ConfigError, UnknownKeyError


def composed(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Config:
    """What `main` hands to a run, by the whole way through Hydra."""
    configs: list[Config] = []
    refused: list[ConfigError] = []

    def keep(config: object, *_: object, **__: object) -> int:
        try:
            reject_unknown_keys(config)  # type: ignore[arg-type]
            configs.append(run.to_config(config))  # type: ignore[arg-type]
        except ConfigError as error:  # the command would print it
            refused.append(error)
        return 0

    monkeypatch.setattr(run, "execute", keep)
    monkeypatch.setattr(sys, "argv", ["run", "data=files", *overrides])
    assert run.main() == 0
    if refused:
        raise refused[0]
    return configs[0]


HH = ("data.sets.hh.kind=comparisons", "data.sets.hh.path=hh.jsonl.gz")


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_a_set_from_the_command_line(monkeypatch: pytest.MonkeyPatch, plus: str) -> None:
    given = (*HH, "data.sets.hh.weight=.5", "data.sets.hh.columns.chosen=better")
    config = composed(monkeypatch, *(plus + each for each in given), "data.files.prompts=P")
    prompts, hh = all_sets(config.data)
    assert (prompts.name, prompts.kind, prompts.weight) == ("prompts", SetKind.prompts, 1.0)
    assert (hh.name, hh.kind, hh.path) == ("hh", SetKind.comparisons, "hh.jsonl.gz")
    assert (hh.weight, hh.columns, hh.format) == (0.5, {"chosen": "better"}, "auto")
    assert (prompts.key, hh.key) == ("data.files.prompts", "data.sets.hh")


@pytest.mark.parametrize(
    ("change", "what", "fix"),
    [
        ({"wieght": 1}, "data.sets.hh.wieght", "did you mean data.sets.hh.weight?"),
        ({"kind": "demos"}, "'demos' is no kind", "did you mean demonstrations?"),
        ({"kind": "rankings"}, "'rankings' is no kind", "did you mean comparisons?"),
        ({"kind": None}, "no kind is set", "data.sets.hh.kind="),
        ({"path": ""}, "no path is set", "data.sets.hh.path="),
        ({"weight": 0}, "weight=0", "leave the set out"),
        ({"weight": -1.5}, "weight=-1.5", "leave the set out"),
        ({"weight": "much"}, "weight=much", "leave the set out"),
        ({"weight": float("nan")}, "weight=nan", "leave the set out"),
        ({"weight": True}, "weight=True", "leave the set out"),
        ({"columns": "prompt"}, "no column mapping", "columns.prompt=COLUMN"),
        ({"path": ["a"]}, "no text", "path"),
        ({"columns": {"prompt": 3}}, "3 names no column", "as text"),
        ({"columns": {"prompt": None}}, "None names no column", "as text"),
        ({"columns": {"scores": ["a", 1]}}, "1 names no column", "as text"),
        ({"columns": {"scores": []}}, "[] names no column", "as text"),
        ({"columns": {"prompt": ["a"]}}, "not a list of columns", "name one column"),
        ({"columns": {"promt": "a"}}, "no field 'promt'", "did you mean 'prompt'?"),
    ],
)
def test_sets_that_are_none(change: dict[str, object], what: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        data_set("hh", {"kind": "comparisons", "path": "F"} | change)
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.exit_code == 2


def test_a_set_that_is_no_mapping() -> None:
    with pytest.raises(ConfigError, match="no data set"):
        DataConfig(sets={"hh": 3})


def test_an_unknown_key_of_a_set_is_refused_before_its_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UnknownKeyError, match=r"data\.sets\.hh\.formt") as caught:
        composed(monkeypatch, *HH, "data.sets.hh.formt=csv")
    assert caught.value.fix == "did you mean data.sets.hh.format?"


def test_a_set_may_not_take_the_name_of_a_file() -> None:
    sets = {"prompts": {"kind": "prompts", "path": "P"}}
    with pytest.raises(ConfigError, match="'prompts' is the name"):
        all_sets(DataConfig(sets=sets, files=FilesConfig(prompts="Q")))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_some_rows_are_held_out_and_some_kept(fraction: float) -> None:
    with pytest.raises(ConfigError, match="heldout_fraction"):
        check_tree(DataConfig(heldout_fraction=fraction))


def test_the_shipped_options_hold_no_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all_sets(composed(monkeypatch).data) == ()
