"""Rows of a data set as examples, before tokenization."""
