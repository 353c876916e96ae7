"""Whether workers and Ray's servers are alive, and waiting for them with deadlines."""
