"""Process-level tools of workers: heartbeats, call timing, disk, child processes, rendezvous."""
