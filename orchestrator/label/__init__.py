"""The command `python -m orchestrator.label`: people rank answers in a page."""
