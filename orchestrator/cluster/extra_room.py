"""Places for extra workers: what a joined cluster has beyond the reservation of the run.

Each place is a placement group of one bundle. One that does not fit yet is what Ray's autoscaler
takes as a demand for another node.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from orchestrator.process.forced_exit import within

_LOOK_SECONDS = 1.0  # between two questions to Ray
_REMOVE_SECONDS = 10.0


class ExtraRoom:
    """Asks the cluster for one place per worker, and keeps those that it gets."""

    def __init__(self, resources: Mapping[str, float]) -> None:
        """Ask for nothing yet.

        Args:
            resources: Of one worker, in Ray's names.
        """
        self._resources = dict(resources)
        self._places: dict[int, PlacementGroup] = {}
        self._there: set[int] = set()
        self._due = 0.0  # when Ray may be asked again

    def there(self, rank: int) -> bool:
        """Whether a worker has a place now; asks for one if it has none. Does not block."""
        if rank not in self._places:
            name = f"rehearsal-extra-{rank}-{time.monotonic_ns()}"
            self._places[rank] = placement_group([self._resources], strategy="PACK", name=name)
        if rank not in self._there and time.monotonic() >= self._due:
            self._look()
        return rank in self._there

    def _look(self) -> None:
        for rank, place in self._places.items():
            if rank not in self._there and _state(place) == "CREATED":
                self._there.add(rank)
        self._due = time.monotonic() + _LOOK_SECONDS

    def place(self, rank: int) -> PlacementGroup:
        """The place of a worker; KeyError unless it is there."""
        if rank not in self._there:
            raise KeyError(f"extra worker {rank} has no place")
        return self._places[rank]

    def give_back(self, rank: int) -> None:
        """Release the place of a worker, if it has one, or the demand for it."""
        self._there.discard(rank)
        place = self._places.pop(rank, None)
        if place is not None:
            within(_REMOVE_SECONDS, lambda: remove_placement_group(place))

    def close(self) -> None:
        """Release all places."""
        for rank in list(self._places):
            self.give_back(rank)


def _state(place: PlacementGroup) -> str:
    table: dict[str, object] = placement_group_table(place)
    return str(table.get("state"))
