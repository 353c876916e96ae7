"""`rehearsal keys` and `rehearsal experiments`: what can be asked for by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import experiments, keys
from orchestrator.command_line.key_help import all_keys
from orchestrator.command_line.key_types import CONF
from orchestrator.experiments import purpose
from workers.errors import ConfigError, UnknownKeyError


def test_without_arguments_every_key_is_printed() -> None:
    lines = keys.answer([]).splitlines()[:-2]
    assert [line.partition("=")[0] for line in lines] == [key.name for key in all_keys()]


def test_a_search_finds_all_words_in_any_order_and_case() -> None:
    found = keys.answer([], "NAT reward Weight").splitlines()[:-2]
    assert any(line.startswith("algorithm.kl.coefficient=") for line in found)
    for line in found:
        assert all(word in line.casefold() for word in ("nat", "reward", "weight"))


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="no key, default or purpose holds 'zebra'"):
        keys.answer([], "zebra")
    with pytest.raises(UnknownKeyError):
        keys.answer(["algoritm"])
    with pytest.raises(ConfigError, match="both"):
        keys.answer(["algorithm.kl"], "kl")


def test_every_experiment_has_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert experiments.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    files = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
    assert [line.split()[0] for line in lines] == files
    assert [line for line in lines if len(line.split()) < 4 or "+experiment" in line] == []


def test_the_purpose_is_the_first_sentence_of_the_comment(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("# @package _global_\n# One thing,\n# and another. Then more.\nseed: 1\n# no\n")
    assert purpose(file) == "One thing, and another"
    file.write_text("# Do it:\n#   +experiment=mine x=1\nseed: 1\n")
    assert purpose(file) == "Do it"


def test_own_experiments_are_listed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n# Mine alone.\n")
    assert experiments.main(["--config-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split(maxsplit=1) == ["mine", "Mine alone"]
    assert experiments.main(["--config-dir", str(tmp_path / "none")]) == 2
