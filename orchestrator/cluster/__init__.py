"""Ray cluster that a run starts or joins, and its worker processes."""
