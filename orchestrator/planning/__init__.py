"""The plan of a run: all that can be derived and checked before a process starts."""
