"""The typed configuration of a run; YAML in conf/ composes it."""
