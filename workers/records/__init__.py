"""Records exchanged between roles: frozen dataclasses with numpy arrays, no engine imports."""
