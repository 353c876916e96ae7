"""A generation in flight on several engines: what has come, and what is still owed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from orchestrator.roles.dispatch import NOT_SENT, Dispatch, Hand
from orchestrator.roles.interfaces import Generation, Rollouts, joined
from orchestrator.supervision.pending import Arrivals
from orchestrator.telemetry.role_time import Account
from workers.errors import RoleDiedError, RoleError, RoleHungError
from workers.records.generation import RolloutSummary

Send = Callable[[Hand, int], None]  # a hand, and the version that samples it
Lost = Callable[[str, RoleError], None]  # the engine's name, and how it was lost


class Generating(Generation):
    """One call of `generate`: what has come, and what is still owed."""

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
            dispatch: Who is asked for what.
            arrivals: Listens to them.
            account: Is told when they ran.
            together: What several engines give is one part.
            send: Asks an engine for a hand.
            lost: Has other engines asked for what a lost one owes, here and in every other open
                generation; None: a loss ends the generation.
        """
        self._account = account
        self.arrivals = arrivals
        self._dispatch = dispatch
        self._together = together
        self._send = send
        self._lost = lost
        self._parts: list[Rollouts] = []
        self._places: list[int] = []  # of each part, in the order of the first deal

    @property
    def hands(self) -> list[Hand]:
        """What is still wanted, of whom."""
        return self._dispatch.owed

    @property
    def owed(self) -> list[int]:
        """Ranks that have not given enough yet."""
        return sorted({hand.rank for hand in self.hands})

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
        """All of them; in the order in which engines were first asked, whoever was faster."""
        while self._receive():
            pass
        order = sorted(range(len(self._parts)), key=self._places.__getitem__)
        return joined([self._parts[n] for n in order])

    def forget(self, rank: int) -> int:
        """Do not listen to the calls of a process that is gone.

        Returns:
            How many of its replies are thrown away.
        """
        return self.arrivals.forget(rank)

    def deal_again(self, rank: int, engines: Sequence[int]) -> None:
        """Deal what a lost engine owes to others, without asking them yet."""
        self._dispatch.deal_again(rank, engines)

    def send(self, version: int) -> None:
        """Ask for every hand that nobody was asked for."""
        assert self._send is not None
        for hand in self.hands:
            if hand.call == NOT_SENT:
                self._send(hand, version)

    def _receive(self) -> bool:
        """Wait for one more part; False when enough has come."""
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
        self._parts.append(Rollouts((ref,), summary))
        self._places.append(self._dispatch.place(summary.ids))
        return True
