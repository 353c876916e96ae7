"""Token rows in reading order: tables, mixtures, samplers, and the cache on disk."""
