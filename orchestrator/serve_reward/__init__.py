"""The command `python -m orchestrator.serve_reward`: a reward model as a server."""
