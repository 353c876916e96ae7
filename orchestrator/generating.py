"""A generation in flight on several engines: what has come, and what is still owed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from orchestrator.account import Account
from orchestrator.dispatch import Dispatch
from orchestrator.handles import Generation, Rollouts, joined
from orchestrator.waiting import Arrivals
from workers.errors import RoleDiedError, RoleError, RoleHungError
from workers.messages import GenerationRequest, RolloutSummary

Ask = Callable[[int, int, list[GenerationRequest]], None]  # rank, version, what it owes
Again = Callable[[str, RoleError], None]  # the engine's name, and how it was lost


class Generating(Generation):
    """One call of `generate`: what has come, and what is still owed."""

    def __init__(
        self,
        call: int,
        dispatch: Dispatch,
        arrivals: Arrivals,
        account: Account,
        *,
        together: bool,
        ask: Ask | None = None,
        again: Again | None = None,
    ) -> None:
        """Follow calls that were started.

        Args:
            call: Their number.
            dispatch: Who was asked for what.
            arrivals: Listens to them.
            account: Is told when they ran.
            together: What several engines give is one part.
            ask: Starts another call, on an engine that was made anew.
            again: Makes an engine anew and has every open generation ask it; None: a loss ends
                the generation.
        """
        self.call = call
        self._account = account
        self.arrivals = arrivals
        self._dispatch = dispatch
        self._together = together
        self._ask = ask
        self._again = again
        self._parts: list[Rollouts] = []
        self._from: list[int] = []  # rank that each part came from

    @property
    def owed(self) -> list[int]:
        """Ranks that have not given enough yet."""
        return [rank for rank in self._dispatch.busy if self._dispatch.wanted(rank)]

    def parts(self) -> Iterator[Rollouts]:
        """Each part as soon as it is there."""
        if self._together:
            yield self.result()
            return
        seen = 0
        while seen < len(self._parts) or self._receive():
            yield self._parts[seen]
            seen += 1

    def result(self) -> Rollouts:
        """All of them; in the order of the engines, whoever was faster."""
        while self._receive():
            pass
        return joined([self._parts[n] for n in np.argsort(self._from, kind="stable")])

    def ask_anew(self, rank: int, version: int) -> int:
        """Forget the calls of an engine's old process, and ask the new one for what is owed.

        Returns:
            How many replies of the old one are thrown away.
        """
        thrown = self.arrivals.forget(rank)
        owed = self._dispatch.unfinished(rank)
        if owed and self._ask is not None:
            self._ask(rank, version, owed)
        return thrown

    def _receive(self) -> bool:
        """Wait for one more part; False when enough has come."""
        owed = self.owed
        if not owed:
            return False
        try:
            arrived = self.arrivals.next()
        except (RoleDiedError, RoleHungError) as error:
            if self._again is None:
                raise
            self._again(error.where, error)
            return self._receive()
        if arrived is None:
            raise RoleError(
                "generation ended before all was there",
                where=", ".join(f"rollout rank {rank}" for rank in owed),
                mend="this is a defect of the engines' bookkeeping: please report it",
            )
        rank, reply, ref = arrived
        self._account.told("rollout", rank, reply.spans)
        summary: RolloutSummary = reply.value
        self._dispatch.came_back(rank, summary.ids)
        self._parts.append(Rollouts((ref,), summary))
        self._from.append(rank)
        return True
