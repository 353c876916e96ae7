from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from workers.pocket.questions import (
    CATEGORY_WEIGHTS,
    LOOKUPS,
    Question,
    list_question,
    wrong_answer,
)
from workers.pocket.words import ANIMALS, COLORS, FOODS, HOMES, NUMBERS, SPECIALS, VOCABULARY
from workers.pocket.world import World


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


def listed(question: Question) -> str:
    return question.text.split(" : ")[1].removesuffix(" ?")


def test_vocabulary_is_closed_and_small(world: World) -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY) <= 130
    assert VOCABULARY[:3] == ("<pad>", "<bos>", "<eos>")
    texts = [world.web_document("train", i) for i in range(2000)]
    texts += [world.demonstration("heldout", i)[1] for i in range(200)]
    texts += [world.prompt(world.question("heldout", i)) for i in range(500)]
    used = set(" ".join(texts).split())
    assert used <= set(VOCABULARY)
    assert used == set(VOCABULARY) - set(SPECIALS), "every word of the vocabulary is in use"


def test_items_depend_on_their_index_alone() -> None:
    first, second = World(3), World(3)
    forwards = [first.web_document("train", i) for i in range(20)]
    backwards = [second.web_document("train", i) for i in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert first.question("train", 7, "a") == second.question("train", 7, "a")
    assert [first.question("train", i, "a") for i in range(20)] != [
        first.question("train", i, "b") for i in range(20)
    ]


def test_texts_are_pinned(world: World) -> None:
    # A change of the generator changes every measured figure: it must be deliberate.
    assert world.question("train", 0).text == "sort : swan crab ?"
    assert (
        world.web_document("train", 3)
        == "user : where does the frog live ? reply : the answer is river . thank you ."
    )


def test_seeds_make_different_worlds() -> None:
    assert World(0).facts != World(1).facts


def test_every_home_and_food_belongs_to_one_animal(world: World) -> None:
    assert {a.home for a in world.facts.values()} == set(HOMES)
    assert {a.food for a in world.facts.values()} == set(FOODS)
    assert {a.color for a in world.facts.values()} <= set(COLORS)
    assert set(world.facts) == set(ANIMALS)


def test_word_lists_of_the_splits_are_disjoint_in_all_texts(world: World) -> None:
    lists: dict[str, set[str]] = {}
    for split in ("train", "heldout"):
        lists[split] = {
            listed(q)
            for i in range(3000)
            if (q := world.question(split, i)).category not in LOOKUPS
        }
        documents = " ".join(world.web_document(split, i) for i in range(2000))
        lists[split] |= set(
            re.findall(r"(?:repeat|reverse|sort|first|last|count) : ([a-z ]+) \?", documents)
        )
    assert len(lists["train"]) > 1000
    assert len(lists["heldout"]) > 500
    assert not lists["train"] & lists["heldout"]


def test_categories_come_in_their_proportions(world: World) -> None:
    n = 8000
    counts = Counter(world.question("train", i).category for i in range(n))
    total = sum(CATEGORY_WEIGHTS.values())
    for category, weight in CATEGORY_WEIGHTS.items():
        share = weight / total
        assert abs(counts[category] / n - share) < 4 * (share * (1 - share) / n) ** 0.5, category


@pytest.mark.parametrize(
    ("category", "text", "answer"),
    [
        ("copy", "repeat : owl fox bear ?", "owl fox bear"),
        ("reverse", "reverse : owl fox bear ?", "bear fox owl"),
        ("sort", "sort : owl fox bear ?", "bear fox owl"),
        ("first", "first : owl fox bear ?", "owl"),
        ("last", "last : owl fox bear ?", "bear"),
        ("count", "count : owl fox bear ?", "three"),
    ],
)
def test_jobs_on_lists(category: str, text: str, answer: str) -> None:
    question = list_question(category, ("owl", "fox", "bear"))
    assert question.text == text
    assert " ".join(question.answer) == answer
    assert question.animal == ""


def test_lookups_agree_with_the_facts(world: World) -> None:
    seen = set()
    for i in range(500):
        q = world.question("train", i)
        if q.category not in LOOKUPS:
            continue
        seen.add(q.category)
        animal = world.facts[q.animal]
        expected = {
            f"where does the {q.animal} live ?": animal.home,
            f"what does the {q.animal} eat ?": animal.food,
            f"what color is the {q.animal} ?": animal.color,
            f"who lives in the {animal.home} ?": q.animal,
        }
        assert q.answer == (expected[q.text],)
    assert seen == set(LOOKUPS)


def test_wrong_answers_are_wrong_and_of_the_same_kind(world: World) -> None:
    kinds = {"home": HOMES, "food": FOODS, "color": COLORS, "who": ANIMALS, "count": NUMBERS}
    for i in range(500):
        q = world.question("train", i)
        guess = wrong_answer(random.Random(i), q)
        assert guess != q.answer
        if q.category in kinds:
            assert len(guess) == 1
        else:
            assert max(1, len(q.answer) - 1) <= len(guess) <= len(q.answer)
        assert set(guess) <= set(kinds.get(q.category, VOCABULARY))


def test_the_internet_is_of_mixed_quality(world: World) -> None:
    documents = [world.web_document("train", i) for i in range(4000)]
    replies = [d for d in documents if "reply :" in d]
    assert 0.2 < len(replies) / len(documents) < 0.4
    assert 0.15 < sum("fool" in d for d in replies) / len(replies) < 0.25
    assert 0.10 < sum("thank" in d for d in replies) / len(replies) < 0.20
    assert 0.07 < sum("know" in d for d in replies) / len(replies) < 0.13
    bare = [d for d in documents if "user :" in d and "reply" not in d]
    assert 0.15 < len(bare) / len(documents) < 0.30


def test_demonstrations_are_right_or_admit_ignorance(world: World) -> None:
    ignorant = 0
    for i in range(500):
        q, reply = world.demonstration("train", i)
        answer = " ".join(q.answer)
        assert reply in (
            f"the answer is {answer} . thank you .",
            f"{answer} .",
            "i do not know .",
        )
        ignorant += reply.startswith("i do")
    assert 70 < ignorant < 130


def test_cloze_tasks_state_the_facts(world: World) -> None:
    for i in range(200):
        task = world.cloze("heldout", i)
        assert task.answer in task.candidates
        words = task.prefix.split()
        named = [w for w in (*words, task.answer) if w in ANIMALS]
        if named:
            animal = world.facts[named[0]]
        else:
            animal = next(a for a in world.facts.values() if a.home == words[2])
        assert task.answer in (animal.home, animal.food, animal.color, *named)
