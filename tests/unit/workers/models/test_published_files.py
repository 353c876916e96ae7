"""What is published is what was trained, for whoever loads it with plain transformers."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import composed
from fakes.chat import byte_tokenizer
from fakes.session import Run
from family_models import FAMILIES, build_family, family_config
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from orchestrator.checkpoints import model_folder
from orchestrator.preflight.dry_run import CHECKS
from orchestrator.results.summary import EvaluationRow
from orchestrator.session import model_card
from workers.data.tokenize.beginnings import beginning
from workers.data.tokenize.tokenizers import load_speaker, load_tokenizer
from workers.errors import BrokenCheckpointError
from workers.models.load import load_causal_lm
from workers.models.published_files import complete, generation_settings, require_saveable
from workers.pocket.source import PocketSource
from workers.pocket.tokenizer import build_tokenizer
from workers.records.generation import Sampling

SAMPLING = Sampling(0.7, 5)


def published(folder: Path, base: Path, tokenizer: Any = None) -> Path:
    """A model that was loaded as trainers load it, and saved as they do."""
    tokenizer = tokenizer or load_speaker(base)

    def save(path: str) -> None:
        load_causal_lm(str(base), dtype="float32", attention="eager").save_pretrained(path)
        load_tokenizer(base).save_pretrained(path)
        complete(Path(path), tokenizer, SAMPLING)

    return model_folder.publish(folder, save, {})


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_has_the_tokens_of_training_in_every_family(
    family: str, writes: bool, tmp_path: Path
) -> None:
    given = byte_tokenizer(bos="<s>", writes_bos=writes)
    base, folder = tmp_path / "base", tmp_path / "made"
    for path in (base, folder):
        family_config(family, given).save_pretrained(path)
        given.save_pretrained(path)
    complete(folder, load_speaker(base), SAMPLING)
    users = AutoTokenizer.from_pretrained(folder)
    trained = [*beginning(load_tokenizer(base)), *given("hi", add_special_tokens=False).input_ids]
    assert users("hi").input_ids == trained
    assert (trained[0] == given.bos_token_id) is writes
    chat = [{"role": "user", "content": "hi"}]
    for tokenizer in (users, given):
        assert tokenizer.apply_chat_template(chat, tokenize=False).startswith("<|im_start|>user")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    assert told["add_bos_token"] is writes, "older versions of transformers go by this key"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen3"])
def test_generate_ends_where_training_did(family: str, tmp_path: Path) -> None:
    given = byte_tokenizer(bos="<s>", eos="<|im_end|>")
    base = build_family(family, tmp_path / "base", given, eos_token_id=0)  # the base's own end
    config = json.loads((base / "generation_config.json").read_text())
    config |= {"eos_token_id": [0, 1], "top_k": 1, "repetition_penalty": 3.0, "do_sample": True}
    (base / "generation_config.json").write_text(json.dumps(config))
    folder = published(tmp_path / "made", base)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text())["eos_token_id"] == given.eos_token_id
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():  # says the end token whatever it is asked
        head = model.get_output_embeddings()
        head.weight.zero_()
        head.bias = torch.nn.Parameter(torch.full((head.weight.shape[0],), -100.0))
        head.bias[given.eos_token_id] = 100.0
    inputs = AutoTokenizer.from_pretrained(folder)("hi", return_tensors="pt")
    answer = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    assert answer.tolist() == [given.eos_token_id]
    settings = model.generation_config
    assert (settings.do_sample, settings.temperature, settings.top_p) == (True, 0.7, 1.0)
    assert (settings.top_k, settings.max_new_tokens) == (0, 5)
    assert settings.repetition_penalty in (None, 1.0), "the base's own, not in force in training"


def test_greedy_sampling_is_published_as_greedy() -> None:
    settings = generation_settings({}, byte_tokenizer(), Sampling(0.0, 9))
    assert settings["do_sample"] is False
    assert "temperature" not in settings
    GenerationConfig(**settings).validate(strict=True)


def test_a_missing_padding_token_is_the_end_token_and_the_config_keeps_its_own() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    eos = tokenizer.eos_token_id
    assert generation_settings({}, tokenizer, SAMPLING)["pad_token_id"] == eos
    assert generation_settings({"pad_token_id": 7}, tokenizer, SAMPLING)["pad_token_id"] == 7


# What was only copied: settings that transformers loads and does not save, or does not even load.
QUIRKS = {
    "sampling without do_sample": '{"temperature": 0.6, "top_p": 0.9}',
    "no number": '{"temperature": "hot"}',
    "NaN": '{"temperature": NaN}',
    "a list": "[1, 2]",
    "no JSON": "<html>not found</html>",
    "cut short": '{"temperature": 0.',
    "negative": '{"max_new_tokens": -4}',
    "unknown words": '{"early_stopping": "x", "chat_format": "chatml", "pad_token_id": -1}',
}


@pytest.mark.parametrize("text", QUIRKS.values(), ids=list(QUIRKS))
def test_generation_settings_of_a_base_never_stop_a_save(text: str, tmp_path: Path) -> None:
    base = build_family("llama", tmp_path / "base")
    (base / "generation_config.json").write_text(text)
    folder = published(tmp_path / "made", base)
    assert GenerationConfig.from_pretrained(folder).temperature == 0.7


def test_what_cannot_be_saved_again_is_found_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = build_family("llama", tmp_path / "base")
    require_saveable(base)

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no vocabulary file")

    monkeypatch.setattr(type(load_tokenizer(base)), "save_pretrained", refuse)
    with pytest.raises(BrokenCheckpointError, match=r"cannot be saved again.*no vocabulary file"):
        require_saveable(base)
    config = composed("+experiment=sft", f"model.checkpoints.base={base}")
    with pytest.raises(BrokenCheckpointError, match="no vocabulary file"):
        CHECKS["saving"](config, PocketSource(0, 0.5, 0.25))
    config = composed("+experiment=evaluate", f"model.checkpoints.base={base}")
    assert not CHECKS["saving"](config, PocketSource(0, 0.5, 0.25)), "nothing will be saved"


@pytest.mark.parametrize("kind", ["GPTNeoXTokenizer", "LlamaTokenizer", "GPT2Tokenizer"])
def test_a_class_with_rules_of_its_own_is_published_as_it_was_trained(
    kind: str, tmp_path: Path
) -> None:
    byte_tokenizer(bos="<s>", writes_bos=False).save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": kind}))
    base = build_family("gpt_neox", tmp_path / "model", load_tokenizer(tmp_path / "base"))
    told = load_speaker(base, add_bos_token="always")
    folder = published(tmp_path / "made", base, told)
    ids = AutoTokenizer.from_pretrained(folder)("hi").input_ids
    assert ids == told("hi").input_ids
    assert ids[0] == told.bos_token_id


def test_a_folder_says_nothing_of_this_machine_and_everyone_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        folder = published(tmp_path / "made", build_family("llama", tmp_path / "base"))
    finally:
        os.umask(before)
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path.name
        if path.suffix in (".json", ".md"):
            assert str(tmp_path) not in path.read_text(), path.name
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only", "name_or_path"} & tokenizer.keys()
    assert "_name_or_path" not in json.loads((folder / "config.json").read_text())
    files = json.loads((folder / "rehearsal.json").read_text())["files"]
    assert files.keys() == {p.name for p in folder.iterdir()} - {"rehearsal.json"}


def test_the_umask_of_a_private_user_is_kept(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        folder = published(tmp_path / "made", build_family("llama", tmp_path / "base"))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o600}


def card(**changes: Any) -> model_card.Card:
    facts = {
        "name": "ppo", "stages": ("sft", "ppo"), "experiment": "mine", "seed": 3, "licence": "mit",
        "base": "llama-tiny", "data": (), "pocket": False, "temperature": 0.7, "max_tokens": 5,
    }  # fmt: skip
    return model_card.Card(**(facts | changes))


def test_a_card_names_base_stages_licence_and_figures(tmp_path: Path) -> None:
    text = model_card.render(card(figures=(("gold score, mean", 2.5),)))
    for part in ("license: mit", "`llama-tiny`", "`sft`, `ppo`", "seed 3", "| 2.5 |", "0.7"):
        assert part in text
    (tmp_path / "README.md").write_text(text)
    assert model_card.licence_of(tmp_path) == "mit", "handed on to what is trained from it"


@pytest.mark.parametrize(
    "text",
    ["", "no head", "---\n: [\n---\n", "---\n- a\n---\n", "---\nlicense: [a]\n---\n", "---\n"],
)
def test_a_card_that_names_no_licence_stops_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert model_card.licence_of(tmp_path) == ""
    assert "license" not in model_card.render(card(licence=""))


def test_a_card_may_be_edited_and_other_files_may_not(tmp_path: Path) -> None:
    folder = published(tmp_path / "made", build_family("llama", tmp_path / "base"))
    (folder / "README.md").write_text("mine")
    model_folder.require(str(folder), "sft")


def test_the_evaluation_goes_into_the_cards_of_what_the_run_made(tmp_path: Path) -> None:
    run = Run(tmp_path)
    session = run.session
    base = build_family("llama", tmp_path / "given")
    session.publish("ppo", lambda path: _copy(base, path), "ppo")
    session.saves.finished[:] = ["sft", "ppo", "ppo_ptx"]
    session.checkpoints["base"] = str(base)
    session.findings.models = {"base": EvaluationRow(), "ppo": EvaluationRow(gold_mean=2.25)}
    model_card.add_evaluation(session)
    text = (Path(session.checkpoints["ppo"]) / "README.md").read_text()
    assert "| gold score, mean | 2.25 |" in text
    assert "Stages: `sft`, `ppo`." in text
    assert not (base / "README.md").exists()
    assert session.need("ppo")


def _copy(base: Path, path: str) -> None:
    load_causal_lm(str(base), dtype="float32").save_pretrained(path)
    build_tokenizer().save_pretrained(path)
