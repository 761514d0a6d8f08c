"""Processes inside namespaces, and waiting for a condition.

Decides how a command gets into a set of namespaces and how a signal reaches the command itself.
Never decides what runs there.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from .errors import LabError

# How many times as long anything may take where an emulated machine has to answer.
PATIENCE = 4 if os.environ.get("ZFS_LAB") == "openzfs" else 1


def eventually(reason: str, condition: Callable[[], object], seconds: float = 10) -> None:
    """Return as soon as the condition holds; raise with the reason when it does not in time."""
    seconds *= PATIENCE
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"after {seconds:g} s still not: {reason}")
        time.sleep(0.01)


def tool(name: str) -> str:
    """Return where a system tool is, also for a caller whose PATH has no sbin."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin")
    if not found:
        raise LabError(f"{name} is not installed on this machine")
    return found


def child_of(pid: int) -> int | None:
    """Return the pid of the only child, as this process sees it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return None
    return int(children[0]) if children else None


class Running(subprocess.Popen[str]):
    """A command in the namespaces of process `host`, in a session of its own.

    A process cannot change its own pid namespace, so nsenter stays outside and waits for the
    command. A signal sent with this object reaches the command; nsenter ends the same way.
    """

    def __init__(
        self, host: int, namespaces: Sequence[str], argv: Sequence[str], **options: Any
    ) -> None:
        enter = [tool("nsenter"), f"--target={host}", *(f"--{kind}" for kind in namespaces), "--"]
        super().__init__(
            [*enter, *argv],
            text=True,
            encoding="utf-8",
            errors="surrogateescape",
            **{"start_new_session": True, **options},
        )
        self.command = list(argv)

    @property
    def outside(self) -> int:
        """The command's pid as this process sees it."""
        eventually("nsenter has started its command", self._settled)
        return child_of(self.pid) or self.pid

    @property
    def inside(self) -> int:
        """The command's pid as all nodes of its lab see it."""
        status = Path(f"/proc/{self.outside}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("NSpid:"))
        return int(line.split()[-1])

    def _settled(self) -> bool:
        return child_of(self.pid) is not None or self.poll() is not None

    def send_signal(self, sig: int) -> None:
        """Signal the command, not the nsenter in front of it."""
        if self.poll() is None:
            os.kill(self.outside, sig)

    def kill_group(self, sig: int = signal.SIGKILL) -> None:
        """Signal the command and everything that stayed in its process group."""
        if self.poll() is None:
            os.killpg(self.pid, sig)


def run(
    running: Running, data: str | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Wait for a command; one that takes too long is killed with its group and is an error."""
    timeout *= PATIENCE
    try:
        stdout, stderr = running.communicate(data, timeout=timeout)
    except subprocess.TimeoutExpired as late:
        running.kill_group()
        stdout, stderr = running.communicate()
        raise LabError(
            f"{running.command} took more than {timeout:g} s\nstdout: {stdout}\nstderr: {stderr}"
        ) from late
    return subprocess.CompletedProcess(running.command, running.returncode, stdout, stderr)


def captured(data: str | None, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the Popen options of a command whose output is kept."""
    stdin: int | IO[str] = subprocess.DEVNULL if data is None else subprocess.PIPE
    pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return {**pipes, "env": env}
