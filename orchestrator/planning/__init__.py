"""The plan of a run: what can be known, and refused, before a process starts."""
