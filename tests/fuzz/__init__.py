"""Seeded hostile inputs for all that users hand in: `make fuzz`, or `python -m fuzz --help`."""
