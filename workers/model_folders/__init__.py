"""Hugging Face folders on disk: files, weights, shape and form, checked before loading."""
