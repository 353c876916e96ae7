"""What a worker's process needs of its surroundings: heartbeat, timing, disk, children."""
