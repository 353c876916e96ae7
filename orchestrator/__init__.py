"""The commands (`python -m orchestrator.NAME`), and the driver that they run."""

import os
import signal
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120

if sys.argv[0] == "-m":  # Python is looking for a command: its imports may fail already
    # Python searches the working folder first: a random.py of the user's would hide Python's own.
    if not sys.flags.safe_path and sys.path[0] != _ROOT:
        sys.path.append(sys.path.pop(0))

    from orchestrator.process.interrupt import end_at_once

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a script's & ignores it
        signal.signal(signal.SIGINT, end_at_once)
    from orchestrator.process.command_exit import end_imports
    from orchestrator.process.home_folder import leave_home_alone

    sys.excepthook = end_imports
    leave_home_alone()
