"""Compares the agent with the bare commands and with other programs; see __main__.py."""
