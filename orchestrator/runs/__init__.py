"""Commands that look at run folders: a list of runs, and the comparison of two."""
