"""Checkpoints: model folders, and the saved states from which a run resumes."""
