"""Arithmetic of batches: their sizes, who trains on what, and rows of text. No actor, no I/O."""
