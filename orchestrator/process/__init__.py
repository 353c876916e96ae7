"""The driver's own process: its exit, signals, temporary folders and terminal."""
