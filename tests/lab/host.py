"""A host made of namespaces: commands, files, network, syslog, exec wrappers.

Decides what is private to a host and how the test reaches it. Knows nothing of ssh and ZFS.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from . import process, wrapper
from .errors import CommandError, LabError
from .process import Running, captured, eventually
from .syslog import Syslog

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NODE_PATH = f"/run/node/bin:{SYSTEM_PATH}"
ENVIRONMENT = {
    "PATH": NODE_PATH,
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "LANG": "C.UTF-8",
}
NODE_NAMESPACES = ("mount", "net", "uts", "pid")

STATE_FOLDERS = ("/etc/zfs_sync", "/var/lib/zfs_sync", "/run/zfs_sync")
SSH_FOLDERS = ("/root/.ssh", "/etc/ssh")
OWN_FOLDERS = ("bin", "calls", "faults", "log")

When = Literal["before", "during", "after", "instead"]


def folder_name(inside: str) -> str:
    """Return the name that an inside folder has in the node's folder outside."""
    return inside.strip("/").replace("/.", "_").replace("/", "_")


def clear(folder: Path) -> None:
    """Empty a folder; the folder itself is bind-mounted and must stay."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


class Exec(NamedTuple):
    """One exec of a wrapped program."""

    time: float
    pid: int
    ppid: int
    argv: list[str]


@dataclass(frozen=True)
class Fault:
    """A fault that was armed; `fired` is there the moment before its shell command runs."""

    file: Path

    @property
    def fired(self) -> bool:
        """Whether it has struck."""
        return Path(f"{self.file}.fired").exists()

    def wait(self, seconds: float = 30) -> None:
        """Wait until it has struck."""
        eventually(f"fault fired: {self.file.read_text()}", lambda: self.fired, seconds)


class Host:
    """One host; `pid` is the process that holds its namespaces, `lab` the one of the lab's."""

    def __init__(self, lab: int, root: Path, name: str, number: int) -> None:
        self.name, self.root, self.number = name, root, number
        self.short_name = name.split(".", maxsplit=1)[0]
        self.address = f"10.0.0.{number}"
        self.mac = f"02:00:00:00:00:{number:02x}"
        self._lab = lab
        self._peers: list[Host] = []
        self._prepare_folders()
        self.syslog = Syslog(root / "log.socket")
        self._holder = self._start_holder()
        self.pid = self._holder.outside
        self._connect()

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,  # noqa: A002
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the node and keep its output; `env` is added to a clean environment."""
        result = process.run(self.popen(argv, **captured(input, env)), input, timeout)
        if check and result.returncode:
            raise CommandError(argv, result.returncode, result.stdout, result.stderr)
        return result

    def popen(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
    ) -> Running:
        """Start a command in the node, in a session of its own."""
        environment = {**ENVIRONMENT, **(env or {})}
        return Running(self.pid, NODE_NAMESPACES, argv, env=environment, **options)

    def agent(
        self, *args: str, env: Mapping[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run the project's agent; any exit status is a result."""
        return self.run(self.python("zfs_sync_agent", *args), check=False, env=env, timeout=timeout)

    def check(
        self, *args: str, env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run the project's check; any exit status is a result."""
        return self.run(self.python("check_zfs_sync", *args), check=False, env=env, timeout=timeout)

    @staticmethod
    def python(module: str, *args: str) -> list[str]:
        """Return the command that runs a module of this repository."""
        place = f"PYTHONPATH={REPOSITORY}"
        return ["/usr/bin/env", place, sys.executable, "-m", module, *args]

    def path(self, inside: str) -> Path:
        """Return where a file of the node's shared folders is outside."""
        for folder in (*STATE_FOLDERS, *SSH_FOLDERS):
            if inside == folder or inside.startswith(f"{folder}/"):
                return self.root / folder_name(folder) / inside[len(folder) :].lstrip("/")
        return self.inside(inside)

    def inside(self, path: str) -> Path:
        """Return any file of the node as a path that works outside while the node runs."""
        return Path(f"/proc/{self.pid}/root") / path.lstrip("/")

    def log(self) -> list[str]:
        """Return what was written to syslog in this node so far."""
        return self.syslog.messages()

    def cut(self) -> None:
        """Take the node's network link down."""
        self._ip(self.pid, "link set eth0 down")

    def mend(self) -> None:
        """Bring the link up again, and end a drop."""
        self._ip(self._lab, f"link set port{self.number} master br0")
        self._ip(self.pid, "link set eth0 up", *self._neighbours())

    def drop(self) -> None:
        """Lose every packet from and to the node without a word to anyone."""
        self._ip(self._lab, f"link set port{self.number} nomaster")

    def undrop(self) -> None:
        """End a drop."""
        self.mend()

    def meet(self, peers: Sequence[Host]) -> None:
        """Learn names and addresses of all hosts of the lab."""
        self._peers = list(peers)
        lines = ["127.0.0.1 localhost", *(f"{p.address} {p.name} {p.short_name}" for p in peers)]
        (self.root / "hosts").write_text("\n".join(lines) + "\n")
        self._ip(self.pid, *self._neighbours())

    def wrap(self, *programs: str) -> None:
        """Put a wrapper that logs every exec in front of each program, first in the PATH."""
        for program in programs:
            real = self.program(program)
            call = f"main({real!r}, '/run/node/calls/{program}', '/run/node/faults/{program}')"
            source = Path(wrapper.__file__).read_text()
            file = self.root / "bin" / program
            file.write_text(f"#!{Path(sys.executable).resolve()} -IS\n{source}\n\n{call}\n")
            file.chmod(0o755)

    def program(self, name: str) -> str:
        """Return where a program is that a wrapper can stand in front of."""
        real = shutil.which(name, path=SYSTEM_PATH)
        if not real:
            raise LabError(f"{name} is not installed on this machine")
        return real

    def execs(self, program: str) -> list[Exec]:
        """Return every exec of a wrapped program, oldest first."""
        log = self.root / "calls" / program
        lines = log.read_text(errors="surrogateescape").splitlines() if log.exists() else []
        return [Exec(*ast.literal_eval(line)) for line in lines]

    def calls(self, program: str) -> list[list[str]]:
        """Return the arguments of every exec of a wrapped program, oldest first."""
        return [entry.argv for entry in self.execs(program)]

    def clear_calls(self) -> None:
        """Forget all execs."""
        clear(self.root / "calls")

    def fault(
        self, program: str, match: Sequence[str], do: str, nth: int = 1, when: When = "after"
    ) -> Fault:
        """Run the shell command `do` at the n-th exec whose arguments contain all of `match`.

        `do` sees FAULT_PARENT (the pid of the program's parent) and, with "during" and "after",
        FAULT_CHILD (the program's own). "instead" gives the command's exit status to the caller.
        One fault per program: a new one takes the old one's place.
        """
        if not (self.root / "bin" / program).exists():
            self.wrap(program)
        file = self.root / "faults" / program
        self.clear_faults(program)
        armed = {"match": list(match), "nth": nth, "when": when, "do": do}
        temporary = file.with_suffix(".new")
        temporary.write_text(json.dumps(armed))
        temporary.rename(file)
        return Fault(file)

    def clear_faults(self, program: str = "*") -> None:
        """Disarm the program's fault, or all."""
        faults = self.root / "faults"
        for file in (*faults.glob(program), *faults.glob(f"{program}.*")):
            file.unlink(missing_ok=True)

    def reset(self) -> None:
        """Make the host as good as new: no strays, no state, no log, no wrappers, link up."""
        self._kill_strays()
        self.mend()
        folders = [folder_name(folder) for folder in STATE_FOLDERS]
        for folder in (*folders, "bin", "calls", "faults"):
            clear(self.root / folder)
        self.syslog.clear()

    def close(self) -> None:
        """Let go of what is outside; the processes end with the lab's namespaces."""
        self._holder.wait()
        self.syslog.close()

    def _prepare_folders(self) -> None:
        for folder in (*OWN_FOLDERS, *map(folder_name, STATE_FOLDERS + SSH_FOLDERS)):
            (self.root / folder).mkdir(parents=True)
            (self.root / folder).chmod(0o755)
        self.path("/root/.ssh").chmod(0o700)
        (self.root / "hosts").touch()

    def _start_holder(self) -> Running:
        binds = itertools.chain.from_iterable(
            (folder, folder_name(folder)) for folder in STATE_FOLDERS + SSH_FOLDERS
        )
        unshare = [process.tool("unshare"), "--mount", "--net", "--uts"]
        setup = ["/bin/sh", str(HERE / "setup_node.sh"), str(self.root), self.name, *binds]
        with (self.root / "log" / "setup").open("w") as log:
            holder = Running(
                self._lab,
                ("mount", "pid"),
                [*unshare, *setup],
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert holder.stdout
        with holder.stdout:
            if holder.stdout.readline() != "ready\n":
                reason = (self.root / "log" / "setup").read_text()
                raise LabError(f"{self.name} could not be set up: {reason}")
        return holder

    def _connect(self) -> None:
        port = f"port{self.number}"
        peer = f"type veth peer name eth0 address {self.mac} netns {self.pid}"
        self._ip(self._lab, f"link add {port} {peer}", f"link set {port} master br0 up")
        address = f"address add {self.address}/24 dev eth0"
        self._ip(self.pid, "link set lo up", "link set eth0 up", address)

    def _neighbours(self) -> list[str]:
        """Known for good, or a dropped packet would be told as "no route" after a few seconds."""
        peers = (peer for peer in self._peers if peer is not self)
        return [
            f"neighbour replace {p.address} lladdr {p.mac} dev eth0 nud permanent" for p in peers
        ]

    def _ip(self, host: int, *commands: str) -> None:
        # Enters the network only: `netns PID` is looked up in this machine's /proc.
        batch = [process.tool("ip"), "-batch", "-"]
        lines = "\n".join(commands) + "\n"
        result = process.run(Running(host, ("net",), batch, **captured(lines)), lines)
        if result.returncode:
            raise CommandError(commands, result.returncode, result.stdout, result.stderr)

    def _keepers(self) -> list[Running]:
        return [self._holder]

    def strays(self) -> set[int]:
        """Return the pids outside of all that the test left running here, nsenters included."""
        own = os.stat(f"/proc/{self.pid}/ns/mnt").st_ino  # noqa: PTH116
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (folder / "ns/mnt").stat().st_ino == own:
                    found.add(int(folder.name))
        keepers = self._keepers()
        return found - {keeper.pid for keeper in keepers} - {k.outside for k in keepers}

    def _kill_strays(self) -> None:
        def none_left() -> bool:
            strays = self.strays()
            for stray in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(stray, signal.SIGKILL)
            return not strays

        eventually(f"no stray process in {self.name}", none_left)
