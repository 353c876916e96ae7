"""Which engine serves which request, and what has come back: bookkeeping alone, no actor.

A request, the K samples of one prompt, is served by one engine, so its samples share the prompt's
cache. Every sequence has a seed of its own: what it becomes does not depend on who serves it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from orchestrator.batching import balance
from workers.errors import LedgerError
from workers.messages import GenerationRequest, IntArray


class Dispatch:
    """The requests of one call, dealt to engines so that their tokens balance."""

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
        costs = [len(r.prompt_tokens) + len(r.ids) * response_tokens for r in self._requests]
        shares = balance(np.array(costs, np.int64), len(engines))
        self._engine = np.zeros(len(self._requests), np.int64)
        for rank, rows in zip(engines, shares, strict=True):
            self._engine[rows] = rank
        self._quota = self._share_out(groups or len(self._requests), engines, shares)
        self._back: set[int] = set()
        self._done = dict.fromkeys(engines, 0)  # requests of each that have come back whole

    def _share_out(
        self, groups: int, engines: Sequence[int], shares: Sequence[IntArray]
    ) -> dict[int, int]:
        """How many requests of each engine are enough, in proportion to its share."""
        ends = np.cumsum([0, *(len(rows) for rows in shares)]) * groups // len(self._requests)
        return dict(zip(engines, np.diff(ends).tolist(), strict=True))

    @property
    def busy(self) -> list[int]:
        """Engines of which something is wanted, in order."""
        return [rank for rank, quota in self._quota.items() if quota]

    def hand(self, rank: int) -> list[GenerationRequest]:
        """The requests of one engine, in the order given."""
        return [self._requests[n] for n in np.flatnonzero(self._engine == rank)]

    def quota(self, rank: int) -> int:
        """How many of them are enough."""
        return self._quota[rank]

    def wanted(self, rank: int) -> int:
        """How many more of an engine's requests are enough."""
        return max(0, self._quota[rank] - self._done[rank])

    def came_back(self, rank: int, ids: Iterable[int]) -> None:
        """Note finished sequences.

        Raises:
            LedgerError: they were not asked of this engine, or came before.
        """
        for i in map(int, ids):
            n = self._of.get(i)
            if n is None or self._engine[n] != rank or i in self._back:
                story = "came twice" if i in self._back else "was not asked for"
                raise LedgerError(
                    f"sequence {i} {story}",
                    where=f"rollout rank {rank}",
                    mend="this is a defect of the engines' bookkeeping: please report it",
                )
            self._back.add(i)
            self._left[n] -= 1
            self._done[rank] += not self._left[n]

    def unfinished(self, rank: int) -> list[GenerationRequest]:
        """What an engine still owes, in the order given; none once enough have come back."""
        if not self.wanted(rank):
            return []
        return [self._requests[n] for n in np.flatnonzero(self._engine == rank) if self._left[n]]
