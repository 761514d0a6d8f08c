"""A node whose ZFS is a zfs-fuse daemon of its own: real ZFS of old, without a kernel module.

Decides how the daemon is started and lost, and how files get into its datasets.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import LabError
from .node import IMAGES, Node, pool_of
from .process import eventually, tool


def contents(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file and link target of one file system, by relative path."""
    found = {}
    device = folder.stat().st_dev
    for place, folders, files in os.walk(folder):
        here = Path(place)
        # A dataset below is a file system of its own.
        folders[:] = [name for name in folders if (here / name).lstat().st_dev == device]
        for file in (here / name for name in [*folders, *files]):
            if file.is_symlink():
                data = str(file.readlink()).encode()
            elif file.is_file():
                data = file.read_bytes()
            else:
                continue
            found[str(file.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return dict(sorted(found.items()))


class FuseNode(Node):
    """One test host with zfs-fuse."""

    def start_zfs(self, ahead: int = 0) -> None:
        """Start the ZFS daemon and return when it answers; it imports the pools that it had."""
        log = self.root / "log" / "zfs-fuse"
        command = [tool("zfs-fuse"), "-n", "--no-kstat-mount", "-p", "/run/zfs-fuse.pid"]
        env = _faked_clock(ahead) if ahead else {}
        with log.open("a") as output:
            daemon = self.popen(
                command, env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._zfs = daemon

        def answers() -> bool:
            if daemon.poll() is not None:
                raise LabError(f"zfs-fuse of {self.name} did not start:\n{log.read_text()}")
            return self._bare("zpool", "list").returncode == 0

        eventually(f"zfs-fuse of {self.name} answers", answers, 30)

    def kill_zfs(self) -> None:
        """Lose the ZFS daemon as in a power cut; the pools' images stay."""
        if self._zfs:
            self._zfs.kill()
            self._zfs.wait()
        self.run(["/bin/sh", "-c", "umount --lazy --all --types fuse,fuse.zfs"], check=False)

    @contextmanager
    def silent_zfs(self) -> Iterator[None]:
        """Let the ZFS daemon, and so its file systems, answer nothing for a while."""
        if self._zfs is None:
            raise LabError(f"zfs-fuse of {self.name} does not run")
        self._zfs.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            # nsenter stops with its command, and has to go on as well.
            self._zfs.kill_group(signal.SIGCONT)

    def log(self) -> list[str]:
        """Return what was written to syslog so far, except by the lab's own ZFS daemon."""
        return [message for message in super().log() if " zfs-fuse: " not in message]

    def new_image(self, name: str, size_mib: int) -> str:
        """Make a file for a pool to live on, and return its path for zpool."""
        image = f"{IMAGES}/{name}"
        with self.inside(image).open("wb") as file:
            file.truncate(size_mib << 20)
        return image

    def write(self, dataset: str, filename: str, data: bytes) -> None:
        """Create or overwrite a file in a mounted dataset."""
        file = self.inside(self._mounted(dataset)) / filename
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def remove(self, dataset: str, filename: str) -> None:
        """Remove a file from a mounted dataset."""
        (self.inside(self._mounted(dataset)) / filename).unlink()

    def release_holds(self) -> None:
        """Release what a killed `send -R` holds for ever in zfs-fuse; a kernel does this itself."""
        held = list(self.holds())
        for pool in {pool_of(name) for name in held}:
            # `zfs holds` is broken in Debian's package, and zdb waits a second: only when needed.
            tags = set(re.findall(r"\s(\.send-\d+-\d+) =", self._bare("zdb", "-dddd", pool).stdout))
            names = [name for name in held if re.match(rf"{re.escape(pool)}[/@]", name)]
            for tag in sorted(tags):
                for name in names:
                    self._bare("zfs", "release", tag, name)

    def _drop_images(self) -> None:
        for image in self.inside(IMAGES).iterdir():
            image.unlink()

    def _contents(self, dataset: str) -> dict[str, str]:
        return contents(self.inside(self._mounted(dataset)))


def _faked_clock(ahead: int) -> dict[str, str]:
    """Return the environment in which a program's clock is so many seconds ahead."""
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{ahead:+d}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
