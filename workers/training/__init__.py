"""Training: trainers, their DeepSpeed engine, advantage estimators, and state on disk."""
