"""Models in memory: loading, forward passes, row layout, LoRA, published folders."""
