"""How the small commands beside a run end: `orchestrator.data`, `export`, `new_model`, `report`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from workers.errors import RehearsalError

_INTERRUPTED = 130


def exit_code(work: Callable[[], object]) -> int:
    """Do the work; an expected failure ends in its message on stderr and its exit code."""
    try:
        work()
    except RehearsalError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return _INTERRUPTED
    return 0
