"""Runs the agent as `python -m zfs_sync_agent`; decides nothing."""

from zfs_sync_agent.cli import main

main()
