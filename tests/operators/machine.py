"""A small Debian 12 with systemd as its first process, to install packages in.

Decides how it is built, once, and how a test reaches it. It has no network and no ZFS; what changes
in it is in memory, and gone at the end.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.lab import process
from tests.lab.errors import CommandError, LabError
from tests.lab.process import Running, captured, eventually, tool

HERE = Path(__file__).resolve().parent
CACHE = Path("/var/cache/zfs_sync")
NAMESPACES = ("mount", "net", "uts", "ipc", "cgroup", "pid")
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "SYSTEMD_PAGER": "",
}


def debian() -> Path:
    """Return the folder of a Debian that is used by no one; build it if it is missing."""
    build = HERE / "debian.sh"
    folder = CACHE / f"debian-{hashlib.sha256(build.read_bytes()).hexdigest()[:12]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "debian.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            for left in CACHE.glob("debian-*.new-*"):
                shutil.rmtree(left)  # by a build that was killed
            sys.stderr.write(f"packages: building {folder}, about a minute\n")
            words = ["bash", str(build), str(folder)]
            built = subprocess.run(words, check=False, capture_output=True, text=True)
            if built.returncode:
                log = (built.stdout + built.stderr)[-6000:]
                raise LabError(f"the Debian to install packages in was not built:\n{log}")
    return folder


class Machine:
    """A machine that has booted."""

    def __init__(self) -> None:
        self._memory = Path(tempfile.mkdtemp(prefix="machine-"))
        self._group = _control_groups() / f"zfs_sync-{self._memory.name}"
        unshare = [tool("unshare"), *(f"--{name}" for name in NAMESPACES if name != "cgroup")]
        words = [debian(), self._memory, self._group]
        self._holder = subprocess.Popen(
            [*unshare, "--fork", "--kill-child", "bash", str(HERE / "boot.sh"), *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            eventually("systemd has booted", self._is_up, 60)
        except LabError as late:
            self._holder.kill()
            said = self._holder.communicate()[0]
            self.close()
            raise LabError(f"{late}; it said:\n{said}") from late

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine and keep its output."""
        result = process.run(self._start(argv), timeout=120)
        if check and result.returncode:
            raise CommandError(argv, result.returncode, result.stdout, result.stderr)
        return result

    def install(self, packages: Iterable[Path]) -> None:
        """Install packages, and what they depend on, as a person would."""
        place = self.path("/packages")
        place.mkdir(exist_ok=True)
        names = []
        for package in packages:
            shutil.copy(package, place)
            names.append(f"/packages/{package.name}")
        options = ("-q", "-y", "--reinstall", "--no-install-recommends")
        self.run("apt-get", *options, "install", *names)

    def path(self, inside: str) -> Path:
        """Return a file of the machine as a path that works outside."""
        return Path(f"/proc/{self._first}/root") / inside.lstrip("/")

    def close(self) -> None:
        """End every process of the machine, and leave nothing."""
        self._holder.kill()
        self._holder.communicate()
        folders = [self._group, *self._group.rglob("*/")]
        eventually("the machine's control groups are empty", lambda: _remove(folders))
        self._memory.rmdir()

    @property
    def _first(self) -> int:
        found = process.child_of(self._holder.pid)
        if not found:
            raise LabError("the machine has ended")
        return found

    def _start(self, argv: Sequence[str]) -> Running:
        return Running(self._first, NAMESPACES, argv, **captured(None, ENVIRONMENT))

    def _is_up(self) -> bool:
        if self._holder.poll() is not None:
            raise LabError("the machine has ended")
        first = process.child_of(self._holder.pid)
        if not first or Path(f"/proc/{first}/comm").read_text() != "systemd\n":
            return False
        said = self.run("systemctl", "is-system-running", check=False).stdout
        return said.strip() in {"running", "degraded"}


def _control_groups() -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(place, os.W_OK):
            return Path(place)
    raise LabError("systemd needs control groups of version 2 that root may write to")


def _remove(folders: Sequence[Path]) -> bool:
    for folder in reversed(folders):
        if folder.exists():
            try:
                folder.rmdir()
            except OSError:
                return False
    return True
