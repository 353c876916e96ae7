"""Places for extra workers, over a record of what Ray is asked."""

from __future__ import annotations

import pytest

from orchestrator.cluster import extra_room
from orchestrator.cluster.extra_room import ExtraRoom


class FakeRay:
    """Placement groups by number; those in `placed` have their resources."""

    def __init__(self) -> None:
        self.asked: list[dict[str, float]] = []
        self.placed: set[int] = set()
        self.removed: list[int] = []
        self.looks = 0
        self.now = 100.0

    def group(self, bundles: list[dict[str, float]], strategy: str, name: str) -> int:
        self.asked += bundles
        return len(self.asked) - 1

    def table(self, group: int) -> dict[str, object]:
        self.looks += 1
        return {"state": "CREATED" if group in self.placed else "PENDING"}


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(extra_room, "placement_group", fake.group)
    monkeypatch.setattr(extra_room, "placement_group_table", fake.table)
    monkeypatch.setattr(extra_room, "remove_placement_group", fake.removed.append)
    monkeypatch.setattr(extra_room.time, "monotonic", lambda: fake.now)
    return fake


def test_each_worker_gets_one_place_that_is_asked_for_once(ray: FakeRay) -> None:
    room = ExtraRoom({"CPU": 1.5})
    assert not room.there(1)
    assert not room.there(2)
    ray.placed |= {1}
    ray.now += 1.5
    assert (room.there(1), room.there(2)) == (False, True)
    assert ray.asked == [{"CPU": 1.5}, {"CPU": 1.5}]
    assert room.place(2) == 1
    with pytest.raises(KeyError, match="extra worker 1 has no place"):
        room.place(1)


def test_ray_is_asked_once_per_second(ray: FakeRay) -> None:
    room = ExtraRoom({"CPU": 1})
    for _ in range(50):
        room.there(1)
        ray.now += 0.1
    assert ray.looks == 5


def test_a_place_that_is_given_back_is_asked_for_again(ray: FakeRay) -> None:
    room = ExtraRoom({"GPU": 1})
    ray.placed |= {0}
    assert room.there(1)
    room.give_back(1)
    assert ray.removed == [0]
    ray.now += 2
    assert not room.there(1)
    assert len(ray.asked) == 2
    room.give_back(1)
    room.give_back(1)  # nothing is left to give back
    room.give_back(7)
    assert ray.removed == [0, 1]


def test_all_places_end_with_the_run(ray: FakeRay) -> None:
    room = ExtraRoom({"CPU": 1})
    ray.placed |= {1}
    for rank in (3, 4):
        room.there(rank)
    room.close()
    assert sorted(ray.removed) == [0, 1]
    room.close()
    assert sorted(ray.removed) == [0, 1]
