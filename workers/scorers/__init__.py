"""Judges and scorers outside the run's models, and the conversion of sequences to their format."""
