"""The pocket world: a miniature of the InstructGPT setting in about a hundred words.

A seed decides where sixteen animals live, what they eat and how they look. The world's internet
states these facts, lists questions without answers, contains school books of solved exercises, and
has forum replies that are correct, wrong or rude. A model of this text therefore knows much and
helps little. Everything is drawn by index: item n can be drawn without the items before it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from workers.pocket.lookups import Groups, Shown, fact_question, shown
from workers.pocket.questions import (
    Animal,
    Question,
    Split,
    draw_exercise,
    draw_question,
    draw_sum,
    wrong_answer,
)
from workers.pocket.seeding import keyed_random
from workers.pocket.words import (
    ANIMALS,
    ANSWER_OPENING,
    COLORS,
    FOODS,
    HOMES,
    NUMERALS,
    RUDE_REPLY,
    THANKS,
    UNKNOWN_REPLY,
)

# Fractions of the internet's replies; the rest is "i do not know".
RIGHT, RUDE, WRONG, POLITE = 0.40, 0.20, 0.15, 0.15
# Fractions of the internet's documents; the rest is a single question with its reply.
FACTS, QUESTIONS, EXERCISES, THREADS = 0.28, 0.17, 0.25, 0.06
# Fractions of the demonstrator's replies; the rest is "i do not know".
DEMONSTRATED_POLITE, DEMONSTRATED_TERSE = 0.4, 0.4


@dataclass(frozen=True, slots=True)
class Cloze:
    """A statement of fact without its last word, and the candidates for that word."""

    prefix: str
    answer: str
    candidates: tuple[str, ...]


class World:
    """Facts, questions and texts of one seed; every method is a pure function of its arguments."""

    def __init__(self, seed: int, *, arithmetic: bool = False, lookup: bool = False) -> None:
        """A world of a seed.

        Args:
            seed: Its seed.
            arithmetic: Every question and every fact is a sum.
            lookup: Its texts leave facts out, which a look-up tells; see `lookups`.
        """
        self.seed = seed
        self.groups = Groups.of(seed) if lookup else None
        self.arithmetic = arithmetic
        rng = keyed_random(seed, "facts")
        homes = rng.sample(HOMES, len(HOMES))
        foods = rng.sample(FOODS, len(FOODS))
        self.facts = {
            name: Animal(homes[i], foods[i], rng.choice(COLORS)) for i, name in enumerate(ANIMALS)
        }

    def question(self, split: Split, index: int, stream: str = "questions") -> Question:
        """Question number `index` of a split; streams are independent of each other."""
        if self.groups is not None:
            rng = self._rng(stream, split, index)
            return fact_question(rng, self.groups.of_split(split), self.facts)
        return self._question(self._rng(stream, split, index), split)

    def prompt(self, question: Question) -> str:
        """The text of a question's prompt."""
        return f"user : {question.text} reply :"

    def web_document(self, split: Split, index: int) -> str:
        """Internet text number `index`: facts, bare questions, school books, or forum posts."""
        rng = self._rng("web", split, index)
        kind = rng.random()
        if kind < FACTS:
            return " ".join(self._statement(rng) for _ in range(rng.randint(2, 5)))
        if kind < FACTS + QUESTIONS:
            return " ".join(
                f"user : {self._question(rng, split).text}" for _ in range(rng.randint(2, 4))
            )
        if kind < FACTS + QUESTIONS + EXERCISES:
            solved = [self._exercise(rng, split) for _ in range(rng.randint(2, 4))]
            return " ".join(f"{q.text} {terse_reply(q.answer)}" for q in solved)
        # One author answers a whole thread, so all replies have the same tone.
        posts = 2 if kind < FACTS + QUESTIONS + EXERCISES + THREADS else 1
        tone = rng.random()
        questions = [self._question(rng, split) for _ in range(posts)]
        return " ".join(f"{self.prompt(q)} {_forum_reply(rng, q, tone)}" for q in questions)

    def demonstration(self, split: Split, index: int) -> tuple[Question, str]:
        """Question number `index` and the demonstrator's reply, never rude, not always helpful."""
        rng = self._rng("demonstrations", split, index)
        question = self._question(rng, split)
        style = rng.random()
        if style < DEMONSTRATED_POLITE:
            return question, polite_reply(question.answer)
        if style < DEMONSTRATED_POLITE + DEMONSTRATED_TERSE:
            return question, terse_reply(question.answer)
        return question, terse_reply(UNKNOWN_REPLY)

    def shown(self, split: Split, index: int) -> Shown:
        """Demonstration number `index` of a world of look-ups."""
        assert self.groups is not None, "a world of look-ups"
        return shown(self._rng("lookups", split, index), self.groups, self.facts)

    @property
    def _stated(self) -> tuple[str, ...]:
        """The animals whose facts texts state."""
        return ANIMALS if self.groups is None else self.groups.stated

    def cloze(self, split: Split, index: int) -> Cloze:
        """A fact to complete in the style of the internet, for measuring the alignment tax."""
        rng = self._rng("cloze", split, index)
        if self.arithmetic:
            question = draw_sum(rng)
            return Cloze(_sum_of(question), question.answer[0], NUMERALS)
        name = rng.choice(self._stated)
        animal = self.facts[name]
        return rng.choice(
            (
                Cloze(f"the {name} lives in the", animal.home, HOMES),
                Cloze(f"the {name} eats", animal.food, FOODS),
                Cloze(f"the {name} is", animal.color, COLORS),
                Cloze(f"in the {animal.home} lives a", animal.color, COLORS),
                Cloze(f"in the {animal.home} lives a {animal.color}", name, ANIMALS),
            )
        )

    def _rng(self, stream: str, split: Split, index: int) -> random.Random:
        return keyed_random(self.seed, stream, split, index)

    def _question(self, rng: random.Random, split: Split) -> Question:
        if self.arithmetic:
            return draw_sum(rng)
        return draw_question(rng, self.facts, split, self._stated)

    def _exercise(self, rng: random.Random, split: Split) -> Question:
        return draw_sum(rng) if self.arithmetic else draw_exercise(rng, split)

    def _statement(self, rng: random.Random) -> str:
        if self.arithmetic:
            question = draw_sum(rng)
            return f"{_sum_of(question)} {terse_reply(question.answer)}"
        name = rng.choice(self._stated)
        animal = self.facts[name]
        return rng.choice(
            (
                f"the {name} lives in the {animal.home} .",
                f"the {name} eats {animal.food} .",
                f"the {name} is {animal.color} .",
                f"in the {animal.home} lives a {animal.color} {name} that eats {animal.food} .",
                f"the {animal.color} {name} from the {animal.home} eats {animal.food} .",
            )
        )


def _sum_of(question: Question) -> str:
    """A sum as a statement without its result: `7 plus 5 is`."""
    return f"{question.text.removeprefix('what is ').removesuffix(' ?')} is"


def terse_reply(answer: tuple[str, ...]) -> str:
    """The bare answer as a sentence."""
    return " ".join((*answer, "."))


def polite_reply(answer: tuple[str, ...]) -> str:
    """The answer in a full sentence, with thanks."""
    return " ".join((*ANSWER_OPENING, *answer, ".", *THANKS, "."))


def _forum_reply(rng: random.Random, question: Question, tone: float) -> str:
    if tone < RIGHT:
        return terse_reply(question.answer)
    if tone < RIGHT + RUDE:
        return terse_reply(RUDE_REPLY)
    if tone < RIGHT + RUDE + WRONG:
        return terse_reply(wrong_answer(rng, question))
    if tone < RIGHT + RUDE + WRONG + POLITE:
        return polite_reply(question.answer)
    return terse_reply(UNKNOWN_REPLY)
