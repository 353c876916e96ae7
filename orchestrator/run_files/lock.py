"""Who holds the lock of a run folder."""

from __future__ import annotations

import os
from pathlib import Path

_LOCKS = Path("/proc/locks")


def holder(lock: Path) -> int | None:
    """The process of this machine that holds a lock on a file; None: none that is visible.

    The kernel's list is read instead of trying the lock: for that moment a run could not start.
    """
    try:
        status = lock.stat()
        lines = _LOCKS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    name = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in lines:
        words = line.split()
        if "->" not in words and len(words) > 5 and words[1] == "FLOCK" and words[5] == name:
            return int(words[4])
    return None
