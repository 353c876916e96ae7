"""Parse dialogues in the formats of the usual data sets."""

from __future__ import annotations

import re
from collections.abc import Mapping

from workers.data.formats.line import Line, kind_of, shown
from workers.data.rows.examples import Dialogue, Message, Speaker
from workers.data.rows.meaning import turn_holds_media, turn_is_trained
from workers.data.rows.unusable import MORE_THAN_TEXT, TOOL_CALLS, Unusable

# Speakers in OpenAI's and ShareGPT's formats and formats derived from them.
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
# Speakers of tool calls and their results, in the same formats.
_TOOLS = ("tool", "function", "function_call", "function_response", "observation", "ipython")
_CALLS = ("tool_calls", "function_call")
_TOOL_PARTS = ("tool_use", "tool_result", "tool_call", "function_call")
# "\n\nHuman: ...\n\nAssistant: ..." as in Anthropic's published comparisons (Bai et al. 2022).
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_STRIPPED = re.compile(r"\s*Human:.*\n\nAssistant:", re.DOTALL)


def is_dialogue(value: object) -> bool:
    """Whether a field holds a dialogue rather than bare text."""
    return isinstance(value, list | dict) or (
        isinstance(value, str) and value.startswith(("\n\nHuman:", "\n\nAssistant:"))
    )


def begins_late(value: object) -> bool:
    """Whether a text is a dialogue that lost the empty line before its first speaker."""
    return isinstance(value, str) and bool(_STRIPPED.match(value))


def parse_dialogue(line: Line, name: str) -> Dialogue:
    """A field as turns: a list of messages, one message, or one text that names each speaker.

    Null turns are left out. An item with "input" and "output" is a user turn and the reply to it.

    Raises:
        DataLineError: If the field has none of these forms.
        Unusable: If there is another speaker, or a turn is more than text.
    """
    return turns_of(line, line.field(name), name)


def turns_of(line: Line, value: object, name: str) -> Dialogue:
    """As `parse_dialogue`, for the value of the field `name`."""
    value = line.parsed(value)
    if isinstance(value, str) and is_dialogue(value):
        return _split_text(line.checked_text(value, name))
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        line.fail(f'"{name}" must be a list, not {kind_of(value)}')
    turns = tuple(
        turn
        for i, item in enumerate(value)
        if item is not None
        for turn in _messages(line, item, f"{name}[{i}]")
    )
    if not turns:
        line.fail(f'"{name}" is an empty list')
    return turns


def split_reply(dialogue: Dialogue) -> tuple[Dialogue, str]:
    """The turns before the last turn, and that turn, which must be the assistant's.

    Raises:
        Unusable: If the last turn is not the assistant's, no user turn precedes it, or a turn is
            empty.
    """
    if dialogue[-1].role != "assistant":
        raise Unusable("last turn is not the assistant's")
    return checked_context(dialogue[:-1]), checked_reply(dialogue[-1].content)


def until_user(dialogue: Dialogue) -> Dialogue:
    """The turns up to and including the last user turn.

    Raises:
        Unusable: If there is no user turn, or one of the turns is empty.
    """
    last = max((i for i, turn in enumerate(dialogue) if turn.role == "user"), default=-1)
    return checked_context(dialogue[: last + 1])


def replies_of(dialogue: Dialogue) -> list[Message]:
    """The assistant turns after the first user turn."""
    first = next((i for i, turn in enumerate(dialogue) if turn.role == "user"), len(dialogue))
    return [turn for turn in dialogue[first:] if turn.role == "assistant"]


def checked_context(dialogue: Dialogue) -> Dialogue:
    """The dialogue, checked as the turns before a reply.

    Raises:
        Unusable: If there is no user turn, or a turn is empty.
    """
    if not any(turn.role == "user" for turn in dialogue):
        raise Unusable("no user turn before the reply")
    if not all(turn.content.strip() for turn in dialogue):
        raise Unusable("empty prompt" if len(dialogue) == 1 else "empty turn")
    return dialogue


def checked_reply(text: str) -> str:
    """The text, checked as a completion.

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


def _messages(line: Line, item: object, name: str) -> Dialogue:
    if not isinstance(item, dict):
        line.fail(f'"{name}" must be an object, not {kind_of(item)}')
    if {"input", "output"} <= item.keys() and not {"role", "from"} & item.keys():
        asked = line.checked_text(item["input"], f"{name}.input")
        told = line.checked_text(item["output"], f"{name}.output")
        return Message("user", asked), Message("assistant", told)
    return (_message(line, item, name),)


def _message(line: Line, item: Mapping[str, object], name: str) -> Message:
    role_key = _key(line, item, ("role", "from"), name)
    role = line.checked_text(item[role_key], f"{name}.{role_key}").lower()
    if role in _TOOLS or any(item.get(key) for key in _CALLS):
        raise Unusable(TOOL_CALLS)
    if turn_holds_media(item):
        raise Unusable(MORE_THAN_TEXT)
    content_key = _key(line, item, ("content", "value"), name)
    if role not in _SPEAKERS:
        raise Unusable("a speaker besides system, user and assistant")
    content = _content(line, item[content_key], f"{name}.{content_key}")
    return Message(_SPEAKERS[role], content, turn_is_trained(line, item, name))


def _key(line: Line, item: Mapping[str, object], keys: tuple[str, str], name: str) -> str:
    """The key that a turn has, out of two that mean the same."""
    present = [key for key in keys if item.get(key) is not None]
    if not present:
        found = ", ".join(f'"{shown(each)}"' for each in item) or "nothing"
        line.fail(f'"{name}" lacks "{keys[0]}" (found {found}); a turn holds role and content')
    if len(present) > 1 and item[present[0]] != item[present[1]]:
        line.fail(f'"{name}" holds both "{keys[0]}" and "{keys[1]}", which differ')
    return present[0]


def _content(line: Line, value: object, name: str) -> str:
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return line.checked_text(value, name)
    texts: list[str] = []
    for i, part in enumerate(value):
        if part is None:
            continue
        if isinstance(part, str):
            texts.append(line.checked_text(part, f"{name}[{i}]"))
            continue
        if not isinstance(part, dict):
            line.fail(f'"{name}[{i}]" must be an object, not {kind_of(part)}')
        if part.get("type") in _TOOL_PARTS:
            raise Unusable(TOOL_CALLS)
        if part.get("type") != "text":
            raise Unusable(MORE_THAN_TEXT)
        texts.append(line.checked_text(part.get("text"), f"{name}[{i}].text"))
    return "".join(texts)
