"""What a prompt says, for all who read words instead of the policy's tokens.

Those are reward functions, reward models with a tokenizer of their own, and judges.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from workers.data.rows.examples import Context, Dialogue, Message


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt in words."""

    prompt_id: int  # as in the rollouts
    context: Context  # the bare text, or the dialogue before any template has seen it
    rendered: str  # as the policy's tokenizer saw it, control tokens included


def plain_text(context: Context) -> str:
    """A prompt as people would read it, without control tokens.

    Bare text as it stands, a dialogue of one user turn as that turn, and any other dialogue with
    the names of the speakers on lines of their own.
    """
    if isinstance(context, str):
        return context
    if len(context) == 1 and context[0].role == "user":
        return context[0].content
    return "\n\n".join(f"{turn.role.capitalize()}:\n{turn.content}" for turn in context)


def as_messages(context: Context) -> list[dict[str, str]]:
    """A prompt as role and content of each turn, new at each call; bare text is a user's turn."""
    if isinstance(context, str):
        return [{"role": "user", "content": context}]
    return [{"role": turn.role, "content": turn.content} for turn in context]


def pack_dialogue(context: Context) -> bytes:
    """A dialogue as bytes; none for bare text."""
    if isinstance(context, str):
        return b""
    return json.dumps([[turn.role, turn.content] for turn in context]).encode()


def unpack_dialogue(packed: bytes) -> Dialogue:
    """What `pack_dialogue` packed; () for bare text."""
    return tuple(Message(role, content) for role, content in json.loads(packed or b"[]"))
