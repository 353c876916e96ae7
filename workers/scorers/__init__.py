"""Judges and scorers that are no model of the run, and the text that they are given."""
