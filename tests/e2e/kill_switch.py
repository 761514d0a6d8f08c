"""Kills, by SIGKILL and at a given moment, a part of a run; a script that the lab's faults call.

Runs inside a node, by itself: it imports nothing of the tests. All nodes of a lab share their
process ids, so it reaches every node from any. It decides who is killed, never when, except that
with --bytes it stands between a send and its reader and strikes after that many bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

# In the environment of the agent that is to be killed, and so of all that it starts.
MARKER = "KILL_SWITCH_VICTIM"

CHUNK = 1 << 16

AGENT, FAMILY, RECEIVER, RECEIVE = "agent", "family", "receiver", "receive"


def read(file: Path) -> list[str]:
    """Return the NUL-separated words of a file in /proc; none when the process is gone."""
    try:
        return file.read_text(errors="surrogateescape").split("\0")
    except OSError:
        return []


def processes() -> list[Path]:
    """Return the folders of all processes but this one, oldest first."""
    folders = [folder for folder in Path("/proc").glob("[0-9]*") if folder.name != str(os.getpid())]
    return sorted(folders, key=lambda folder: int(folder.name))


def family() -> list[Path]:
    """Return the agent and all its children: they lead sessions of their own, so by environment."""
    return [one for one in processes() if f"{MARKER}=1" in read(one / "environ")]


def agent() -> list[Path]:
    """Return the agent alone."""
    return [one for one in family() if "zfs_sync_agent" in read(one / "cmdline")]


def below(ancestor: int) -> list[Path]:
    """Return the descendants of a process."""
    found: list[Path] = []
    known = {ancestor}
    # A child may have the smaller number: look again until there is nothing new.
    while True:
        new = []
        for one in processes():
            lines = read(one / "status")
            parent = next(
                (li for text in lines for li in text.splitlines() if li.startswith("PPid:")), ""
            )
            if int(one.name) not in known and parent and int(parent.split()[1]) in known:
                new.append(one)
                known.add(int(one.name))
        if not new:
            return found
        found += new


def victims(way: str, sshd: int) -> list[Path]:
    """Return who is to be killed; `sshd` is the listener of the receiving node."""
    if way == AGENT:
        return agent()
    if way == FAMILY:
        return family()
    sessions = below(sshd)
    if way == RECEIVER:
        return sessions
    return [one for one in sessions if "receive" in read(one / "cmdline")[:2]]


def strike(way: str, sshd: int) -> None:
    """Kill them, and what they started meanwhile."""
    while found := victims(way, sshd):
        for one in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(one.name), signal.SIGKILL)
        if way == RECEIVE or not any(is_alive(one) for one in victims(way, sshd)):
            return


def is_alive(process: Path) -> bool:
    """Whether a process still runs; a zombie does not."""
    lines = [line for text in read(process / "status") for line in text.splitlines()]
    state = next((line.split()[1] for line in lines if line.startswith("State:")), "Z")
    return state not in {"Z", "X"}


def between(command: list[str], size: int, strike_now: Callable[[], None], half_way: str) -> int:
    """Pass on a command's output; do something else half-way and strike after `size` bytes."""
    left = size
    with subprocess.Popen(command, stdout=subprocess.PIPE) as program:
        assert program.stdout
        out = sys.stdout.buffer
        while data := program.stdout.read(min(left, CHUNK) or CHUNK):
            with contextlib.suppress(BrokenPipeError):
                out.write(data)
                out.flush()
            before, left = left, max(0, left - len(data))
            if left <= size // 2 < before:
                shell(half_way)
            if before and not left:
                strike_now()
    return program.returncode


def shell(command: str) -> None:
    """Run a shell command; what becomes of it is its own matter."""
    subprocess.call(["/bin/sh", "-c", command], stdout=subprocess.DEVNULL)


def main() -> int:
    """Strike now, or at a byte of a command's output."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=int)
    parser.add_argument("--first", default="", help="what to do before the command begins")
    parser.add_argument("--half-way", default="", help="what to do after half of the bytes")
    parser.add_argument("way", choices=[AGENT, FAMILY, RECEIVER, RECEIVE])
    parser.add_argument("sshd", type=int)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    strike_now = partial(strike, args.way, args.sshd)
    if args.bytes is None:
        strike_now()
        return 0
    shell(args.first)
    return between(args.command, args.bytes, strike_now, args.half_way)


if __name__ == "__main__":
    sys.exit(main())
