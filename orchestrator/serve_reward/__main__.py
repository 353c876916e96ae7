"""`python -m orchestrator.serve_reward`."""

import sys

from orchestrator.serve_reward.command import main

if __name__ == "__main__":
    sys.exit(main())
