"""The command `python -m orchestrator.data`: look at data before training on it."""
