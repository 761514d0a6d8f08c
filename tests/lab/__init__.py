"""Test hosts with real ZFS on one machine: what a test imports.

Each node is a host of its own as far as the code under test can see: own host name, network,
sshd, syslog, state folders and a zfs-fuse daemon with file-backed pools. The lab decides how
such hosts are made and taken away; it never decides what is tested, and never touches the
machine's own network, pools, ssh keys or log.
"""

from .errors import CommandError, LabError
from .node import Node, Pool
from .process import Running
from .testlab import Lab, missing

__all__ = ["CommandError", "Lab", "LabError", "Node", "Pool", "Running", "missing"]
