"""A machine that is measured: a lab node with zfs-fuse, or the guest that a lab node holds.

Decides how files and commands get there and how the machines reach each other. With OpenZFS all
programs run inside the guests, so nothing of the lab stands between them and zfs; a guest's sshd
answers at port 22 of its node.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lab import Lab, Node, Pool
from tests.lab.errors import LabError
from tests.lab.fuse import FuseNode
from tests.lab.host import NODE_PATH
from tests.lab.process import Running
from tests.openzfs import guest
from tests.openzfs.node import PLACE, OpenZfsNode

from .peers import TOOLS

LABS = ("openzfs", "fuse")
ENVIRONMENT = {
    "PATH": f"{TOOLS}/usr/sbin:{TOOLS}/usr/bin:{NODE_PATH}",
    "PERL5LIB": f"{TOOLS}/usr/share/perl5",
    "LD_LIBRARY_PATH": f"{TOOLS}/usr/lib/x86_64-linux-gnu",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
}
# slirp, which carries a guest's network, opens and answers each of its TCP connections itself.
# zfs-replicate runs `env - zfs`, which looks in /bin and /usr/bin only.
GUEST = """
hostname "$0"
sed -i 's/^root:[^:]*:/root:*:/' /etc/shadow
chown -R root:root /root/.ssh /etc/ssh && ip route replace default via 10.0.2.2
ln -s /usr/sbin/zfs /usr/bin/zfs
/usr/sbin/sshd -E /run/sshd.log
"""


class GuestNode(OpenZfsNode):
    """A node whose port 22 is its guest's."""

    def start_ssh(self) -> None:
        """Leave port 22 to the guest."""

    def machine(self, folder: Path, *options: str) -> list[str]:
        """Return qemu's words; the guest may reach the other nodes."""
        words = super().machine(folder, *options)
        network = f"restrict=off,hostfwd=tcp:{self.address}:22-:22"
        return [word.replace("restrict=on", network) for word in words]


class Place:
    """One machine; `node` is the lab node that it is, or that holds it."""

    def __init__(self, node: Node) -> None:
        self.node, self.name = node, node.name
        is_guest = isinstance(node, GuestNode)
        self._enter = [f"{PLACE}/guest"] if is_guest else []
        self.sshd_log = "/run/sshd.log" if is_guest else "/run/node/log/sshd"

    def popen(self, script: str, *words: str, env: Mapping[str, str] | None = None) -> Running:
        """Start a shell script there."""
        setting = [f"{key}={value}" for key, value in {**ENVIRONMENT, **(env or {})}.items()]
        argv = [*self._enter, "/usr/bin/env", *setting, "/bin/sh", "-c", script, *words]
        pipe = subprocess.PIPE
        return self.node.popen(argv, stdin=pipe, stdout=pipe, stderr=pipe)

    def sh(
        self,
        script: str,
        *words: str,
        env: Mapping[str, str] | None = None,
        data: bytes = b"",
        seconds: float = 900,
    ) -> str:
        """Run a shell script there and return what it said; a failure is an error."""
        running = self.popen(script, *words, env=env)
        try:
            said, wrong = running.communicate(data.decode(errors="surrogateescape"), seconds)
        except subprocess.TimeoutExpired:
            running.kill_group()
            running.communicate()
            raise LabError(f"{self.name}: after {seconds:g} s still not done: {script}") from None
        if running.returncode:
            raise LabError(f"{self.name}: {script}: exit {running.returncode}: {wrong or said}")
        return said

    def put(self, files: Mapping[str, Path | bytes]) -> None:
        """Copy files and folders: {path there: path here, or the bytes of a file}."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for path, content in files.items():
                if isinstance(content, Path):
                    archive.add(content, path.lstrip("/"))
                else:
                    info = tarfile.TarInfo(path.lstrip("/"))
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        self.sh("tar -x -C / --no-same-owner --no-overwrite-dir", data=packed.getvalue())

    def settle(self) -> None:
        """Make a guest reachable as its node would be: same keys, same names."""
        if self._enter:
            keys = {folder: self.node.path(folder) for folder in ("/root/.ssh", "/etc/ssh")}
            self.put({**keys, "/etc/hosts": (self.node.root / "hosts").read_bytes()})
            self.sh(GUEST, self.name)

    def connections(self) -> int:
        """Return how many ssh connections were accepted so far."""
        return int(self.sh(f"grep -c '^Accepted publickey' {self.sshd_log} || :"))

    def forget_connections(self) -> None:
        """End what ssh keeps for a next run: cron's next run would find it gone."""
        self.sh(r"pkill -f '^ssh: .*\[mux\]' || :")


def version(lab: str) -> str:
    """Return which ZFS a lab has."""
    if lab == "openzfs":
        return f"OpenZFS {(guest.image() / 'version').read_text().strip()}, in emulated machines"
    query = ["dpkg-query", "-W", "-f", "${Version}", "zfs-fuse"]
    shown = subprocess.run(query, check=True, capture_output=True, text=True)
    return f"zfs-fuse {shown.stdout}"


@contextmanager
def places(lab: str, targets: int, size_mib: int) -> Iterator[tuple[Place, Sequence[Place]]]:
    """Start a source with the pool tank and targets with the pool backup; end them afterwards."""
    if lab == "openzfs":
        guest.prepare()
    names = ["source.example.com", *(f"t{n}.example.com" for n in range(1, targets + 1))]
    pools = {name: {"backup": Pool(mount=False, size_mib=size_mib)} for name in names[1:]}
    pools[names[0]] = {"tank": Pool(size_mib=size_mib)}
    with Lab(GuestNode if lab == "openzfs" else FuseNode) as started:
        nodes = {node.name: node for node in started.nodes(pools)}
        found = [Place(nodes[name]) for name in names]
        for one in found:
            one.settle()
        yield found[0], found[1:]
