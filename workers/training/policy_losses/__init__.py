"""Policy losses, a file each; see `workers.training.policy_loss`."""
