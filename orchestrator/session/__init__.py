"""What the stages of one run share: data, state, saving and recovery."""
