"""Runs the check as `python -m check_zfs_sync`; decides nothing."""

from check_zfs_sync.plugin import main

main()
