"""Which answers, samples or weights are the best: what stages measure to choose among them."""
