"""The pages of a run that is watched."""
