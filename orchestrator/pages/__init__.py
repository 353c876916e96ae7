"""What the servers of our own pages share: address, guard, escaping, templates."""
