"""The workers: one plain class a role, and the scoring that they share."""
