"""What a run is given and goes on from, looked at before anything starts."""
