"""Verifiers, a file each: whether a response has the right answer, by rules alone."""
