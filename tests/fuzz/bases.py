"""Base models with odd files beside their weights, published after a training that changed nothing.

A base is accepted only if the published folder gives a text the tokens of training, ends where
training ended, and can be loaded by transformers.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fakes.chat import CHATML, byte_tokenizer
from family_models import FAMILIES, family_config
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from fuzz.frame import Case
from orchestrator.checkpoints import model_folder
from orchestrator.session import model_card
from workers.data.rows.examples import PromptExample
from workers.data.tokenize.beginnings import Beginning
from workers.data.tokenize.data_sets import Rendering
from workers.data.tokenize.encode import Encoder
from workers.models.published_files import complete, require_saveable
from workers.records.generation import Sampling

_SAID = "what is published gives the tokens, the end and the sampling of training"
_TEXT = "So, what is 7*8?"
_VALUES: list[Any] = [
    None, True, False, -1, 0, 3, 10**30, 0.5, float("nan"), float("inf"), "", "x", "<s>", "/etc/x",
    [], [3, 2], {}, {"a": 1}, {"content": "<s>", "special": True},
]  # fmt: skip
_GENERATION = (
    "temperature", "top_k", "top_p", "do_sample", "eos_token_id", "pad_token_id", "max_new_tokens",
    "max_length", "num_beams", "early_stopping", "repetition_penalty", "suppress_tokens",
    "cache_implementation", "compile_config", "transformers_version", "forced_eos_token_id",
)  # fmt: skip
_TOKENIZER = (
    "add_bos_token", "add_eos_token", "tokenizer_class", "model_max_length", "padding_side",
    "name_or_path", "tokenizer_file", "chat_template", "bos_token", "unk_token", "pad_token",
    "clean_up_tokenization_spaces", "extra_special_tokens", "auto_map", "init_inputs", "is_local",
)  # fmt: skip
_CONFIG = (
    "eos_token_id", "bos_token_id", "pad_token_id", "_name_or_path", "auto_map", "temperature",
    "top_k", "max_length", "task_specific_params", "use_cache", "architectures", "torch_dtype",
)  # fmt: skip
_CLASSES = ("GPTNeoXTokenizer", "LlamaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer", "NoTokenizer")
_CARDS = (
    "---\nlicense: mit\n---\n",
    "---\n{\n---\n",
    "\x00",
    "---\nlicense: 3\n---\n",
    "---\n" * 9,
)
_RAW = ("", "[]", "null", "{", "<html>", "3", '"x"', '{"a": 1e999}', "\ufeff{}")


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    """`count` bases."""
    rng = random.Random(seed)
    for number in range(count):
        base = folder / f"{number:04d}"
        family = rng.choice(sorted(FAMILIES))
        tokenizer = byte_tokenizer(
            rng.choice([CHATML, None]),
            eos=rng.choice(["<|im_end|>", "<|endoftext|>"]),
            bos=rng.choice([None, "<s>", "<|endoftext|>"]),
            writes_bos=rng.random() < 0.5,
        )
        tokenizer.save_pretrained(base)
        family_config(family, tokenizer).save_pretrained(base)
        (base / "generation_config.json").write_text("{}")
        done = [rng.choice(_QUIRKS)(base, rng) for _ in range(rng.randint(1, 3))]
        choice: Beginning = rng.choice(["auto", "auto", "always", "never"])
        name = f"{number}: {family}, {choice}, {'; '.join(done)}"
        yield Case(name, _published(base, choice), _SAID)
        shutil.rmtree(base, ignore_errors=True)


def _published(base: Path, choice: Beginning) -> Callable[[], None]:
    def run() -> None:
        encoder = Encoder(Rendering(str(base), 99, 99, add_bos_token=choice))
        renderer: Any = encoder._renderer
        (row,) = renderer.prompts([PromptExample(_TEXT, "F:1")])
        require_saveable(base)
        model_card.licence_of(base)
        made = base / "made"
        made.mkdir()
        for name in ("config.json", "generation_config.json"):
            (made / name).write_bytes((base / name).read_bytes())
        AutoConfig.from_pretrained(base).save_pretrained(made)
        complete(made, encoder.tokenizer, Sampling(0.7, 9))
        users = AutoTokenizer.from_pretrained(made)
        assert users(_TEXT)["input_ids"] == row.tokens.tolist(), "other tokens"
        settings = GenerationConfig.from_pretrained(made)
        assert settings.eos_token_id == encoder.tokenizer.eos_token_id, "another end"
        assert (settings.temperature, settings.top_k, settings.max_new_tokens) == (0.7, 0, 9)
        settings.validate(strict=True)
        assert AutoConfig.from_pretrained(made).eos_token_id == settings.eos_token_id
        for file in made.glob("*.json"):
            assert str(base) not in file.read_text(), f"{file.name} names this machine"

    return run


def _value(name: str, keys: tuple[str, ...]) -> Callable[[Path, random.Random], str]:
    def change(base: Path, rng: random.Random) -> str:
        key, value = rng.choice(keys), rng.choice(_VALUES)
        try:
            content = json.loads((base / name).read_text())
        except ValueError:  # an earlier quirk left no JSON
            content = {}
        content = content if isinstance(content, dict) else {}
        content[key] = value
        (base / name).write_text(json.dumps(content))
        return f"{name}: {key}={value!r}"

    return change


def _class(base: Path, rng: random.Random) -> str:
    path, kind = base / "tokenizer_config.json", rng.choice(_CLASSES)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": kind}))
    return f"class {kind}"


def _raw(base: Path, rng: random.Random) -> str:
    text = rng.choice(_RAW)
    (base / "generation_config.json").write_text(text)
    return f"generation_config.json: {text!r}"


def _card(base: Path, rng: random.Random) -> str:
    text = rng.choice(_CARDS)
    (base / model_folder.CARD).write_text(text)
    return f"card {text[:20]!r}"


_QUIRKS = (
    _value("generation_config.json", _GENERATION),
    _value("tokenizer_config.json", _TOKENIZER),
    _value("config.json", _CONFIG),
    _class,
    _raw,
    _card,
)
