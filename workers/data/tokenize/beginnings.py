"""Find and set the tokens that a tokenizer adds before a text.

A user of a published model prompts it with the tokens that its tokenizer produces. Training
therefore begins bare text with exactly the tokens that the tokenizer adds by default. A choice that
differs from them is written into the tokenizer, which is published with the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from workers.errors import ConfigError, DataError

if TYPE_CHECKING:  # seconds to import, and only a type here
    from transformers import PreTrainedTokenizerBase

Beginning = Literal["auto", "always", "never"]
_KEY = "data.add_bos_token"
_PROBES = ("a", "0", ".", "the")  # some tokenizers drop characters; none drops all of these


def beginning(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that a tokenizer adds before a text by default; () where there are none.

    Raises:
        DataError: If for every probe text the tokens of the text itself change when special tokens
            are added around them.
    """
    return _around(tokenizer)[0]


def begin_with(tokenizer: PreTrainedTokenizerBase, choice: Beginning) -> None:
    """Set a tokenizer to add the chosen tokens before a text, and none after a text.

    An end token after a prompt would tell the model that there is nothing to answer, so every
    choice removes it.

    Args:
        tokenizer: Changed in place.
        choice: "auto" = its default, "always" = its beginning-of-sequence token, "never" = nothing.

    Raises:
        ConfigError: If there is no such token, or the tokenizer cannot be changed.
    """
    before, after = _around(tokenizer)
    wanted = before
    if choice != "auto":
        bos = tokenizer.bos_token_id
        if choice == "always" and not isinstance(bos, int):
            raise ConfigError(
                "the tokenizer has no beginning-of-sequence token",
                where=f"{_KEY}=always",
                fix=f"set {_KEY}=auto, or bos_token in tokenizer_config.json",
            )
        wanted = (bos,) if choice == "always" and isinstance(bos, int) else ()
    if (before, after) == (wanted, ()):
        return
    _write(tokenizer, wanted)
    if _around(tokenizer) != (wanted, ()):
        raise ConfigError(
            f"this tokenizer ({type(tokenizer).__name__}) writes the ids {list(before)} before and "
            f"{list(after)} after a text, and cannot be told to write {list(wanted)} and nothing",
            where=f"{_KEY}={choice}",
            fix=f"set {_KEY}=auto, or save the tokenizer as a tokenizer.json with that "
            "post-processor",
        )


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a tokenizer adds before and after a text."""
    for text in _PROBES:
        bare, whole = _ids(tokenizer, text, special=False), _ids(tokenizer, text, special=True)
        for start in range(len(whole) - len(bare) + 1 if bare else 0):
            if whole[start : start + len(bare)] == bare:
                return tuple(whole[:start]), tuple(whole[start + len(bare) :])
    raise DataError(
        "cannot tell what the tokenizer writes before a text: with its special tokens it encodes "
        "the text itself otherwise",
        where=str(tokenizer.name_or_path),
        fix="save the tokenizer as a tokenizer.json with a template post-processor",
    )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    encoded = tokenizer(text, add_special_tokens=special)["input_ids"]
    assert isinstance(encoded, list), "no tensors were asked for"
    return [int(i) for i in encoded]


def _write(tokenizer: PreTrainedTokenizerBase, wanted: tuple[int, ...]) -> None:
    core: Any = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:  # a tokenizer in Python, which reads these attributes in every call
        changed: Any = tokenizer
        changed.add_bos_token, changed.add_eos_token = bool(wanted), False
        return
    from tokenizers.processors import TemplateProcessing

    words = tokenizer.convert_ids_to_tokens(list(wanted))
    assert isinstance(words, list), "one word an id"
    first = [f"{word}:0" for word in words]
    second = [f"{word}:1" for word in words]
    core.post_processor = TemplateProcessing(
        single=[*first, "$A:0"],
        pair=[*first, "$A:0", *second, "$B:1"],
        special_tokens=list(zip(words, wanted, strict=True)),
    )
