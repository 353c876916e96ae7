"""Catching of any exception that foreign code raises, so that it cannot end the thread."""

from __future__ import annotations

from types import TracebackType


class Caught:
    """Catches and stores an exception of the given kind raised inside its `with` block."""

    def __init__(self, kind: type[BaseException] | tuple[type[BaseException], ...]) -> None:
        self._kind = kind
        self.error: BaseException | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if isinstance(error, self._kind):
            self.error = error
        return isinstance(error, self._kind)
