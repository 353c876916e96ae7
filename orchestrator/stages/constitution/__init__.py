"""The supervised half of Constitutional AI: revised answers as demonstrations."""
