"""Token rows in order: tables, mixtures, their cursors, and the cache on disk."""
