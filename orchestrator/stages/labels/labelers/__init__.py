"""Labelers, a file each; `label.labeler` names the file."""
