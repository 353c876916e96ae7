"""`python -m orchestrator.report`."""

import sys

from orchestrator.report.build import main

if __name__ == "__main__":
    sys.exit(main())
