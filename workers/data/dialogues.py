"""Dialogues as data sets write them."""

from __future__ import annotations

import re

from workers.data.examples import Dialogue, Message, Speaker
from workers.data.jsonl import Line, kind_of

# Names of speakers in OpenAI's and ShareGPT's formats and their descendants.
_SPEAKERS: dict[str, Speaker] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
}
# "\n\nHuman: ...\n\nAssistant: ..." as in Anthropic's published comparisons (Bai et al. 2022).
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


class Unusable(Exception):  # noqa: N818 - no error: a row to be counted
    """A row that is well formed but of no use; the argument is a fixed reason."""


def is_dialogue(value: object) -> bool:
    """Whether a field holds a dialogue rather than bare text."""
    return isinstance(value, list) or (
        isinstance(value, str) and value.startswith(("\n\nHuman:", "\n\nAssistant:"))
    )


def parse_dialogue(line: Line, name: str) -> Dialogue:
    """A field as turns: a list of messages, or one text that names the speaker of each turn.

    Raises:
        DataLineError: If it is neither.
        Unusable: If somebody else speaks, or a turn is more than text, or there is no turn.
    """
    value = line.field(name)
    if isinstance(value, str) and is_dialogue(value):
        return _split_text(line.checked_text(value, name))
    turns = tuple(_message(line, item, f"{name}[{i}]") for i, item in enumerate(line.list(name)))
    if not turns:
        line.fail(f'"{name}" is an empty list')
    return turns


def split_reply(dialogue: Dialogue) -> tuple[Dialogue, str]:
    """All before the last turn, which must be the assistant's, and that turn.

    Raises:
        Unusable: If there is no such turn, no user before it, or an empty turn.
    """
    if dialogue[-1].role != "assistant":
        raise Unusable("last turn is not the assistant's")
    return checked_context(dialogue[:-1]), checked_reply(dialogue[-1].content)


def until_user(dialogue: Dialogue) -> Dialogue:
    """The turns up to the last one of the user.

    Raises:
        Unusable: If there is none, or an empty turn before it.
    """
    last = max((i for i, turn in enumerate(dialogue) if turn.role == "user"), default=-1)
    return checked_context(dialogue[: last + 1])


def checked_context(dialogue: Dialogue) -> Dialogue:
    """The turns before a reply.

    Raises:
        Unusable: If no turn is the user's, or one is empty.
    """
    if not any(turn.role == "user" for turn in dialogue):
        raise Unusable("no user turn before the reply")
    if not all(turn.content.strip() for turn in dialogue):
        raise Unusable("empty prompt" if len(dialogue) == 1 else "empty turn")
    return dialogue


def checked_reply(text: str) -> str:
    """A completion.

    Raises:
        Unusable: If it is empty.
    """
    if not text.strip():
        raise Unusable("empty completion")
    return text


def _split_text(text: str) -> Dialogue:
    parts = _HH_TURN.split(text)
    roles: dict[str, Speaker] = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        Message(roles[role], content.strip())
        for role, content in zip(parts[1::2], parts[2::2], strict=True)
    )


def _message(line: Line, item: object, name: str) -> Message:
    if not isinstance(item, dict):
        line.fail(f'"{name}" must be an object, not {kind_of(item)}')
    role_key, content_key = ("from", "value") if "from" in item else ("role", "content")
    for key in (role_key, content_key):
        if key not in item:
            found = ", ".join(f'"{each}"' for each in item) or "nothing"
            line.fail(f'"{name}" lacks "{key}" (found {found}); a turn holds role and content')
    role = line.checked_text(item[role_key], f"{name}.{role_key}").lower()
    if role not in _SPEAKERS:
        raise Unusable("a speaker besides system, user and assistant")
    return Message(_SPEAKERS[role], _content(line, item[content_key], f"{name}.{content_key}"))


def _content(line: Line, value: object, name: str) -> str:
    if not isinstance(value, list):
        return line.checked_text(value, name)
    texts: list[str] = []
    for i, part in enumerate(value):
        if not isinstance(part, dict):
            line.fail(f'"{name}[{i}]" must be an object, not {kind_of(part)}')
        if part.get("type") != "text":
            raise Unusable("a turn holds more than text")
        texts.append(line.checked_text(part.get("text"), f"{name}[{i}].text"))
    return "".join(texts)
