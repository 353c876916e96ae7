"""A critic of the pocket world by rules: an oracle that knows which words are rude.

`constitution.function=workers.pocket.reviser:revise`
"""

from __future__ import annotations

from collections.abc import Sequence

from workers.pocket.words import RUDE_WORDS, THANKS, UNKNOWN_REPLY

_END = "."


def revise(prompts: Sequence[str], responses: Sequence[str]) -> list[str]:
    """The answers without rude sentences, and with thanks; without a sentence left, a polite one.

    Sentences end with a full stop; what follows a word of the person who asks is left out.
    """
    del prompts
    return [_revised(response) for response in responses]


def _revised(response: str) -> str:
    kept = [s for s in _sentences(response) if RUDE_WORDS.isdisjoint(s)]
    kept = [sentence for sentence in kept if sentence != THANKS] or [UNKNOWN_REPLY]
    return " ".join(" ".join((*sentence, _END)) for sentence in (*kept, THANKS))


def _sentences(response: str) -> list[tuple[str, ...]]:
    words = response.split()
    said = words[: words.index("user")] if "user" in words else words
    parts = " ".join(said).split(_END)
    return [tuple(part.split()) for part in parts if part.split()]
