"""The most memory that this process has held, measured in parts."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"  # proc(5): sets the peak to what is resident now


def peak_resident() -> int:
    """Most resident bytes of this process since the previous call.

    Pages that it shares with other processes count. Where the kernel does not let a process forget
    its peak, it is the peak since the process began; where it tells none, 0.
    """
    try:
        text = _STATUS.read_text(encoding="ascii", errors="replace")
        peak = int(text.partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024
    except (OSError, ValueError, IndexError):
        return 0
    with suppress(OSError):
        _CLEAR.write_text(_FORGET_PEAK, encoding="ascii")
    return peak
