"""Test hosts with today's OpenZFS: each has the ZFS of a small virtual machine of its own."""
