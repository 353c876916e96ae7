"""Writing, reading and checking the files of a run folder."""
