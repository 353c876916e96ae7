"""The command `python -m orchestrator.watch`: a run in the browser, while it runs or afterwards."""
