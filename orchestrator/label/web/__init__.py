"""The pages of the labeling server."""
