"""The commands (`python -m orchestrator.NAME`), and the driver that they run."""

import sys

if sys.argv[0] == "-m":  # Python is looking for a command: its imports may fail already
    from orchestrator.command import end_imports
    from orchestrator.homes import leave_home_alone

    sys.excepthook = end_imports
    leave_home_alone()
