"""Reward sources, a file each; judges; and the conversion of sequences to their format."""
