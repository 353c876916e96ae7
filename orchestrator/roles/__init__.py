"""The role groups: their interfaces, the actors behind them, and weight transfer."""
