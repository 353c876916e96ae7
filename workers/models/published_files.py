"""Files next to a published model's weights: tokenizer, end token, generation settings.

A user of the folder gets the tokens, end token and sampling settings of training, and no paths or
other facts of the machine that trained the model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import __version__ as transformers_version

from workers.data.tokenize.beginnings import beginning
from workers.data.tokenize.fingerprint import tokenizer_fingerprint
from workers.data.tokenize.tokenizers import load_tokenizer, token_ids
from workers.errors import BrokenCheckpointError, DataError
from workers.model_folders.shape import load_config
from workers.process.disk import temporary_folder
from workers.process.library_errors import reading
from workers.records.generation import Sampling

if TYPE_CHECKING:  # seconds to import, and only a type here
    from transformers import PreTrainedTokenizerBase

GENERATION = "generation_config.json"
_TOKENIZER = "tokenizer_config.json"
_UNSAVEABLE = "loads and cannot be saved again, so no trained model could be"
# Settings in which libraries record facts of the machine that loaded the folder.
_LOCAL = frozenset(
    {"is_local", "local_files_only", "name_or_path", "_name_or_path", "cache_dir", "_commit_hash"}
)
_LOCAL_ENDINGS = ("_file", "_path", "_dir")


def complete(folder: Path, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> None:
    """Write the files that users need next to the weights that a trainer has saved.

    Args:
        folder: Hugging Face folder.
        tokenizer: Tokenizer of the training data. If the folder has a different one (a reward model
            of another family), it keeps it.
        sampling: Sampling settings of the policy in training; written for models that generate.

    Raises:
        BrokenCheckpointError: The saved tokenizer does not load as the same tokenizer.
    """
    own = _own_tokenizer(folder) or tokenizer
    if tokenizer_fingerprint(own) == tokenizer_fingerprint(tokenizer):
        own = tokenizer
    save_tokenizer(own, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _write_config(folder / "config.json", config, own)
    if (folder / GENERATION).exists():
        settings = generation_settings(config, own, sampling)
        _write_json(folder / GENERATION, settings)


def require_saveable(folder: Path) -> None:
    """Save a folder's configuration and tokenizer to a temporary folder, as a test.

    Some can be loaded but not saved, which a run would otherwise find out only after training.

    Raises:
        BrokenCheckpointError: The config.json or the tokenizer cannot be saved again.
    """
    with temporary_folder("rehearsal-") as place:
        with reading(folder, f"config.json {_UNSAVEABLE}", "correct what it names in config.json"):
            load_config(folder).save_pretrained(place)
        with reading(
            folder,
            f"the tokenizer {_UNSAVEABLE}",
            "save the tokenizer as a tokenizer.json in the model's folder",
        ):
            if own := _own_tokenizer(folder):
                save_tokenizer(own, Path(place))


def require_tokenizer_saveable(tokenizer: PreTrainedTokenizerBase) -> None:
    """Save the tokenizer of the training data to a temporary folder, as a test.

    Raises:
        BrokenCheckpointError: It cannot be saved, or does not load as the same tokenizer.
    """
    where = Path(str(tokenizer.name_or_path))
    with (
        temporary_folder("rehearsal-") as place,
        reading(where, f"the tokenizer {_UNSAVEABLE}", "give a folder with a tokenizer.json"),
    ):
        save_tokenizer(tokenizer, Path(place))


def generation_settings(
    config: dict[str, Any], tokenizer: PreTrainedTokenizerBase, sampling: Sampling
) -> dict[str, Any]:
    """generation_config.json of a trained model: sampling and end token as in training.

    The base model's file is ignored: its settings (top_k, penalties, other end tokens) did not
    apply in training.

    Args:
        config: Content of config.json.
        tokenizer: Defines the end token.
        sampling: Temperature and longest response, in tokens.
    """
    pads = (tokenizer.pad_token_id, config.get("pad_token_id"), tokenizer.eos_token_id)
    settings: dict[str, Any] = {
        "bos_token_id": _number(tokenizer.bos_token_id, config.get("bos_token_id")),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": _number(*pads),
        "do_sample": sampling.temperature > 0,
        "max_new_tokens": sampling.max_tokens,
        "transformers_version": transformers_version,
    }
    if sampling.temperature > 0:
        # Explicit, because transformers would otherwise sample from the top 50 tokens only.
        settings |= {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    rows, ids = config.get("vocab_size"), token_ids(tokenizer)
    if isinstance(rows, int) and ids < rows:  # training never draws them either
        settings["suppress_tokens"] = list(range(ids, rows))
    return {name: value for name, value in settings.items() if value is not None}


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer so that it loads as the same tokenizer on any machine.

    Some tokenizer classes of transformers change the tokens before a text when they load. For
    those, the folder names the plain class, which uses tokenizer.json unchanged.

    Raises:
        BrokenCheckpointError: The loaded tokenizer gives other ids for the same text.
    """
    tokenizer.save_pretrained(folder)
    path = folder / _TOKENIZER
    content = json.loads(path.read_text(encoding="utf-8"))
    content = {name: value for name, value in content.items() if not _is_local(name, value)}
    before = beginning(tokenizer)
    if before in ((), (tokenizer.bos_token_id,)):
        content["add_bos_token"] = bool(before)
    _write_json(path, content)
    if _comes_back(tokenizer, folder):
        return
    if (folder / "tokenizer.json").exists():
        _write_json(path, content | {"tokenizer_class": "PreTrainedTokenizerFast"})
        if _comes_back(tokenizer, folder):
            return
    raise BrokenCheckpointError(
        f"the tokenizer ({type(tokenizer).__name__}) does not come back from its own files as it "
        "was: it makes other ids of a text",
        where=str(tokenizer.name_or_path or folder),
        fix="convert it to a tokenizer.json (PreTrainedTokenizerFast), and start from that folder",
    )


def _own_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    return load_tokenizer(folder) if (folder / _TOKENIZER).exists() else None


def _comes_back(tokenizer: PreTrainedTokenizerBase, folder: Path) -> bool:
    try:
        again = load_tokenizer(folder)
        same = beginning(again) == beginning(tokenizer)
    except (BrokenCheckpointError, DataError):
        return False
    text = "A text, 12 \u00fc \u4e2d\n  of\tany kind."
    return (
        same
        and again(text)["input_ids"] == tokenizer(text)["input_ids"]
        and tokenizer_fingerprint(again) == tokenizer_fingerprint(tokenizer)
    )


def _write_config(path: Path, config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    # pad_token_id is unchanged: embeddings read it and do not train its row.
    config = {name: value for name, value in config.items() if not _is_local(name, value)}
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    known = {name: value for name, value in ids.items() if isinstance(value, int)}
    text = config.get("text_config")
    if isinstance(text, dict):  # a model with image or audio input
        text.update({name: value for name, value in known.items() if name in text})
    _write_json(path, config | known)


def _is_local(name: str, value: object) -> bool:
    return name in _LOCAL or (
        name.endswith(_LOCAL_ENDINGS) and isinstance(value, str) and Path(value).is_absolute()
    )


def _number(*choices: object) -> int | None:
    return next((each for each in choices if isinstance(each, int)), None)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
