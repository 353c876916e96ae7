"""Mirror of a run on object storage: copies of checkpoints, for a new cluster to resume from."""
