"""`python -m orchestrator.data`."""

import sys

from orchestrator.data.command import main

if __name__ == "__main__":
    sys.exit(main())
