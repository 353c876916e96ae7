"""The command `python -m orchestrator.doctor`: checks of this machine and of a run's cluster."""
