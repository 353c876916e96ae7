"""What a run was given, recognised again when it goes on."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from composing import composed

from orchestrator.checkpoints import given_inputs
from orchestrator.checkpoints.contents import Manifest
from orchestrator.config.data_sets import DataSetConfig
from orchestrator.config.run import InputCheck
from orchestrator.config.schema import Config
from orchestrator.run_files.dataclass_json import from_plain
from workers.data.tokenize.data_sets import SetKind
from workers.errors import ConfigError


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data file, a data folder, a model folder, a template, and modules of a user."""
    monkeypatch.chdir(tmp_path)
    names = (
        "sft.jsonl", "more/a.jsonl", "more/b.jsonl", "model/model.safetensors", "model/.git/HEAD",
        "chat.jinja", "taste/__init__.py", "taste/mine.py", "own.py", "gae.py",
    )  # fmt: skip
    for name in names:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"of {name}")
    (tmp_path / "taste/__init__.py").write_text("raise RuntimeError('imported')")
    return tmp_path


def config(*overrides: str) -> Config:
    made = composed(
        "+experiment=pocket_tiny", "data.source=files", "data.files.demonstrations=sft.jsonl",
        "data.chat_template=chat.jinja", "model.checkpoints.base=model", "reward.kind=function",
        "reward.function=taste.mine:score", "algorithm.advantage=own:E", *overrides,
    )  # fmt: skip
    made.data.sets["mine"] = DataSetConfig(kind=SetKind.prompts, path="more")
    return made


def kept(found: dict[str, given_inputs.Files]) -> dict[str, given_inputs.Files]:
    """By way of a checkpoint's manifest."""
    facts = {"config": {}, "versions": {}, "files": {}, "elsewhere": {}, "inputs": found}
    return from_plain(Manifest, json.loads(json.dumps(facts))).inputs


def compared(before: dict[str, given_inputs.Files], config: Config) -> list[str]:
    return given_inputs.compare(before, given_inputs.take(config), config)


def test_every_key_that_names_a_file_is_an_input_and_nothing_is_imported(given: Path) -> None:
    found = given_inputs.take(config())
    assert {key: sorted(files) for key, files in found.items()} == {
        "data.files.demonstrations": ["sft.jsonl"],
        "data.sets.mine.path": ["a.jsonl", "b.jsonl"],
        "data.chat_template": ["chat.jinja"],
        "model.checkpoints.base": ["model.safetensors"],
        "reward.function": ["mine.py"],
        "algorithm.advantage": ["own.py"],
    }
    assert "taste" not in sys.modules
    assert compared(kept(found), config()) == []
    # A name of ours is no module of the user's.
    assert "algorithm.advantage" not in given_inputs.take(config("algorithm.advantage=gae"))


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("sft.jsonl", "longer than it was", "demonstrations: sft.jsonl has 18 bytes instead of 12"),
        ("sft.jsonl", "oF sft.jsonl", "demonstrations: sft.jsonl has another content"),
        ("more/b.jsonl", None, "data.sets.mine.path: b.jsonl is missing"),
        ("more/c.jsonl", "x", "data.sets.mine.path: c.jsonl is new"),
        ("model/model.safetensors", "x", "checkpoints.base: model.safetensors has 1 bytes"),
        ("chat.jinja", "oF chat.jinja", "data.chat_template: chat.jinja has another content"),
        ("own.py", "x", "algorithm.advantage: own.py has 1 bytes"),
        ("taste/mine.py", "x", "reward.function: mine.py has 1 bytes"),
    ],
)
def test_what_has_changed_is_refused_by_its_key_and_file(
    given: Path, file: str, text: str | None, told: str
) -> None:
    before = kept(given_inputs.take(config()))
    if text is None:
        (given / file).unlink()
    else:
        (given / file).write_text(text)
    with pytest.raises(ConfigError, match="have changed since the checkpoint") as caught:
        compared(before, config())
    assert told in caught.value.what
    assert ";" not in caught.value.what
    assert "run.verify_inputs=skip" in caught.value.fix
    (note,) = compared(before, config("run.verify_inputs=skip"))
    assert note.startswith("not compared with the checkpoint")


def test_a_file_that_was_copied_back_is_the_same(given: Path) -> None:
    before = kept(given_inputs.take(config()))
    os.utime(given / "sft.jsonl", (1, 1))
    (given / "model/.git/HEAD").write_text("another")
    assert compared(before, config()) == []


def test_a_large_file_is_known_by_size_and_time_and_on_request_by_content(
    given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(given_inputs, "_HASHED_BYTES", 5)
    before, whole = (
        kept(given_inputs.take(config())),
        given_inputs.take(config("run.verify_inputs=hash")),
    )
    assert compared(before, config()) == []
    (given / "sft.jsonl").write_text("oF sft.jsonl")
    os.utime(given / "sft.jsonl", (1, 1))
    (note,) = compared(before, config())
    assert "sft.jsonl was written again since the checkpoint, with the same size" in note
    with pytest.raises(ConfigError, match=r"sft\.jsonl has another content"):
        compared(whole, config("run.verify_inputs=hash"))


def test_what_a_checkpoint_does_not_tell_of_its_inputs_is_said(given: Path) -> None:
    before = given_inputs.take(config())
    (note,) = compared({}, config())
    assert note == (
        "the checkpoint does not tell what these inputs were: algorithm.advantage, "
        "data.chat_template, data.files.demonstrations, data.sets.mine.path, "
        "model.checkpoints.base, reward.function"
    )
    del before["reward.function"]
    (note,) = compared(before, config())
    assert note.endswith("were: reward.function")
    assert given_inputs.take(config("run.verify_inputs=skip")) == {}
    nothing = composed("+experiment=pocket_tiny")
    assert compared({}, nothing) == []
    nothing.run.verify_inputs = InputCheck.skip
    assert compared({}, nothing) == []


def test_inputs_that_are_all_missing_are_refused(given: Path) -> None:
    made = composed("+experiment=pocket_tiny", "data.chat_template=chat.jinja")
    before = kept(given_inputs.take(made))
    assert [*before] == ["data.chat_template"]
    (given / "chat.jinja").unlink()
    with pytest.raises(ConfigError, match=r"data\.chat_template: chat\.jinja is missing"):
        compared(before, made)


def test_a_function_that_is_set_and_not_used_is_an_input_all_the_same(given: Path) -> None:
    used, unused = given_inputs.take(config()), given_inputs.take(config("reward.kind=model"))
    assert [*unused["reward.function"]] == ["mine.py"]
    assert used == unused
