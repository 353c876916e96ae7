"""Which engine serves which request, and what has come back: bookkeeping alone, no actor.

A request, the K samples of one prompt, is served by one engine, so its samples share the prompt's
cache. Every sequence has a seed of its own: what it becomes does not depend on who serves it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.batching.training_batches import balance
from workers.errors import LedgerError
from workers.records.arrays import IntArray
from workers.records.generation import GenerationRequest

NOT_SENT = -1


@dataclass(eq=False, slots=True)
class Hand:
    """Requests that one engine is asked for in one call."""

    rank: int
    rows: list[int]  # which requests, in their order
    quota: int  # so many of them are enough
    done: int = 0  # so many have come back whole
    call: int = NOT_SENT  # number of the call

    @property
    def wanted(self) -> int:
        """How many more are enough."""
        return max(0, self.quota - self.done)


class Dispatch:
    """The requests of one generation, dealt to engines so that their tokens balance."""

    def __init__(
        self,
        requests: Sequence[GenerationRequest],
        engines: Sequence[int],
        response_tokens: int,
        groups: int = 0,
    ) -> None:
        """Deal: longest first, each to the engine that has the fewest tokens so far.

        Args:
            requests: In the order in which engines shall take them up.
            engines: Ranks that can serve.
            response_tokens: What a response is expected to have.
            groups: So many requests are enough; 0 = all.
        """
        self._requests = list(requests)
        self._of = {i: n for n, request in enumerate(self._requests) for i in request.ids}
        self._left = [len(request.ids) for request in self._requests]
        self._costs = np.array(
            [len(r.prompt_tokens) + len(r.ids) * response_tokens for r in self._requests], np.int64
        )
        shares = [rows.tolist() for rows in balance(self._costs, len(engines))]
        self._hands = _hands(engines, shares, groups or len(self._requests))
        self._hand_of = {row: hand for hand in self._hands for row in hand.rows}
        self._place = {row: n for n, row in enumerate(row for rows in shares for row in rows)}
        self._back: set[int] = set()

    @property
    def owed(self) -> list[Hand]:
        """Of which something is wanted, in order."""
        return [hand for hand in self._hands if hand.wanted]

    def requests(self, hand: Hand) -> list[GenerationRequest]:
        """What is not there yet of a hand, in the order given."""
        return [self._requests[row] for row in hand.rows if self._left[row]]

    def place(self, ids: Iterable[int]) -> int:
        """Where sequences stand in the order in which engines were first dealt their requests."""
        return min(self._place[self._of[int(i)]] for i in ids)

    def came_back(self, rank: int, ids: Iterable[int]) -> None:
        """Note finished sequences.

        Raises:
            LedgerError: they were not asked of this engine, or came before.
        """
        for i in map(int, ids):
            n = self._of.get(i)
            if n is None or self._hand_of[n].rank != rank or i in self._back:
                story = "came twice" if i in self._back else "was not asked for"
                raise LedgerError(
                    f"sequence {i} {story}",
                    where=f"rollout rank {rank}",
                    fix="this is a defect of the engines' bookkeeping: please report it",
                )
            self._back.add(i)
            self._left[n] -= 1
            self._hand_of[n].done += not self._left[n]

    def deal_again(self, rank: int, engines: Sequence[int]) -> None:
        """Deal what an engine that was lost still owes to others, as hands that are not sent.

        Requests that follow each other stay together, so that the order of the first deal can be
        restored, whoever serves them in the end.
        """
        for lost in [hand for hand in self.owed if hand.rank == rank]:
            rows = [row for row in lost.rows if self._left[row]]
            costs = self._costs[rows]
            middles = np.cumsum(costs) - costs / 2
            share = (middles * len(engines) / costs.sum()).astype(np.int64)
            shares = [[r for r, s in zip(rows, share, strict=True) if s == n]
                      for n in range(len(engines))]  # fmt: skip
            hands = _hands(engines, shares, lost.wanted)
            lost.quota = 0
            self._hands += hands
            self._hand_of |= {row: hand for hand in hands for row in hand.rows}


def _hands(engines: Sequence[int], shares: Sequence[list[int]], enough: int) -> list[Hand]:
    """One hand an engine; of `enough` requests each owes a part in proportion to its share."""
    total = sum(map(len, shares))
    ends: IntArray = np.cumsum([0, *map(len, shares)]) * enough // total
    return [
        Hand(rank, rows, quota)
        for rank, rows, quota in zip(engines, shares, np.diff(ends).tolist(), strict=True)
    ]
