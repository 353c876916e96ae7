"""Filters and splits: which rows are dropped, and which are held out."""
