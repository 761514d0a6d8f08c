"""Keeps what a run leaves behind: its locks, the state file, its copies on targets, the metrics.

It never decides anything from a state file, and no reader ever sees half of one.
"""

import contextlib
import fcntl
import glob
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from check_zfs_sync.statefile import (
    SUFFIX,
    Attempt,
    State,
    StateFileError,
    Success,
    TargetState,
    format_state,
    read_state,
    state_path,
)
from zfs_sync_agent.errors import CommandFailed, SyncError
from zfs_sync_agent.observe import Side

# One shell word: $1 is the folder, $2 the file. mv is the rename that a reader cannot look between;
# what a kill has left of an earlier copy goes first.
_RECEIVE = (
    'umask 022; t="$1/.$2.$$.tmp"; { [ -d "$1" ] || mkdir -p "$1"; } &&'
    ' { set -- "$1" "$2" "$1/.$2."*.tmp; [ ! -e "$3" ] || rm -f "$1/.$2."*.tmp; } &&'
    ' cat > "$t" && chmod 644 "$t" && { sync -d "$t" 2>/dev/null || :; } &&'
    ' mv -f "$t" "$1/$2" || { rm -f "$t"; exit 1; }'
)

INTERRUPTED = "the run did not come to its end"


class Lock:
    """A lock on a sync resource, or on one node's join: held by this process and its children."""

    def __init__(self, handle: IO[str]) -> None:
        self._handle = handle

    @property
    def fd(self) -> int:
        """Return the descriptor that children inherit, so that an orphan still holds the lock."""
        return self._handle.fileno()

    def close(self) -> None:
        """Let go; a child that still runs keeps it."""
        self._handle.close()


