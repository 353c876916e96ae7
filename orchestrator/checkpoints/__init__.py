"""Checkpoints: folders of models, and the saved states that a run goes on from."""
