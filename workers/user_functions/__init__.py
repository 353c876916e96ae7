"""Functions of the user's own (rewards, judges), called in a process of their own."""
