"""The commands (`python -m orchestrator.NAME`), and the driver that they run."""

import signal
import sys

if sys.argv[0] == "-m":  # Python is looking for a command: its imports may fail already
    from orchestrator.process.interrupt import end_at_once

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a script's & ignores it
        signal.signal(signal.SIGINT, end_at_once)
    from orchestrator.process.command_exit import end_imports
    from orchestrator.process.home_folder import leave_home_alone

    sys.excepthook = end_imports
    leave_home_alone()
