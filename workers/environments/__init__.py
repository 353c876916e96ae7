"""Environments: what answers the policy between its turns, and the tools that it may call."""
