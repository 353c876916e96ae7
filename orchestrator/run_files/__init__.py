"""The files of a run folder: how they are written, read and checked."""
