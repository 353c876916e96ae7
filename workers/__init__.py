"""The work of the roles: plain classes without Ray or Hydra."""
