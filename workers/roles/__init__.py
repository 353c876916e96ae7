"""The workers: one plain class per role, and the scoring code that they share."""
