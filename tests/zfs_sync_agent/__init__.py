"""Tests of the agent, without a ZFS of their own."""
