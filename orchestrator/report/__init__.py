"""The command `python -m orchestrator.report`: plots and a page from a run folder."""
