"""The commands (`python -m orchestrator.NAME`), and the driver that they run."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType


def end_at_once(
    number: int, frame: FrameType | None, leave: Callable[[int], object] = os._exit
) -> None:
    """Handler of SIGINT while a command has not begun, and when it is over.

    An exception would not do: modules that are being imported drop some, or make others of them.
    """
    del frame
    try:
        os.write(2, b"stopped\n")
    finally:
        leave(128 + number)


if sys.argv[0] == "-m":  # Python is looking for a command: its imports may fail already
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a script's & ignores it
        signal.signal(signal.SIGINT, end_at_once)
    from orchestrator.process.command_exit import end_imports
    from orchestrator.process.home_folder import leave_home_alone

    sys.excepthook = end_imports
    leave_home_alone()
