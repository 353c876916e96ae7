"""Advantage estimators, one per file; a file's name is its name in `algorithm.advantage`."""
