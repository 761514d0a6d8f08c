"""A node: a host with ssh and a real ZFS, whichever that is.

Decides where pools live and how a test looks into datasets; which ZFS answers is decided by the
kinds of nodes, zfs-fuse's in fuse.py and OpenZFS's in tests/openzfs. Never repairs what the code
under test has left behind, except where a method says so.
"""

from __future__ import annotations

import subprocess
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import CommandError, LabError
from .host import SYSTEM_PATH
from .process import Running, eventually
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


class Node(SshHost):
    """One test host; made by `Lab.node`."""

    # What this ZFS has beyond the smallest that the agent runs on; a test states what it needs.
    features: frozenset[str] = frozenset()

    def __init__(
        self, lab: int, root: Path, name: str, number: int, pools: Mapping[str, Pool | str]
    ) -> None:
        super().__init__(lab, root, name, number)
        self.pools = {
            p: KINDS[kind] if isinstance(kind, str) else kind for p, kind in pools.items()
        }
        self._zfs: Running | None = None  # the daemon, or the guest, that ZFS runs in
        self.start_ssh()
        self.start_zfs()
        self._create_pools()

    @abstractmethod
    def start_zfs(self, ahead: int = 0) -> None:
        """Start ZFS, return when it answers; its pools are there, its clock is `ahead` seconds."""

    @abstractmethod
    def kill_zfs(self) -> None:
        """Lose ZFS as in a power cut; the pools' images stay."""

    @abstractmethod
    def new_image(self, name: str, size_mib: int) -> str:
        """Make a file for a pool to live on, and return its path for zpool."""

    @abstractmethod
    def write(self, dataset: str, filename: str, data: bytes) -> None:
        """Create or overwrite a file in a mounted dataset."""

    @abstractmethod
    def remove(self, dataset: str, filename: str) -> None:
        """Remove a file from a mounted dataset."""

    @abstractmethod
    def release_holds(self) -> None:
        """Release what a killed `send -R` holds, where that outlives the process."""

    @abstractmethod
    def _drop_images(self) -> None:
        """Remove the files of pools that are destroyed."""

    @abstractmethod
    def _contents(self, dataset: str) -> dict[str, str]:
        """Return {relative path: sha256} of a mounted dataset."""

    def zfs(self, *words: str) -> str:
        """Run the bare zfs, not its wrapper, and return its output.

        zfs-fuse lets go of a mount a moment after it is gone: "busy" is tried again.
        """
        return self._patient("zfs", *words)

    def zpool(self, *words: str) -> str:
        """Run zpool as `zfs` does zfs."""
        return self._patient("zpool", *words)

    def export_pool(self, pool: str) -> None:
        """Take a pool away."""
        self.zpool("export", pool)

    def import_pool(self, pool: str) -> None:
        """Bring an exported pool back."""
        self.zpool("import", "-d", IMAGES, pool)

    def checksums(self, target: str) -> dict[str, str]:
        """Return {relative path: sha256} of a snapshot, or of a dataset, mounted or not."""
        if "@" in target:
            return self._checksums_of_snapshot(target)
        if self.zfs("get", "-H", "-o", "value", "mounted", target).strip() == "yes":
            return self._contents(target)
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

    def reset(self) -> None:
        """Make the node as good as new: empty pools, no state, log, wrappers, faults or strays."""
        super().reset()
        if self._zfs is None or self._zfs.poll() is not None:
            self.kill_zfs()
            self.start_zfs()
        for pool in self.zpool("list", "-H", "-o", "name").split():
            self.zpool("destroy", "-f", pool)
        self._drop_images()
        self._create_pools()

    def close(self) -> None:
        """Let go of what is outside."""
        super().close()
        if self._zfs:
            self._zfs.wait()

    def _create_pools(self) -> None:
        for name, pool in self.pools.items():
            image = self.new_image(name, pool.size_mib)
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

    def _mounted(self, dataset: str) -> str:
        words = self.zfs("get", "-H", "-o", "value", "mounted,mountpoint", dataset).splitlines()
        if words[0] != "yes":
            raise LabError(f"{dataset} is not mounted on {self.name}")
        return words[1]

    def _checksums_of_snapshot(self, snapshot: str) -> dict[str, str]:
        clone = f"{pool_of(snapshot)}/lab-clone"
        self.zfs("clone", "-o", f"mountpoint={CLONE}", snapshot, clone)
        try:
            return self._contents(clone)
        finally:
            self.zfs("destroy", clone)

    def _keepers(self) -> list[Running]:
        return [*super()._keepers(), *([self._zfs] if self._zfs else [])]


def pool_of(name: str) -> str:
    """Return the pool of a dataset or snapshot."""
    return name.partition("/")[0].partition("@")[0]
