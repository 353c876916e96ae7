"""Metrics, time and live view of a run while it works."""
