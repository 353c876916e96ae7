"""Looks after Ray's own servers from a thread of its own, and ends a run that needs lost ones.

The driver hears of it at its next wait, by an error. Where it waits inside Ray's native code, it
would hear nothing for a minute, and then Ray ends the process: the guard ends the run before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orchestrator.process.forced_exit import LastResort
from orchestrator.supervision.ray_servers import Servers
from workers.errors import ClusterLostError, RehearsalError, RoleError

_NOTICE_SECONDS = 4.0  # that the driver has, once a server is lost, to get out of what it does


class Guard:
    """Whether Ray's servers are well, while a run needs them."""

    def __init__(
        self,
        servers: Servers,
        seconds: float,
        resort: LastResort | None = None,
        notice_seconds: float = _NOTICE_SECONDS,
    ) -> None:
        """Look after nobody yet.

        Args:
            servers: Whom to look after.
            seconds: Between two looks.
            resort: Ends the run if the driver does not; None: nobody does.
            notice_seconds: How long the driver may take.
        """
        self._servers = servers
        self._seconds = seconds
        self._resort = resort
        self._notice_seconds = notice_seconds
        self._why = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="Ray's servers", daemon=True)
        self.fix: Callable[[], str] = lambda: "start the same command again"

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stand_down(self) -> None:
        """The run needs Ray no more; what its servers do from here on is no fault."""
        self._over.set()

    @property
    def lost(self) -> bool:
        """Whether a server was lost while the run needed it."""
        return bool(self._why)

    def check(self) -> None:
        """Do nothing while all are well.

        Raises:
            ClusterLostError: it names the server, and how to go on.
        """
        if self._why:
            raise self._error()

    def look(self) -> None:
        """The same, where one may have ended just now: a worker did, for which that is a reason."""
        self._why = self._why or self._servers.ended()
        self.check()

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """What Ray or a role raises in the block because a server is lost is told as that.

        Raises:
            ClusterLostError: it names the server.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, RoleError) or not isinstance(error, RehearsalError):
                self.look()
            raise

    def _error(self) -> ClusterLostError:
        return ClusterLostError(f"Ray cannot go on: {self._why}", where="cluster", fix=self.fix())

    def _watch(self) -> None:
        while not self._why:
            if self._over.wait(self._seconds):
                return
            self._why = self._why or self._servers.look()
        if not self._over.wait(self._notice_seconds) and self._resort is not None:
            self._resort.fail(self._error())
