"""Tests: values first, then real ZFS; tests/lab makes the nodes."""
