"""Compares the agent with the seed's own commands and with other programs; see __main__.py."""
