"""Which task a labeler gets, without a server."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from orchestrator.label.queue import Queue, Waiting, shown_order

ANN, BEN, EVE = 1, 2, 3


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def queue(*needed: int, clock: Clock | None = None, gold: int = 0, every: int = 20) -> Queue:
    tasks = [Waiting(i, n) for i, n in enumerate(needed, start=1)]
    tasks += [Waiting(100 + i, 1, gold=True) for i in range(gold)]
    return Queue(tasks, every, lease_seconds=60, clock=clock or Clock())


def test_no_two_people_get_a_task_that_needs_one_judgment() -> None:
    q = queue(1, 1)
    assert [q.next(ANN), q.next(BEN), q.next(EVE)] == [1, 2, None]


def test_a_page_that_is_loaded_again_shows_the_same_task() -> None:
    q = queue(1, 1)
    assert [q.next(ANN), q.next(ANN)] == [1, 1]


def test_an_overlap_task_goes_to_as_many_different_people_as_it_needs() -> None:
    q = queue(2, 1)
    assert [q.next(ANN), q.next(BEN), q.next(EVE)] == [1, 1, 2]
    q.judged(ANN, 1)
    assert q.next(ANN) is None  # 1 is judged by ann, 2 is with eve
    q.judged(BEN, 1)
    assert q.left(EVE) == 1


def test_a_lease_ends_and_a_renewed_one_does_not() -> None:
    clock = Clock()
    q = queue(1, clock=clock)
    assert q.next(ANN) == 1
    clock.now = 59
    assert q.renew(ANN, 1)
    clock.now = 118
    assert q.next(BEN) is None
    clock.now = 120
    assert q.next(BEN) == 1
    assert not q.renew(ANN, 1)


def test_a_skipped_task_goes_to_somebody_else() -> None:
    q = queue(1)
    assert q.next(ANN) == 1
    q.passed(ANN, 1)
    assert [q.next(ANN), q.next(BEN)] == [None, 1]


def test_what_was_judged_before_a_restart_is_not_asked_again() -> None:
    tasks = [Waiting(1, 1, judged={ANN}), Waiting(2, 2, judged={ANN}), Waiting(3, 1)]
    q = Queue(tasks, clock=Clock())
    q.resume(BEN, 3)
    assert [q.next(ANN), q.next(BEN)] == [None, 3]


def test_higher_priority_comes_first_then_the_order_of_the_file() -> None:
    q = Queue([Waiting(1, 1, 0.5), Waiting(2, 1, 0.9), Waiting(3, 1, 0.9)], clock=Clock())
    found = []
    for _ in range(3):
        found.append(q.next(ANN))
        q.judged(ANN, found[-1])
    assert found == [2, 3, 1]


def test_one_of_every_n_tasks_of_each_labeler_has_a_known_answer() -> None:
    q = queue(*[2] * 40, gold=8, every=5)
    for labeler in (ANN, BEN):
        shown = []
        while (task := q.next(labeler)) is not None:
            shown.append(task)
            q.judged(labeler, task)
        blocks = [sum(t >= 100 for t in shown[i : i + 5]) for i in range(0, 40, 5)]
        assert blocks == [1] * 8
        assert len(shown) == len(set(shown)) == 48


@pytest.mark.parametrize("k", [2, 9])
def test_answers_are_shown_in_an_order_of_each_labeler(k: int) -> None:
    orders = [shown_order(7, labeler, k, seed=3) for labeler in range(900)]
    assert all(sorted(order) == list(range(k)) for order in orders)
    first = Counter(order[0] for order in orders)
    expected = 900 / k
    assert all(abs(count - expected) < 5 * expected**0.5 for count in first.values())
    assert orders == [shown_order(7, labeler, k, seed=3) for labeler in range(900)]
    assert orders != [shown_order(8, labeler, k, seed=3) for labeler in range(900)]


def test_what_is_left_is_what_a_count_over_all_tasks_gives() -> None:
    rng = random.Random(4)
    needed = {i: rng.randint(1, 3) for i in range(1, 41)}
    q = queue(*needed.values())
    judged: dict[int, set[int]] = {i: set() for i in needed}
    seen: dict[int, set[int]] = {person: set() for person in range(1, 6)}
    for _ in range(400):
        person = rng.randint(1, 5)
        open_ = [i for i in needed if len(judged[i]) < needed[i] and i not in seen[person]]
        assert q.left(person) == len(open_)
        task = q.next(person)
        assert task is None or task in open_
        if task is None:
            continue
        seen[person].add(task)
        if rng.random() < 0.7:
            judged[task].add(person)
            q.judged(person, task)
        else:
            q.passed(person, task)
    assert all(len(who) <= needed[i] for i, who in judged.items())
