"""ssh between the nodes: keys, known hosts and each node's sshd.

Decides that every node may log in to every other as root, and that host keys are checked as ssh
does by default: nothing here makes a client trust an unknown key.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import LabError
from .host import NODE_PATH, Host
from .process import Running, eventually, tool

# The default key exchange costs a tenth of a second more per connection.
SSHD_CONFIG = f"""\
HostKey /etc/ssh/host_key
PidFile /run/sshd.pid
UsePAM no
UseDNS no
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
MaxStartups 100
KexAlgorithms curve25519-sha256
Subsystem sftp internal-sftp
SetEnv PATH={NODE_PATH}
"""


def make_key(file: Path) -> str:
    """Create a key pair and return the public half."""
    file.unlink(missing_ok=True)
    command = [tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(file)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return Path(f"{file}.pub").read_text().strip()


class SshHost(Host):
    """A host with an sshd; root of every peer may log in."""

    def __init__(self, lab: int, root: Path, name: str, number: int) -> None:
        super().__init__(lab, root, name, number)
        self._sshd: Running | None = None
        self.path("/etc/ssh/sshd_config").write_text(SSHD_CONFIG)
        self.public_key = make_key(self.path("/root/.ssh/id_ed25519"))
        self.host_key = make_key(self.path("/etc/ssh/true_host_key"))
        self.restore_host_key()

    def start_ssh(self) -> None:
        """Start sshd and return when it listens."""
        if self._sshd and self._sshd.poll() is None:
            return
        log = self.root / "log" / "sshd"
        # The pid file is written when the port listens.
        pid_file = self.inside("/run/sshd.pid")
        pid_file.unlink(missing_ok=True)
        command = [tool("sshd"), "-D", "-e", "-f", "/etc/ssh/sshd_config"]
        with log.open("a") as output:
            sshd = self.popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self._sshd = sshd
        eventually(
            f"sshd of {self.name} listens or ends",
            lambda: pid_file.exists() or sshd.poll() is not None,
        )
        if sshd.poll() is not None:
            raise LabError(f"sshd of {self.name} did not start:\n{log.read_text()}")

    def stop_ssh(self) -> None:
        """Stop listening; sessions that are open stay open, as on any host."""
        if self._sshd:
            self._sshd.terminate()
            self._sshd.wait(10)
            self._sshd = None

    def change_host_key(self) -> None:
        """Show a key to clients that none of them knows."""
        self._use_host_key(make_key, running=self._sshd is not None)

    def restore_host_key(self) -> None:
        """Show the key that all nodes know."""

        def use_true_key(file: Path) -> None:
            file.write_bytes(self.path("/etc/ssh/true_host_key").read_bytes())
            file.chmod(0o600)

        self._use_host_key(use_true_key, running=self._sshd is not None)

    def meet(self, peers: Sequence[Host]) -> None:
        """Know the names and keys of all hosts of the lab."""
        super().meet(peers)
        hosts = [peer for peer in peers if isinstance(peer, SshHost)]
        known = "".join(f"{p.name},{p.short_name},{p.address} {p.host_key}\n" for p in hosts)
        self.path("/root/.ssh/known_hosts").write_text(known)
        authorized = "".join(f"{peer.public_key}\n" for peer in hosts)
        self.path("/root/.ssh/authorized_keys").write_text(authorized)

    def reset(self) -> None:
        """Make the host as good as new, with a running sshd and its true key."""
        super().reset()
        keys = (self.path(f"/etc/ssh/{name}") for name in ("host_key", "true_host_key"))
        if len({key.read_bytes() for key in keys}) > 1:
            self.restore_host_key()
        self.start_ssh()

    def close(self) -> None:
        """Let go of what is outside."""
        super().close()
        if self._sshd:
            self._sshd.wait()

    def _use_host_key(self, make: Callable[[Path], object], *, running: bool) -> None:
        self.stop_ssh()
        make(self.path("/etc/ssh/host_key"))
        if running:
            self.start_ssh()

    def _keepers(self) -> list[Running]:
        return [*super()._keepers(), *([self._sshd] if self._sshd else [])]
