"""Models in memory: loading, forward passes, rows, LoRA."""
