"""Settings of labels and of rounds of labels, reward model and policy."""
