"""A node: a host with ssh and a real ZFS of its own.

Decides where pools live and how a test looks into datasets. Never repairs what the code under test
has left behind, except where a method says so.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import CommandError, LabError
from .host import SYSTEM_PATH
from .process import Running, eventually, tool
from .ssh import SshHost

IMAGES = "/run/images"
CLONE = "/run/clones/lab"


@dataclass(frozen=True)
class Pool:
    """How a pool is made.

    A mounted pool has its mountpoint on the pool's root only, so a `send -R` of a dataset carries
    none to the target. A target's pool is not mounted: zfs-fuse calls a mounted copy busy while
    it receives.
    """

    mount: bool = True
    size_mib: int = 256


KINDS = {"source": Pool(), "target": Pool(mount=False)}


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


class Node(SshHost):
    """One test host; made by `Lab.node`."""

    def __init__(
        self, lab: int, root: Path, name: str, number: int, pools: Mapping[str, Pool | str]
    ) -> None:
        super().__init__(lab, root, name, number)
        self.pools = {
            p: KINDS[kind] if isinstance(kind, str) else kind for p, kind in pools.items()
        }
        self._daemon: Running | None = None
        self.start_ssh()
        self.start_zfs()
        self._create_pools()

    def start_zfs(self, env: Mapping[str, str] | None = None) -> None:
        """Start the ZFS daemon and return when it answers; it imports the pools that it had."""
        log = self.root / "log" / "zfs-fuse"
        command = [tool("zfs-fuse"), "-n", "--no-kstat-mount", "-p", "/run/zfs-fuse.pid"]
        with log.open("a") as output:
            daemon = self.popen(
                command, env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._daemon = daemon

        def answers() -> bool:
            if daemon.poll() is not None:
                raise LabError(f"zfs-fuse of {self.name} did not start:\n{log.read_text()}")
            return self._bare("zpool", "list").returncode == 0

        eventually(f"zfs-fuse of {self.name} answers", answers, 30)

    def kill_zfs(self) -> None:
        """Lose the ZFS daemon as in a power cut; the pools' images stay."""
        if self._daemon:
            self._daemon.kill()
            self._daemon.wait()
        self.run(["/bin/sh", "-c", "umount --lazy --all --types fuse,fuse.zfs"], check=False)

    def zfs(self, *words: str) -> str:
        """Run the bare zfs, not its wrapper, and return its output.

        zfs-fuse lets go of a mount a moment after it is gone: "busy" is tried again.
        """
        return self._patient("zfs", *words)

    def zpool(self, *words: str) -> str:
        """Run zpool as `zfs` does zfs."""
        return self._patient("zpool", *words)

    def log(self) -> list[str]:
        """Return what was written to syslog so far, except by the lab's own ZFS daemon."""
        return [message for message in super().log() if " zfs-fuse: " not in message]

    def export_pool(self, pool: str) -> None:
        """Take a pool away."""
        self.zpool("export", pool)

    def import_pool(self, pool: str) -> None:
        """Bring an exported pool back."""
        self.zpool("import", "-d", IMAGES, pool)

    def write(self, dataset: str, filename: str, data: bytes) -> None:
        """Create or overwrite a file in a mounted dataset."""
        file = self._mounted(dataset) / filename
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def remove(self, dataset: str, filename: str) -> None:
        """Remove a file from a mounted dataset."""
        (self._mounted(dataset) / filename).unlink()

    def checksums(self, target: str) -> dict[str, str]:
        """Return {relative path: sha256} of a snapshot, or of a dataset, mounted or not."""
        if "@" in target:
            return self._checksums_of_snapshot(target)
        if self.zfs("get", "-H", "-o", "value", "mounted", target).strip() == "yes":
            return contents(self._mounted(target))
        snapshot = f"{target}@lab-checksums"
        self.zfs("snapshot", snapshot)
        try:
            return self._checksums_of_snapshot(snapshot)
        finally:
            self.zfs("destroy", snapshot)

    def guids(self, dataset: str, *, recursive: bool = True) -> dict[str, str]:
        """Return {snapshot: guid} of a dataset and of those below; nothing when it is missing."""
        depth = ["-r"] if recursive else ["-d", "1"]
        listing = self._bare("zfs", "get", *depth, "-Hp", "-o", "name,value", "guid", dataset)
        if "does not exist" in listing.stderr:
            return {}
        if listing.returncode:
            raise LabError(listing.stderr)
        pairs = (line.split("\t") for line in listing.stdout.splitlines())
        return {
            name: guid
            for name, guid in pairs
            if "@" in name and (recursive or name.startswith(f"{dataset}@"))
        }

    def holds(self) -> dict[str, int]:
        """Return {snapshot: number of holds} of all snapshots that have any."""
        listing = self.zfs("list", "-H", "-t", "snapshot", "-o", "name,userrefs")
        pairs = (line.split("\t") for line in listing.splitlines() if line)
        return {name: int(count) for name, count in pairs if count not in {"0", "-"}}

    def release_holds(self) -> None:
        """Release what a killed `send -R` holds for ever in zfs-fuse; a kernel does this itself."""
        held = list(self.holds())
        for pool in {name.split("/")[0].split("@")[0] for name in held}:
            # `zfs holds` is broken in Debian's package, and zdb waits a second: only when needed.
            tags = set(re.findall(r"\s(\.send-\d+-\d+) =", self._bare("zdb", "-dddd", pool).stdout))
            names = [name for name in held if re.match(rf"{re.escape(pool)}[/@]", name)]
            for tag in sorted(tags):
                for name in names:
                    self._bare("zfs", "release", tag, name)

    def reset(self) -> None:
        """Make the node as good as new: empty pools, no state, log, wrappers, faults or strays."""
        super().reset()
        if self._daemon is None or self._daemon.poll() is not None:
            self.kill_zfs()
            self.start_zfs()
        for pool in self.zpool("list", "-H", "-o", "name").split():
            self.zpool("destroy", "-f", pool)
        for image in self.inside(IMAGES).iterdir():
            image.unlink()
        self._create_pools()

    def close(self) -> None:
        """Let go of what is outside."""
        super().close()
        if self._daemon:
            self._daemon.wait()

    def _create_pools(self) -> None:
        for name, pool in self.pools.items():
            image = f"{IMAGES}/{name}"
            with self.inside(image).open("wb") as file:
                file.truncate(pool.size_mib << 20)
            mountpoint = f"/run/pools/{name}" if pool.mount else "none"
            self.zpool("create", "-m", mountpoint, name, image)

    def _bare(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run([program, *words], check=False, env={"PATH": SYSTEM_PATH})

    def _patient(self, *argv: str) -> str:
        result = self._bare(*argv)

        def done() -> bool:
            nonlocal result
            if result.returncode and "busy" in result.stderr:
                result = self._bare(*argv)
            return not (result.returncode and "busy" in result.stderr)

        try:
            eventually(f"{argv} is not busy", done, 60)
        except LabError as busy:
            raise CommandError(argv, result.returncode, result.stdout, result.stderr) from busy
        if result.returncode:
            raise CommandError(argv, result.returncode, result.stdout, result.stderr)
        return result.stdout

    def _mounted(self, dataset: str) -> Path:
        words = self.zfs("get", "-H", "-o", "value", "mounted,mountpoint", dataset).splitlines()
        if words[0] != "yes":
            raise LabError(f"{dataset} is not mounted on {self.name}")
        return self.inside(words[1])

    def _checksums_of_snapshot(self, snapshot: str) -> dict[str, str]:
        clone = f"{re.split('[/@]', snapshot)[0]}/lab-clone"
        self.zfs("clone", "-o", f"mountpoint={CLONE}", snapshot, clone)
        try:
            return contents(self._mounted(clone))
        finally:
            self.zfs("destroy", clone)

    def _keepers(self) -> list[Running]:
        return [*super()._keepers(), *([self._daemon] if self._daemon else [])]
