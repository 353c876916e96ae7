"""Assignment of generation requests to engines, and which sequences are finished (no actors).

One engine serves a request (the K samples of one prompt), so that its samples share the prompt's
KV cache. Every sequence has its own seed, so its tokens do not depend on the engine.
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
    """Requests that one call sends to one engine."""

    rank: int
    rows: list[int]  # indices of the requests, in order
    quota: int  # how many of the requests must be completed
    done: int = 0  # how many requests have all their sequences
    call: int = NOT_SENT  # number of the call

    @property
    def wanted(self) -> int:
        """How many more requests must be completed."""
        return max(0, self.quota - self.done)


class Dispatch:
    """The requests of one generation, assigned so that engines have similar token counts."""

    def __init__(
        self,
        requests: Sequence[GenerationRequest],
        engines: Sequence[int],
        response_tokens: int,
        groups: int = 0,
    ) -> None:
        """Assign the longest requests first, each to the engine with the fewest tokens so far.

        Args:
            requests: In the order in which engines must start them.
            engines: Ranks that can serve.
            response_tokens: Expected tokens per response.
            groups: How many requests must be completed; 0 = all.
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
        """The hands with requests still to complete, in order."""
        return [hand for hand in self._hands if hand.wanted]

    @property
    def unfinished(self) -> int:
        """Sequences of these hands that have not come back."""
        return sum(self._left[row] for hand in self.owed for row in hand.rows)

    def requests(self, hand: Hand) -> list[GenerationRequest]:
        """The requests of a hand with unfinished sequences, in order."""
        return [self._requests[row] for row in hand.rows if self._left[row]]

    def place(self, ids: Iterable[int]) -> int:
        """The lowest position of the sequences' requests in the order of the first assignment."""
        return min(self._place[self._of[int(i)]] for i in ids)

    def came_back(self, rank: int, ids: Iterable[int]) -> None:
        """Record finished sequences.

        Raises:
            LedgerError: they were not requested from this engine, or had arrived before.
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
        """Assign the unfinished requests of a lost engine to other engines, as unsent hands.

        Each engine gets consecutive requests, so that the order of the first assignment can be
        restored whichever engine serves them.
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
    """One hand per engine; `enough` is split into quotas in proportion to the shares."""
    total = sum(map(len, shares))
    ends: IntArray = np.cumsum([0, *map(len, shares)]) * enough // total
    return [
        Hand(rank, rows, quota)
        for rank, rows, quota in zip(engines, shares, np.diff(ends).tolist(), strict=True)
    ]
