"""Training: trainers, their DeepSpeed engine, PPO experience, and training state on disk."""
