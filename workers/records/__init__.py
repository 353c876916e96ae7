"""The records that cross role borders: frozen, numpy only, no engine imported."""
