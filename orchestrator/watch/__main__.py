"""`python -m orchestrator.watch`."""

import sys

from orchestrator.watch.command import main

if __name__ == "__main__":
    sys.exit(main())
