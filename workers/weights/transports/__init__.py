"""The weight transports of this project, each one module with `TRANSPORT`."""
