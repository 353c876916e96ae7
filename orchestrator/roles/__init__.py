"""Role groups: their interfaces, their verbs, and weight sync."""
