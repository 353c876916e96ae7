"""The command line of a run: flags, keys, and what is said of wrong ones."""
