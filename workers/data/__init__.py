"""Data sets as token rows: read, recognised, filtered, tokenised, and read by cursor."""
