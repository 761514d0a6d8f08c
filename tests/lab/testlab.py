"""The lab: the namespaces that all its nodes live in, and their end.

One process holds the lab's pid namespace and ends when the pipe from the test process closes, by
whatever death: the kernel then kills all that runs in the lab, and mounts and links go with it.
Decides names, numbers and lifetimes; never looks into a node.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from .errors import LabError
from .fuse import FuseNode
from .node import Node, Pool
from .process import child_of, tool

PREFIX = "zfslab-"

# The orphans of a node become children of this process; ignoring SIGCHLD reaps them.
HOLDER = """
ip link add br0 type bridge && ip link set br0 up && ip link set lo up || exit
trap '' CHLD
echo ready
exec cat
"""

Pools = Mapping[str, Pool | str]


def node_class() -> type[Node]:
    """Return the kind of nodes that this run of the tests asked for, by the variable ZFS_LAB."""
    if os.environ.get("ZFS_LAB") == "openzfs":
        from tests.openzfs.node import OpenZfsNode  # noqa: PLC0415 - needs qemu's image

        return OpenZfsNode
    return FuseNode


def missing() -> str:
    """Say what this machine lacks for a lab; empty when a lab can run."""
    if os.geteuid():
        return "a lab needs root"
    if not Path("/dev/fuse").exists():
        return "a lab needs /dev/fuse"
    try:
        for name in ("unshare", "nsenter", "ip", "sshd", "ssh", "ssh-keygen", "zfs-fuse", "zdb"):
            tool(name)
    except LabError as error:
        return str(error)
    return ""


def lock(folder: Path) -> int | None:
    """Lock a folder for as long as this process lives; None when another process has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def new_folder() -> tuple[Path, int]:
    """Make a locked folder for a lab, and sweep those whose labs are dead."""
    parent = Path(tempfile.gettempdir())
    guard = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Between its creation and its lock a folder looks dead: one lab at a time.
        fcntl.flock(guard, fcntl.LOCK_EX)
        for folder in parent.glob(f"{PREFIX}*"):
            held = lock(folder)
            if held is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(held)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        descriptor = lock(folder)
        assert descriptor is not None
        return folder, descriptor
    finally:
        os.close(guard)


class Lab:
    """A few nodes on a network of their own. Several labs may run at once."""

    def __init__(self, kind: type[Node] | None = None) -> None:
        self._kind = kind or node_class()
        self.pid = 0
        self._nodes: list[Node] = []
        self._count = 0
        self._mutex = threading.Lock()

    def __enter__(self) -> Lab:
        self.root, self._lock = new_folder()
        namespaces = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = [tool("unshare"), *namespaces, "/bin/sh", "-c", HOLDER]
        self._holder = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._holder.stdout
        if self._holder.stdout.readline() == "ready\n":
            self.pid = child_of(self._holder.pid) or 0
        if not self.pid:
            reason = self._holder.communicate()[1]
            self.__exit__(None, None, None)
            raise LabError(f"a lab needs root and namespaces: {reason}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.pid:
            # Not by the pipe's end: a fork of the test process may have the pipe open as well.
            os.kill(self.pid, signal.SIGKILL)
        self._holder.communicate()
        for node in self._nodes:
            node.close()
        shutil.rmtree(self.root, ignore_errors=True)
        os.close(self._lock)

    def node(self, name: str, pools: Pools | None = None) -> Node:
        """Start a node and let all nodes of the lab know each other."""
        return self.nodes({name: pools or {}})[0]

    def nodes(self, wanted: Mapping[str, Pools]) -> list[Node]:
        """Start several nodes at once; {name: pools}."""
        with ThreadPoolExecutor(max(1, len(wanted))) as pool:
            started = list(pool.map(self._start, wanted, wanted.values()))
        for node in self._nodes:
            node.meet(self._nodes)
        return started

    def _start(self, name: str, pools: Pools) -> Node:
        with self._mutex:
            self._count += 1
            number = self._count
        node = self._kind(self.pid, self.root / name, name, number, pools)
        with self._mutex:
            self._nodes.append(node)
        return node
