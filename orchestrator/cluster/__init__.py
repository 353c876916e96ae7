"""Ray: the cluster that a run starts or joins, and the processes on it."""
