"""Reads replicated state files and tells how old the replicas are; never runs zfs unasked."""

__version__ = "0.1.0"
