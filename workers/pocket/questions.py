"""Questions of the pocket world: look-ups of facts, and small tasks on word lists."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from workers.pocket.seeding import keyed_hash
from workers.pocket.words import ANIMALS, COLORS, FOODS, HOMES, NUMBERS, NUMERALS, PLUS

Split = Literal["train", "heldout"]
HELDOUT_ONE_IN = 5  # one word list in five is held out
MOST_ADDEND = 9  # of a sum

CATEGORY_WEIGHTS: dict[str, float] = {
    "home": 1.0, "food": 1.0, "color": 1.0, "who": 1.0,
    "copy": 1.0, "reverse": 1.0, "sort": 1.0,
    "first": 0.5, "last": 0.5, "count": 0.5,
}  # fmt: skip
"""How often each category is asked, relative to the others."""

LOOKUPS = ("home", "food", "color", "who")
LIST_JOBS = ("copy", "reverse", "sort", "first", "last", "count")


@dataclass(frozen=True, slots=True)
class Animal:
    """The facts about one animal."""

    home: str
    food: str
    color: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its category, and the words of its only correct answer."""

    text: str
    category: str
    answer: tuple[str, ...]
    animal: str  # the animal of a look-up; "" for tasks on word lists


def is_heldout(words: tuple[str, ...]) -> bool:
    """Whether a word list belongs to the held-out split; the same in every category."""
    return keyed_hash("heldout", *words) % HELDOUT_ONE_IN == 0


def draw_question(
    rng: random.Random,
    facts: Mapping[str, Animal],
    split: Split,
    names: tuple[str, ...] = ANIMALS,
) -> Question:
    """Draw a question; word lists of the two splits are disjoint, look-ups of `names` shared."""
    category = _draw_category(rng, tuple(CATEGORY_WEIGHTS))
    if category in LOOKUPS:
        animal = rng.choice(names)
        return lookup_question(category, animal, facts[animal])
    return list_question(category, _draw_list(rng, category, split))


def draw_exercise(rng: random.Random, split: Split) -> Question:
    """Draw a task on a word list of the split."""
    category = _draw_category(rng, LIST_JOBS)
    return list_question(category, _draw_list(rng, category, split))


def lookup_question(category: str, name: str, animal: Animal) -> Question:
    """The question for one fact about an animal ("who" asks for the animal itself)."""
    text, answer = {
        "home": (f"where does the {name} live ?", animal.home),
        "food": (f"what does the {name} eat ?", animal.food),
        "color": (f"what color is the {name} ?", animal.color),
        "who": (f"who lives in the {animal.home} ?", name),
    }[category]
    return Question(text, category, (answer,), name)


def list_question(category: str, words: tuple[str, ...]) -> Question:
    """The question for a task on a word list."""
    verb = "repeat" if category == "copy" else category
    answer = {
        "copy": words,
        "reverse": words[::-1],
        "sort": tuple(sorted(words)),
        "first": words[:1],
        "last": words[-1:],
        "count": (NUMBERS[len(words) - 1],),
    }[category]
    return Question(f"{verb} : {' '.join(words)} ?", category, answer, "")


def sum_question(a: int, b: int) -> Question:
    """The question for a sum of two numbers from 0 to 9."""
    return Question(f"what is {a} {PLUS} {b} ?", "sum", (NUMERALS[a + b],), "")


def draw_sum(rng: random.Random) -> Question:
    """Draw a sum; both splits have the same 100."""
    return sum_question(rng.randint(0, MOST_ADDEND), rng.randint(0, MOST_ADDEND))


def wrong_answer(rng: random.Random, question: Question) -> tuple[str, ...]:
    """A plausible wrong answer: another word of the kind, or a list reordered, misread or cut."""
    right = question.answer
    while True:
        if question.category == "sum":  # off by a few, as people are
            near = NUMERALS.index(right[0]) + rng.choice((-10, -2, -1, 1, 2, 10))
            guess = (NUMERALS[min(max(near, 0), len(NUMERALS) - 1)],)
        elif question.category in LOOKUPS or question.category == "count":
            guess = (rng.choice(_alternatives(question.category)),)
        else:
            guess = _misread_list(rng, right)
        if guess != right:
            return guess


def _misread_list(rng: random.Random, right: tuple[str, ...]) -> tuple[str, ...]:
    kind = rng.randrange(3) if len(right) > 1 else 0
    if kind == 0:
        return (*right[:-1], rng.choice(ANIMALS))
    if kind == 1:
        return tuple(rng.sample(right, len(right)))
    # Without shortened lists among the replies, the reward model would not learn to penalize them,
    # and PPO would learn that shorter answers are easier.
    gap = rng.randrange(len(right))
    return right[:gap] + right[gap + 1 :]


def _alternatives(category: str) -> tuple[str, ...]:
    return {
        "home": HOMES, "food": FOODS, "color": COLORS, "who": ANIMALS, "count": NUMBERS,
    }[category]  # fmt: skip


def _draw_category(rng: random.Random, names: tuple[str, ...]) -> str:
    return rng.choices(names, [CATEGORY_WEIGHTS[name] for name in names])[0]


def _draw_list(rng: random.Random, category: str, split: Split) -> tuple[str, ...]:
    longest = 4 if category == "count" else 3
    while True:
        words = tuple(rng.sample(ANIMALS, rng.randint(2, longest)))
        if is_heldout(words) == (split == "heldout"):
            return words
