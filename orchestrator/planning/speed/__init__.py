"""What a run will gain by: precision of a CPU, and an estimate of a PPO iteration on GPUs."""
