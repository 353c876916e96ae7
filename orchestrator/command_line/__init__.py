"""The command line of a run: flags, keys, and the errors for wrong ones."""
