"""Hugging Face folders on disk: files, weights, model shape and weight layout, and their checks."""
