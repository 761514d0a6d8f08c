"""A writer of the state file that is killed at any of its system calls leaves a whole file.

strace kills: the local writer, then the shell on the target and each program that it runs.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from check_zfs_sync.statefile import State, TargetState, format_state, read_state
from zfs_sync_agent import record
from zfs_sync_agent.record import Record

from .notation import DST, SRC
from .processes import wait_until

OLD = State("z3", "sync#1", "osol1", "osol1", SRC, 90000, "0.1.0", {"osol2": record.never(DST)})
# More than one write of Python's, and of cat's.
LARGE = "x" * 300_000

# These touch no file: a kill there is a kill at the next call that does.
MEMORY = {"mmap", "munmap", "mremap", "mprotect", "brk", "madvise", "pread64", "fadvise64"}
OWN = {
    *(
        "execve",
        "arch_prctl",
        "set_tid_address",
        "set_robust_list",
        "rseq",
        "prlimit64",
        "getrandom",
    ),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "getpid", "getppid", "getuid", "geteuid"),
    *("getgid", "getegid", "futex", "statfs"),
}


def strace(log: Path, point: tuple[str, int] | None) -> list[str]:
    """Return strace's words; at the n-th such call it kills the caller before the call is made."""
    kill = [f"--inject={point[0]}:signal=KILL:when={point[1]}"] if point else []
    return ["strace", "-o", str(log), *kill]


def points(log: Path) -> list[tuple[str, int]]:
    """Return every system call of a run that was not killed: its name, its number of that name."""
    seen = Counter[str]()
    found = []
    for name in re.findall(r"^(\w+)\(", log.read_text(), re.MULTILINE):
        seen[name] += 1
        if name not in MEMORY | OWN:
            found.append((name, seen[name]))
    return found


@pytest.fixture
def rec(tmp_path: Path) -> Record:
    made = Record(str(tmp_path / "state"), OLD._replace(targets={}))
    made.update("osol2", DST, lambda _: OLD.targets["osol2"])
    return made


def large(entry: TargetState) -> TargetState:
    return entry._replace(alert_reason=LARGE)


def litter(path: Path) -> Path:
    """Leave what a kill before this one may have left."""
    left = path.with_name(f".{path.name}.1.tmp")
    left.write_text("torn")
    return left


def left_over(path: Path) -> list[str]:
    names = {one.name for one in path.parent.iterdir() if not one.name.endswith(".lock")}
    return sorted(names - {path.name})


def update_in_a_child(rec: Record, words: list[str]) -> int:
    return in_a_child(lambda: rec.update("osol2", DST, large), words)


def in_a_child(act: Callable[[], object], words: list[str]) -> int:
    """Act under strace from the first call on; return the child's wait status."""
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        act()
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    with subprocess.Popen([*words, "-p", str(child)], stderr=subprocess.DEVNULL):
        status = Path(f"/proc/{child}/status")
        wait_until("it is traced", lambda: "TracerPid:\t0" not in status.read_text())
        os.kill(child, signal.SIGCONT)
        return os.waitpid(child, 0)[1]


def test_an_update_killed_at_any_system_call_leaves_the_old_file_or_the_new(
    rec: Record, tmp_path: Path
) -> None:
    path, log = Path(rec.path), tmp_path / "log"
    litter(path)
    assert update_in_a_child(rec, strace(log, None)) == 0
    new, calls = rec.read(), points(log)
    assert {"unlink", "write", "fsync", "rename"} <= {name for name, _ in calls}
    seen = set()
    for point in calls:
        path.write_text(format_state(OLD))
        litter(path)
        assert update_in_a_child(rec, strace(log, point)) == signal.SIGKILL, point
        state = read_state(rec.path)
        assert state in (OLD, new), point
        seen.add(state == new)
        rec.update("osol2", DST, large)
        assert (rec.read(), left_over(path)) == (new, []), point
    assert seen == {True, False}


def test_metrics_killed_at_any_system_call_are_the_old_ones_or_the_new(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    file, log = tmp_path / "node" / "zfs_sync.prom", tmp_path / "log"

    def write() -> None:
        record.write_metrics(str(file), str(tmp_path / "state"), lambda *_: LARGE)

    assert in_a_child(write, strace(log, None)) == 0
    seen = set()
    for point in points(log):
        file.write_text("old")
        litter(file)
        assert in_a_child(write, strace(log, point)) == signal.SIGKILL, point
        assert file.read_text() in ("old", LARGE), point
        seen.add(file.read_text())
        write()
        assert (file.read_text(), left_over(file)) == (LARGE, []), point
    assert seen == {"old", LARGE}


PROGRAMS = ("rm", "cat", "chmod", "sync", "mv")


class Far:
    """The folder of a target's copy, and what a push runs there, one program of it under strace."""

    def __init__(self, root: Path, program: str) -> None:
        self.path = root / "state" / "z3_sync#1_zfs_state"
        self.path.parent.mkdir()
        self.log = root / "log"
        self.program = program
        self.bin = root / "bin"
        self.bin.mkdir()

    def push(self, text: str, words: list[str] | None = None) -> int:
        """Push the text; return the exit status."""
        script = ["sh", "-c", record._RECEIVE, "sh", str(self.path.parent), self.path.name]
        path = os.environ["PATH"]
        if words and self.program == "sh":
            script = [*words, *script]
        elif words:
            wrapper = self.bin / self.program
            real = shutil.which(self.program)
            wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(words)} {real} "$@"\n')
            wrapper.chmod(0o755)
            path = f"{self.bin}:{path}"
        with tempfile.TemporaryFile() as stdin:
            stdin.write(text.encode())
            stdin.seek(0)
            done = subprocess.run(
                script, check=False, stdin=stdin, capture_output=True, env={"PATH": path}
            )
        return done.returncode


@pytest.mark.parametrize("program", ["sh", *PROGRAMS])
def test_a_push_killed_at_any_system_call_leaves_the_old_copy_or_the_new(
    program: str, tmp_path: Path
) -> None:
    far = Far(tmp_path, program)
    old, new = "old", "new" * 100_000
    litter(far.path)
    assert far.push(new, strace(far.log, None)) == 0
    calls = points(far.log)
    assert calls
    for point in calls:
        far.path.write_text(old)
        litter(far.path)
        status = far.push(new, strace(far.log, point))
        assert "killed by SIGKILL" in far.log.read_text(), point
        copy = far.path.read_text()
        assert copy in (old, new), point
        # What is told as a success is one.
        assert status != 0 or copy == new, point
        assert far.push(new) == 0
        assert (far.path.read_text(), left_over(far.path)) == (new, []), point
