"""Training: the trainer, DeepSpeed behind it, experience, and state on disk."""
