"""Whatever foreign code raises, held where it cannot end the thread that called it."""

from __future__ import annotations

from types import TracebackType


class Caught:
    """Holds what is raised inside its `with` block, if it is of the given kind."""

    def __init__(self, kind: type[BaseException]) -> None:
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
