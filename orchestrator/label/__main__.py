"""`python -m orchestrator.label`."""

import sys

from orchestrator.label.command import main

if __name__ == "__main__":
    sys.exit(main())
