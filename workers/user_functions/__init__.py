"""User-supplied reward and judge functions, called in separate processes."""
