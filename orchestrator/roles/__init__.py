"""Role groups: their interfaces, their Ray actors, and weight sync."""
