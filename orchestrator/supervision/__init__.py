"""Liveness of workers and Ray's servers, and waits with deadlines."""