def acquire(path: Path) -> Lock | int:
    """Return the lock, or the epoch since when another run holds it. Raises CommandFailed.

    The file stays: an unlinked lock file could be locked twice.
    """
    with _told(f"cannot lock {path}", "everything: what cannot be recorded is not done"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            since = int(path.stat().st_mtime)
            handle.close()
            return since
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        os.utime(handle.fileno())
        return Lock(handle)


@contextlib.contextmanager
def _told(what: str, untouched: str) -> Iterator[None]:
    """Tell what a full or unwritable state folder kept from being done."""
    try:
        yield
    except OSError as error:
        raise CommandFailed(
            what,
            detail=str(error),
            untouched=untouched,
            hint="make room in the state folder, or make it writable",
        ) from error


class Record:
    """The state file of one sync resource on this node; `empty` is what it is without targets."""

    def __init__(self, state_dir: str, empty: State) -> None:
        self.path = state_path(state_dir, empty.service, empty.rid)
        self._empty = empty

    def lock_path(self, node: str | None = None) -> Path:
        """Return the lock file of the resource, or of one node's join."""
        path = Path(self.path)
        return path.with_name(f".{path.name}.{node}.lock" if node else f".{path.name}.lock")

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold off, for moments, other writers of the state file and the source's properties."""
        # By src, not by resource: two resources may keep their bases in one src's property.
        name = f".{self._empty.src.replace('/', '%')}.write.lock"
        lock = Path(self.path).with_name(name)
        with _told(f"cannot lock {lock}", "what would have come after it"):
            handle = _exclusive(lock)
        with handle:
            yield

    def read(self) -> State:
        """Return the state; without targets where there is none, or another source wrote it.

        A torn file is no state: what is true is in ZFS, and the next write mends the file.
        """
        try:
            state = read_state(self.path)
        except StateFileError:
            return self._empty
        if state is None or state.source != self._empty.source:
            return self._empty
        return self._empty._replace(targets=state.targets)

    def is_mine(self) -> bool:
        """Tell whether the file is this source's, or would be: none is there, or a torn one."""
        try:
            state = read_state(self.path)
        except StateFileError:
            return True
        return state is None or state.source == self._empty.source

    def entry(self, node: str, dst: str) -> TargetState:
        """Return what is known of a target; nothing, if its dst was another then."""
        entry = self.read().targets.get(node)
        if entry is None or entry.dst != dst:
            return never(dst)
        return entry

    def update(
        self, node: str, dst: str, change: Callable[[TargetState], TargetState]
    ) -> TargetState:
        """Write one target's entry: temporary file, fsync, rename. Raises CommandFailed."""
        with self.exclusive():
            state = self.read()
            entry = change(self.entry(node, dst))
            self._write(state._replace(targets={**state.targets, node: entry}))
        return entry

    def forget_nodes(self, configured: frozenset[str]) -> None:
        """Drop the entries of nodes that are no longer configured."""
        state = self.read()
        if set(state.targets) - configured:
            with self.exclusive():
                state = self.read()
                kept = {node: entry for node, entry in state.targets.items() if node in configured}
                self._write(state._replace(targets=kept))

    def push(self, side: Side, node: str) -> None:
        """Copy the state to a target, renamed into place. Raises CommandFailed, NoAnswer."""
        path = Path(self.path)
        text = format_state(self.read()._replace(here=node))
        words = ("sh", "-c", _RECEIVE, "sh", str(path.parent), path.name)
        answer = side.shell.run(words, text=text)
        if answer.status != 0:
            last = answer.stderr.strip().splitlines()[-1:] or ["no message"]
            raise CommandFailed(
                f"the state file could not be copied to {node}",
                command=f"{side.shell.shown(words)} < {self.path}",
                detail=f"exit {answer.status}: {last[0]}",
                untouched="the data: it is on the target; only the check there sees the old state",
                hint=f"make {path.parent} on {node} writable for the ssh user, with room in it",
            )

    def _write(self, state: State) -> None:
        what = f"cannot write the state file {self.path}"
        with _told(what, "the data on both sides; the check sees the old state"):
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            _write(Path(self.path), format_state(state))


def write_metrics(path: str, state_dir: str, text: Callable[[list[State], int], str]) -> None:
    """Write the node's metrics file: `text` of all its states and the number of unusable ones.

    Raises OSError. Who writes last has read last: both are done under one lock. The folder is not
    made: nobody would look for the file in one that the node exporter does not know.
    """
    with _exclusive(Path(state_dir) / ".metrics.lock"):
        _write(Path(path), text(*_read_states(state_dir)))


def _read_states(state_dir: str) -> tuple[list[State], int]:
    states, unusable = [], 0
    for path in sorted(Path(state_dir).glob(f"[!.]*{SUFFIX}")):
        try:
            state = read_state(str(path))
        except StateFileError:
            unusable += 1
            continue
        if state is None:
            continue  # removed since the listing
        # A copy made by hand would be told of twice, or as another resource.
        if path.name == f"{state.service}_{state.rid}{SUFFIX}":
            states.append(state)
        else:
            unusable += 1
    return states, unusable


def _exclusive(lock: Path) -> IO[str]:
    """Return the open lock file; whoever else wants it waits until it is closed."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = lock.open("a")
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _write(path: Path, text: str) -> None:
    """Write the file under the lock: what is there of a temporary one, a kill has left."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            left.unlink()
        with temporary.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.chmod(0o644)  # the check reads it as another user
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def never(dst: str) -> TargetState:
    """Return the entry of a target that was never shown to hold a snapshot."""
    return TargetState(dst, "never", None, None, None, (), None, None, None)


def started(entry: TargetState, now: int) -> TargetState:
    """Return the entry at the start of a branch: if the run is killed, this stays, and is true."""
    status = "failed" if entry.status == "ok" and entry.snapshot is None else entry.status
    return entry._replace(status=status, last_attempt=Attempt(now, now, "failed", INTERRUPTED))


def failed(entry: TargetState, error: SyncError, begun: int, now: int) -> TargetState:
    """Return the entry after a failure; what the target was shown to hold stays."""
    attempt = Attempt(begun, now, error.result, error.reason)
    return entry._replace(status=error.result, last_attempt=attempt)


def succeeded(entry: TargetState, success: Success) -> TargetState:
    """Return the entry after a success."""
    attempt = Attempt(success.started, success.finished, "ok", None)
    return entry._replace(
        status="ok", last_success=success, last_attempt=attempt, alerted=None, alert_reason=None
    )


def now() -> int:
    """Return the UTC epoch in whole seconds."""
    return int(time.time())


def utc(epoch: int) -> str:
    """Return an epoch as people read it: `Sat Jun 19 14:30:05 2010 UTC`."""
    return f"{datetime.fromtimestamp(epoch, tz=timezone.utc):%a %b %d %H:%M:%S %Y} UTC"
