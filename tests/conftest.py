"""Makes this folder importable, so that every test finds `fakes`."""
