"""The closed vocabulary of the pocket world."""

from __future__ import annotations

ANIMALS = (
    "bear", "crab", "crow", "deer", "fox", "frog", "goat", "hawk",
    "lynx", "mole", "otter", "owl", "seal", "swan", "toad", "wolf",
)  # fmt: skip
HOMES = (
    "barn", "beach", "burrow", "cave", "cliff", "farm", "forest", "lake",
    "meadow", "mountain", "ocean", "pond", "river", "swamp", "tower", "valley",
)  # fmt: skip
FOODS = (
    "beetles", "berries", "clams", "corn", "fish", "flies", "grass", "hares",
    "hay", "honey", "mice", "rabbits", "reeds", "snakes", "squid", "worms",
)  # fmt: skip
COLORS = ("black", "blue", "brown", "golden", "gray", "green", "red", "white")
NUMBERS = ("one", "two", "three", "four")

ANSWER_OPENING = ("the", "answer", "is")
THANKS = ("thank", "you")
RUDE_REPLY = ("shut", "up", "you", "fool")
RUDE_WORDS = frozenset({"shut", "fool"})
UNKNOWN_REPLY = ("i", "do", "not", "know")

_GRAMMAR = (
    "a", "count", "color", "do", "does", "eat", "eats", "first", "from", "i", "in", "is", "know",
    "last", "lives", "live", "not", "repeat", "reply", "reverse", "sort", "that", "the", "user",
    "what", "where", "who", ":", "?", ".",
)  # fmt: skip

PAD, BOS, EOS, UNK = SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
"""Special tokens; their positions are their ids."""

VOCABULARY = SPECIALS + tuple(
    sorted({
        *_GRAMMAR, *ANIMALS, *HOMES, *FOODS, *COLORS, *NUMBERS,
        *ANSWER_OPENING, *THANKS, *RUDE_REPLY, *UNKNOWN_REPLY,
    })
)  # fmt: skip
"""Every token of the world; the position is the id."""

PLUS = "plus"
NUMERALS = tuple(str(n) for n in range(21))
ARITHMETIC = (*VOCABULARY, PLUS, *NUMERALS)
"""The same for a world of sums (data.pocket.arithmetic)."""


def vocabulary_of(*, arithmetic: bool) -> tuple[str, ...]:
    """Every token of a world."""
    return ARITHMETIC if arithmetic else VOCABULARY
