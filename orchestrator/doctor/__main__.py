"""`python -m orchestrator.doctor`."""

from orchestrator.doctor.command import main
from orchestrator.process.stop_signals import exit_process

if __name__ == "__main__":
    exit_process(main())
