from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.data.filters.filters import (
    at_most_per_user,
    conversation_text,
    first_of_each,
    prompt_key,
    prompts_within,
)
from workers.data.filters.splits import split_rows, stable_hash
from workers.data.rows.examples import Message


def hashes(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def test_the_first_of_equal_rows_stays() -> None:
    assert first_of_each(hashes(7, 0, 9, 7, 0, 9, 9)).tolist() == [
        True, True, True, False, True, False, False
    ]  # fmt: skip
    assert first_of_each(hashes()).tolist() == []


def test_at_most_n_rows_of_a_user_stay() -> None:
    users = hashes(5, 0, 5, 3, 5, 0, 0, 3)
    assert at_most_per_user(users, 2).tolist() == [True] * 4 + [False] + [True] * 3
    assert at_most_per_user(users, 1).tolist() == [
        True, True, False, True, False, True, True, False
    ]  # fmt: skip
    assert at_most_per_user(hashes(), 1).tolist() == []
    assert at_most_per_user(hashes(2**64 - 1, 0), 1).tolist() == [True, True]


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), max_size=40), st.integers(1, 5))
def test_user_cap_counts(users: list[int], most: int) -> None:
    kept = at_most_per_user(hashes(*users), most)
    for user in set(users) - {0}:
        of_user = [i for i, each in enumerate(users) if each == user]
        assert [i for i in of_user if kept[i]] == of_user[:most]
    assert all(kept[i] for i, user in enumerate(users) if user == 0)


def test_a_bare_text_and_a_dialogue_of_one_turn_are_the_same_prompt() -> None:
    turn = Message("user", " why? ")
    assert prompt_key("why?\n") == prompt_key((turn,)) == "why?"
    more = (turn, Message("assistant", "so"), Message("user", "why?"))
    assert prompt_key(more) != prompt_key((turn,))
    swapped = (Message("assistant", "why?"), Message("user", "so"), Message("user", "why?"))
    assert prompt_key(more) != prompt_key(swapped)


def test_a_dialogue_asks_all_that_its_user_asked() -> None:
    system, one, two = Message("system", "s"), Message("user", " a"), Message("user", "b")
    so = Message("assistant", "so")
    talk = (system, one, so, two)
    assert prompts_within(" a") == prompts_within((one,)) == prompts_within((system, one)) == ["a"]
    assert prompts_within(talk) == ["a", prompt_key((one, so, two))]
    assert prompts_within((*talk, so)) == ["a", prompt_key(talk[1:]), prompt_key((*talk[1:], so))]


def test_system_turns_are_no_common_prefix() -> None:
    system = Message("system", "You are helpful.")
    assert conversation_text((system, Message("user", "a"), Message("assistant", "b"))) == "a\n\nb"


def test_hashes_are_the_same_everywhere() -> None:
    # blake2b of 8 bytes, from the reference implementation: b2sum -l 64
    assert stable_hash("abc") == 0xD8BB14D833D59559


def split(
    keys: list[str], fraction: float = 0.1, held: tuple[str, ...] = (), fold: int = 0
) -> list[list[int]]:
    is_held = np.array([key in held for key in keys], bool)
    sides = split_rows(hashes(*map(stable_hash, keys)), fraction, is_held, fold)
    return [side.tolist() for side in sides]


def test_split_is_stable_and_keeps_equal_keys_together() -> None:
    keys = [f"key {i}" for i in range(1000)]
    train, held = split(keys)
    assert 70 <= len(held) <= 130
    assert sorted([*train, *held]) == list(range(1000))
    names = {keys[i] for i in held}
    assert {keys[::-1][i] for i in split(keys[::-1])[1]} == names
    grown = [*keys, *keys, *(f"new {i}" for i in range(100))]
    assert {grown[i] for i in split(grown)[1] if grown[i] in set(keys)} == names


@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.5])
def test_the_fraction_is_that_of_the_keys(fraction: float) -> None:
    keys = [f"key {i}" for i in range(4000)]
    sides = {f: set(split(keys, f)[1]) for f in (fraction, fraction / 2)}
    assert abs(len(sides[fraction]) / 4000 - fraction) < 4 * (fraction / 4000) ** 0.5
    assert sides[fraction / 2] < sides[fraction], "a larger fraction only adds"


def test_every_row_is_held_out_in_one_fold() -> None:
    keys = [f"key {i % 900}" for i in range(1000)]
    folds = [split(keys, 0.25, fold=fold)[1] for fold in range(4)]
    assert sorted(row for fold in folds for row in fold) == list(range(1000))
    assert folds[0] == split(keys, 0.25)[1]
    assert min(map(len, folds)) > 200


@pytest.mark.parametrize("fold", range(10))
def test_every_fold_of_a_small_set_has_both_sides(fold: int) -> None:
    train, held = split(["a", "b", "c"], 0.1, fold=fold)
    assert min(len(train), len(held)) > 0


@pytest.mark.parametrize("n", range(2, 12))
def test_small_sets_have_both_sides(n: int) -> None:
    train, held = split([str(i) for i in range(n)])
    assert len(train) > 0
    assert len(held) > 0


def test_held_rows_take_their_key_along() -> None:
    keys = ["a", "b", "a", "c", "d"]
    train, held = split(keys, held=("a",))
    assert {0, 2} <= set(held)
    assert not {keys[i] for i in train} & {keys[i] for i in held}


def test_one_row_is_for_training() -> None:
    assert split(["only"], held=("other",)) == [[0], []]
    assert split([]) == [[], []]
