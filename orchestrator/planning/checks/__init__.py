"""Checks of a plan: settings, hardware and inputs that do not suit each other, by subject."""
