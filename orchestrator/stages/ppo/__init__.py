"""PPO and PPO-ptx: the loop, its passes, its queue and its account."""
