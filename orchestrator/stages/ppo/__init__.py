"""PPO and PPO-ptx: the loop, scoring passes, generation queue and sequence ledger."""
