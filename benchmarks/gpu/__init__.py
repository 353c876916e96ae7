"""Checks of the product on a machine with a GPU; run by `gpu_workers` and `gpu_acceptance`."""
