"""Arithmetic of batches: sizes, shares of ranks, and rows of text. No actors, no I/O."""
