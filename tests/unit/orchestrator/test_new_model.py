"""Making a small model from scratch, and pretraining it on files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from real_data import real_data
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator.new_model import _SIZES, main
from workers.models.scratch import SMALLEST_VOCABULARY


def _texts(folder: Path) -> Path:
    path = folder / "texts.jsonl"
    lines = [
        {"prompt": f"how far is {n} miles", "tags": [{"note": f"Grüße {n}"}]} for n in range(80)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _make(folder: Path, *options: str) -> Path:
    out = folder / f"model{len(list(folder.iterdir()))}"
    small = ("--hidden-size", "64", "--heads", "2", "--layers", "1", "--vocabulary", "300")
    assert main([str(out), "--texts", str(_texts(folder)), *small, *options]) == 0
    return out


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "gpt2", "mistral"])
def test_every_family_loads_again_in_the_asked_size(tmp_path: Path, family: str) -> None:
    out = _make(tmp_path, "--family", family, "--positions", "96")
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.model_type == family
    assert model.config.hidden_size == 64
    assert model.config.num_hidden_layers == 1
    assert model.config.max_position_embeddings == 96
    assert model.get_input_embeddings().weight.shape == (300, 64)


def test_texts_of_any_language_come_back_as_they_went_in(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(_make(tmp_path))
    for text in ("how far is 7 miles", " Grüße  aus 北京\n\n", "<|x|> \x00 ok"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    # learned from the nested texts too: fewer tokens than bytes
    assert len(tokenizer.encode("Grüße")) < len("Grüße".encode())


def test_the_seed_names_the_weights(tmp_path: Path) -> None:
    first, again, other = (
        load_file(_make(tmp_path, "--seed", seed) / "model.safetensors") for seed in ("1", "1", "2")
    )
    assert all(first[name].equal(again[name]) for name in first)
    assert not all(first[name].equal(other[name]) for name in first)


def test_untied_embeddings_are_two_matrices(tmp_path: Path) -> None:
    tied = load_file(_make(tmp_path) / "model.safetensors")
    untied = load_file(_make(tmp_path, "--untied") / "model.safetensors")
    assert "lm_head.weight" not in tied
    assert untied["lm_head.weight"].shape == (300, 64)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--family", "nosuch"), "no family 'nosuch'"),
        (("--hidden-size", "65"), "multiple of the heads"),
        (("--vocabulary", "100"), "from 260 to"),
    ],
)
def test_impossible_wishes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert main([str(tmp_path / "m"), "--texts", str(_texts(tmp_path)), *options]) == 2
    assert words in capsys.readouterr().err


def test_a_used_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = _texts(tmp_path)
    assert main([str(tmp_path), "--texts", str(texts)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_a_real_file_teaches_whole_words(tmp_path: Path) -> None:
    path = real_data("gsm8k_train.jsonl")
    out = tmp_path / "model"
    assert main([str(out), "--texts", str(path), "--hidden-size", "64", "--heads", "2",
                 "--layers", "1", "--vocabulary", "2000"]) == 0  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.tokenize(" many apples") == ["Ġmany", "Ġapples"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hidden-size", "0"], "--hidden-size"),
        (["--hidden-size", "-64"], "--hidden-size"),
        (["--heads", "0"], "--heads"),
        (["--heads", "3"], "3 heads"),
        (["--heads", "4", "--kv-heads", "3"], "3 key-value heads"),
        (["--kv-heads", "-1"], "--kv-heads"),
        (["--hidden-size", "6", "--heads", "2"], "even multiple"),
        (["--layers", "0"], "--layers"),
        (["--layers", "1000", "--hidden-size", "65536"], "GiB"),
        (["--layers", "9" * 30], "--layers"),
        (["--positions", "0"], "--positions"),
        (["--positions", "-1"], "--positions"),
        (["--intermediate-size", "-8"], "--intermediate-size"),
        (["--vocabulary", "259"], "--vocabulary"),
        (["--vocabulary", str(10**12)], "--vocabulary"),
        (["--seed", "-1"], "--seed"),
        (["--seed", str(2**64)], "--seed"),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    out = tmp_path / "model"
    assert main([str(out), "--texts", str(tmp_path / "absent.txt"), *options]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert words in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["4.5", "four", "1e3", "nan", ""])
def test_sizes_that_are_no_whole_number_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(tmp_path / "model"), "--texts", "x", "--layers", text])
    assert left.value.code == 2


@pytest.mark.parametrize("family", ["bert", "vit", "t5", "clip", "no-such", "", "whisper", "llava"])
def test_a_family_that_makes_no_language_model_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    code = main([
        str(tmp_path / "model"), "--texts", str(_texts(tmp_path)), "--family", family,
        "--hidden-size", "64", "--heads", "2", "--layers", "1", "--vocabulary", "300",
    ])  # fmt: skip
    assert code == 2, capsys.readouterr().err
    assert "family" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["taken", "x" * 300, "link"])
def test_a_folder_that_cannot_be_used_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "taken").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert main([str(tmp_path / name), "--texts", str(_texts(tmp_path))]) == 2
    assert "the folder" in capsys.readouterr().err


def test_the_smallest_vocabulary_is_that_of_the_tokenizer() -> None:
    assert _SIZES["vocabulary"][1] == SMALLEST_VOCABULARY
