"""Prompts as text, for readers that do not use the policy's tokens.

These are reward functions, reward models with a separate tokenizer, and judges.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from workers.data.rows.examples import Context, Dialogue, Message
from workers.data.rows.kept import unpack_columns


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt as text."""

    prompt_id: int  # as in the rollouts
    context: Context  # the bare text, or the dialogue before the chat template
    rendered: str  # as the policy's tokenizer saw it, control tokens included
    row: str = ""  # the kept columns of its row as JSON; "" = none are kept

    def columns(self) -> dict[str, Any]:
        """The kept columns of its row (data.keep_columns), as new objects."""
        return unpack_columns(self.row)


def plain_text(context: Context) -> str:
    """A prompt as people would read it, without control tokens.

    Bare text stays unchanged, a dialogue of one user turn becomes that turn, and any other dialogue
    has the name of the speaker on a separate line before each turn.
    """
    if isinstance(context, str):
        return context
    if len(context) == 1 and context[0].role == "user":
        return context[0].content
    return "\n\n".join(f"{turn.role.capitalize()}:\n{turn.content}" for turn in context)


def as_messages(context: Context) -> list[dict[str, str]]:
    """A prompt as a new list of role and content per turn; bare text is one user turn."""
    if isinstance(context, str):
        return [{"role": "user", "content": context}]
    return [{"role": turn.role, "content": turn.content} for turn in context]


def pack_dialogue(context: Context) -> bytes:
    """A dialogue as bytes; b"" for bare text."""
    if isinstance(context, str):
        return b""
    return json.dumps([[turn.role, turn.content] for turn in context]).encode()


def unpack_dialogue(packed: bytes) -> Dialogue:
    """The dialogue that `pack_dialogue` packed; () for bare text."""
    return tuple(Message(role, content) for role, content in json.loads(packed or b"[]"))
