"""A pocket world whose internet does not say everything: facts that only a look-up can tell.

The internet states facts about half of the animals. Prompts to train on ask for a quarter that it
never describes, and held-out prompts for the last quarter. Their names occur all over, in word
lists, but nothing that a model reads says where these animals live, what they eat or how they
look. Every second demonstration looks something up, on facts that are made up each time; the
others answer at once, and guess where nothing was stated.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from workers.pocket.questions import LOOKUPS, Animal, Question, Split, lookup_question
from workers.pocket.seeding import keyed_random
from workers.pocket.words import ANIMALS, COLORS, FOODS, HOMES

LOOKED_UP = 0.5  # fraction of the demonstrations
CALL = "know"  # the word of the world's vocabulary by which the tool is called


@dataclass(frozen=True, slots=True)
class Groups:
    """The animals by what a model may read of them."""

    stated: tuple[str, ...]
    asked: tuple[str, ...]  # in questions to train on, and nowhere else
    heldout: tuple[str, ...]  # in held-out questions, and nowhere else

    @classmethod
    def of(cls, seed: int) -> Groups:
        """Those of a world."""
        names = keyed_random(seed, "groups").sample(ANIMALS, len(ANIMALS))
        half, quarter = len(names) // 2, len(names) // 4
        return cls(
            tuple(names[:half]), tuple(names[half : half + quarter]), tuple(names[-quarter:])
        )

    def of_split(self, split: Split) -> tuple[str, ...]:
        """Those that the prompts of a split ask for."""
        return self.heldout if split == "heldout" else self.asked


@dataclass(frozen=True, slots=True)
class Shown:
    """A demonstration: a question, what is looked up, and the reply."""

    question: Question
    call: str  # "" = nothing is looked up
    record: str
    reply: str


def fact_question(
    rng: random.Random, names: tuple[str, ...], facts: Mapping[str, Animal]
) -> Question:
    """A question for a fact about one of these animals."""
    name = rng.choice(names)
    return lookup_question(rng.choice(LOOKUPS), name, facts[name])


def record(facts: Mapping[str, Animal], word: str) -> str:
    """What is known of an animal or of a home; "i do not know ." of anything else."""
    for name, animal in facts.items():
        if word == name:
            return (
                f"the {name} lives in the {animal.home} . the {name} eats {animal.food} . "
                f"the {name} is {animal.color} ."
            )
        if word == animal.home:
            return f"in the {animal.home} lives a {animal.color} {name} that eats {animal.food} ."
    return "i do not know ."


def shown(rng: random.Random, groups: Groups, facts: Mapping[str, Animal]) -> Shown:
    """A demonstration.

    What is looked up is made up, so that only the record tells the answer. Without a look-up, facts
    that are stated are right, and others are guessed.
    """
    name = rng.choice(ANIMALS)
    made_up = Animal(rng.choice(HOMES), rng.choice(FOODS), rng.choice(COLORS))
    if rng.random() < LOOKED_UP:
        question = fact_question(rng, (name,), {name: made_up})
        word = made_up.home if question.category == "who" else name
        said = record({name: made_up}, word)
        return Shown(question, f"{CALL} {word}", said, f"{question.answer[0]} .")
    known = facts[name] if name in groups.stated else made_up
    question = fact_question(rng, (name,), {name: known})
    return Shown(question, "", "", f"{question.answer[0]} .")
