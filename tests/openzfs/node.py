"""A node whose ZFS is today's OpenZFS, in the kernel of a virtual machine of its own.

Agent, check, ssh and cron run on the node, as with zfs-fuse; `zfs` and `zpool` there are those of
the machine's guest, by client.py. Decides how the guest is started and lost, and how files get into
its datasets; tests/e2e/test_inside.py runs the programs inside the guest.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.node import CLONE, IMAGES, Node
from tests.lab.process import eventually

from . import client, guest

FEATURES = frozenset(
    {"written", "unmounted", "resume", "raw", "exclude", "volumes", "machine", "slop"}
)  # slop: room that data cannot take
PROGRAMS = ("zfs", "zpool", "guest")
PLACE = "/usr/local/sbin"


# The sums of all files and link targets of one file system, each ended by a zero byte.
SUMS = r"""
find . -xdev -type f -exec sha256sum -z {} + &&
find . -xdev -type l -exec sh -c '
    for link; do
        sum=$(readlink -n "$link" | sha256sum)
        printf "%s  %s\0" "${sum%% *}" "$link"
    done' sh {} +
"""


class OpenZfsNode(Node):
    """One test host with OpenZFS."""

    features = FEATURES

    def start_zfs(self, ahead: int = 0) -> None:
        """Start the guest and return when its ZFS answers; it imports the pools that it had."""
        folder = self.root / "guest"
        fresh = not folder.exists()
        if fresh:
            if not guest.state().exists():
                raise LabError("there is no image with OpenZFS; make it: make openzfs")
            folder.mkdir()
            guest.make_disk(folder / "disk.qcow2", saved=True)
            self._install_programs()
        inside = Path("/run/node/guest")
        words = self.machine(inside, *(guest.restore_options() if fresh else ()))
        log = self.root / "log" / "guest"
        with log.open("a") as output:
            machine = self.popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self._zfs = machine

        def answers() -> bool:
            if machine.poll() is not None:
                raise LabError(f"the guest of {self.name} did not start:\n{log.read_text()}")
            return self._wake(ahead)

        eventually(f"the guest of {self.name} answers", answers, guest.BOOT_SECONDS)
        self.guest("modprobe", "zfs")
        if not fresh:
            self.zpool("import", "-d", IMAGES, "-a", "-f")

    def machine(self, folder: Path, *options: str) -> list[str]:
        """Return qemu's words for this node."""
        return guest.command(folder, client.PORT, *options)

    def kill_zfs(self) -> None:
        """Lose the guest as in a power cut; its disk stays, as far as it was written."""
        if self._zfs:
            self._zfs.kill()
            self._zfs.wait()

    def guest(self, *words: str, data: bytes | None = None) -> str:
        """Run a command in the guest."""
        text = None if data is None else data.decode(errors="surrogateescape")
        return self.run([f"{PLACE}/guest", *words], input=text).stdout

    def program(self, name: str) -> str:
        """Return where a program is that a wrapper can stand in front of."""
        return f"{PLACE}/{name}" if name in PROGRAMS else super().program(name)

    def new_image(self, name: str, size_mib: int) -> str:
        """Make a file for a pool to live on, and return its path for zpool."""
        image = f"{IMAGES}/{name}"
        self.guest("truncate", "-s", f"{size_mib}M", image)
        return image

    def write(self, dataset: str, filename: str, data: bytes) -> None:
        """Create or overwrite a file in a mounted dataset."""
        self._in(dataset, 'case $1 in */*) mkdir -p "${1%/*}" ;; esac; cat >"$1"', filename, data)

    def remove(self, dataset: str, filename: str) -> None:
        """Remove a file from a mounted dataset."""
        self._in(dataset, 'rm "$1"', filename)

    def release_holds(self) -> None:
        """Do nothing: here a hold of a send ends with it."""

    def _drop_images(self) -> None:
        self.guest("/bin/sh", "-c", f"rm -f {IMAGES}/*")

    def _contents(self, dataset: str) -> dict[str, str]:
        return _parse_sums(self._in(dataset, SUMS))

    def _checksums_of_snapshot(self, snapshot: str) -> dict[str, str]:
        script = f"""mkdir -p {CLONE} && mount -t zfs "$0" {CLONE} || exit
            (cd {CLONE} && {SUMS}); s=$?; umount {CLONE} && exit $s"""
        return _parse_sums(self.guest("/bin/sh", "-c", script, snapshot))

    def _in(self, dataset: str, script: str, *words: str | bytes) -> str:
        """Run a script in the folder where a dataset is mounted; bytes are its input."""
        enter = """set -e
            where=$(zfs get -H -o value mounted,mountpoint "$0")
            case $where in
            yes*) cd "${where#yes?}" ;;
            *) echo "$0 is not mounted" >&2; exit 1 ;;
            esac
            """
        args = [word for word in words if isinstance(word, str)]
        data = next((word for word in words if isinstance(word, bytes)), None)
        return self.guest("/bin/sh", "-c", enter + script, dataset, *args, data=data)

    def _wake(self, ahead: int) -> bool:
        """Give the guest the time and some randomness; False while it does not answer."""
        code = (
            "import socket, sys\n"
            "link = socket.create_connection(('127.0.0.1', int(sys.argv[1])), timeout=5)\n"
            "link.sendall(sys.stdin.buffer.read())\n"
            "sys.exit(link.recv(1) != b'X')\n"
        )
        words: Sequence[str] = [sys.executable, "-IS", "-c", code, str(client.PORT)]
        line = guest.wake_line(ahead).decode(errors="surrogateescape")
        return self.run(words, check=False, input=line).returncode == 0

    def _install_programs(self) -> None:
        folder = self.root / "sbin"
        folder.mkdir()
        source = Path(client.__file__).read_text()
        for name in PROGRAMS:
            file = folder / name
            file.write_text(f"#!{Path(sys.executable).resolve()} -IS\n{source}")
            file.chmod(0o755)
        self.run(["mount", "--bind", "/run/node/sbin", PLACE])


def _parse_sums(said: str) -> dict[str, str]:
    """Return what SUMS told: {relative path: sha256}, sorted."""
    lines = [line for line in said.split("\0") if line]
    return dict(sorted((line[66:].removeprefix("./"), line[:64]) for line in lines))
