"""Readers of data files of any supported format as JSON-like rows."""
