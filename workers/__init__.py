"""What the roles do: plain classes that know nothing of Ray or Hydra."""
