"""Answers that are sampled to be ranked, who ranks them, and the rankings of a run."""
