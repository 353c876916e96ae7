"""Metrics, timing and live view of a running run."""
