"""Replicates datasets with zfs send and receive; never decides by a snapshot name alone."""
