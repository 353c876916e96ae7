"""Guard thread that watches Ray's own servers and ends a run whose servers are lost.

The driver's next wait raises an error. While the driver waits inside Ray's native code, it would
see nothing for a minute until Ray ends the process, so the guard ends the run before that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orchestrator.process.forced_exit import LastResort
from orchestrator.supervision.ray_servers import Servers
from workers.errors import ClusterLostError, RehearsalError, RoleError

_NOTICE_SECONDS = 4.0  # time for the driver to react to a lost server


class Guard:
    """Watches whether Ray's servers are healthy while a run needs them."""

    def __init__(
        self,
        servers: Servers,
        seconds: float,
        resort: LastResort | None = None,
        notice_seconds: float = _NOTICE_SECONDS,
    ) -> None:
        """Prepare; `start` begins to watch.

        Args:
            servers: The servers to watch.
            seconds: Between two looks.
            resort: Ends the run if the driver does not; None: nothing does.
            notice_seconds: Time for the driver to react.
        """
        self._servers = servers
        self._seconds = seconds
        self._resort = resort
        self._notice_seconds = notice_seconds
        self._why = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="Ray's servers", daemon=True)
        self.fix: Callable[[], str] = lambda: "start the same command again"
        # Whether lost servers will be started again, which takes longer than `notice_seconds`.
        self.excused: Callable[[], bool] = lambda: False

    def start(self) -> None:
        """Start the thread that watches."""
        self._thread.start()

    def stand_down(self) -> None:
        """Stop watching: the run no longer needs Ray, and its servers may end."""
        self._over.set()

    @property
    def lost(self) -> bool:
        """Whether a server was lost while the run needed it."""
        return bool(self._why)

    def check(self) -> None:
        """Raise if a server is lost.

        Raises:
            ClusterLostError: names the server, and how to resume.
        """
        if self._why:
            raise self._error()

    def look(self) -> None:
        """Like `check`, after a new look; for a lost worker, whose server may just have ended."""
        self._why = self._why or self._servers.ended()
        self.check()

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Replace errors of Ray or a role in the block by the loss of a server, if one is lost.

        Raises:
            ClusterLostError: names the server.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, RoleError) or not isinstance(error, RehearsalError):
                self.look()
            raise

    def _error(self) -> ClusterLostError:
        return ClusterLostError(
            f"Ray cannot continue: {self._why}", where="cluster", fix=self.fix()
        )

    def _watch(self) -> None:
        while not self._why:
            if self._over.wait(self._seconds):
                return
            self._why = self._why or self._servers.look()
        while self.excused():
            if self._over.wait(self._seconds):
                return
        if not self._over.wait(self._notice_seconds) and self._resort is not None:
            self._resort.fail(self._error())
