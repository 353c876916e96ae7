"""One running generation on several engines: received parts and unfinished requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from orchestrator.roles.dispatch import NOT_SENT, Dispatch, Hand
from orchestrator.roles.interfaces import Generation, Rollouts, joined
from orchestrator.supervision.pending import Arrivals
from orchestrator.telemetry.role_time import Account
from workers.errors import RoleDiedError, RoleError, RoleHungError
from workers.records.generation import RolloutSummary

Send = Callable[[Hand, int], None]  # (hand, weight version that samples it)
Lost = Callable[[str, RoleError], None]  # (name of the engine, error of its loss)


class Generating(Generation):
    """One call of `generate`: received parts and unfinished requests."""

    def __init__(
        self,
        dispatch: Dispatch,
        arrivals: Arrivals,
        account: Account,
        *,
        together: bool,
        send: Send | None = None,
        lost: Lost | None = None,
    ) -> None:
        """Follow calls that are started.

        Args:
            dispatch: Which engine serves which request.
            arrivals: Receives their records.
            account: Records when they ran.
            together: Deliver the results of all engines as one part.
            send: Sends a hand to an engine.
            lost: Sends a lost engine's unfinished requests to other engines, for this and every
                other open generation; None: a loss ends the generation.
        """
        self._account = account
        self.arrivals = arrivals
        self._dispatch = dispatch
        self._together = together
        self._send = send
        self._lost = lost
        self._parts: list[Rollouts] = []
        self._places: list[int] = []  # position of each part in the order of the first assignment

    @property
    def hands(self) -> list[Hand]:
        """The hands with requests still to complete."""
        return self._dispatch.owed

    @property
    def owed(self) -> list[int]:
        """Ranks with requests still to complete."""
        return sorted({hand.rank for hand in self.hands})

    @property
    def unfinished(self) -> int:
        """Sequences that engines still have to finish."""
        return self._dispatch.unfinished

    def parts(self) -> Iterator[Rollouts]:
        """Each part as soon as it arrives."""
        if self._together:
            yield self.result()
            return
        seen = 0
        while seen < len(self._parts) or self._receive():
            yield self._parts[seen]
            seen += 1

    def result(self) -> Rollouts:
        """All parts, in the order of the first assignment, not of arrival."""
        while self._receive():
            pass
        order = sorted(range(len(self._parts)), key=self._places.__getitem__)
        return joined([self._parts[n] for n in order])

    def forget(self, rank: int) -> int:
        """Stop listening to the calls of a process that ended.

        Returns:
            How many of its replies are discarded.
        """
        return self.arrivals.forget(rank)

    def deal_again(self, rank: int, engines: Sequence[int]) -> None:
        """Assign a lost engine's unfinished requests to others, without sending them yet."""
        self._dispatch.deal_again(rank, engines)

    def send(self, version: int) -> None:
        """Send every hand that has not been sent."""
        assert self._send is not None
        for hand in self.hands:
            if hand.call == NOT_SENT:
                self._send(hand, version)

    def _receive(self) -> bool:
        """Wait for one more part; False when no request is left to complete."""
        owed = self.owed
        if not owed:
            return False
        try:
            arrived = self.arrivals.next()
        except (RoleDiedError, RoleHungError) as error:
            if self._lost is None:
                raise
            self._lost(error.where, error)
            return self._receive()
        if arrived is None:
            raise RoleError(
                "generation ended before all was there",
                where=", ".join(f"rollout rank {rank}" for rank in owed),
                fix="this is a defect of the engines' bookkeeping: please report it",
            )
        rank, reply, ref = arrived
        self._account.told("rollout", rank, reply.spans)
        summary: RolloutSummary = reply.value
        self._dispatch.came_back(rank, summary.ids)
        self._parts.append(Rollouts.of(ref, summary))
        self._places.append(self._dispatch.place(summary.ids))
        return True
