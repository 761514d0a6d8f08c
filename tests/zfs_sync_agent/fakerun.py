"""Runs of the real agent on nodes with ZFS in memory, which end anywhere.

It stands in for what execute.Run needs from outside: shells, the state file, locks, clocks and
threads. It decides none of what the agent does.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from check_zfs_sync.service import SyncResource
from check_zfs_sync.statefile import State, TargetState
from zfs_sync_agent import branch, execute, observe, record
from zfs_sync_agent.branch import Context
from zfs_sync_agent.errors import SyncError
from zfs_sync_agent.execute import Outcome, Settings, Worker
from zfs_sync_agent.model import Identity, Names
from zfs_sync_agent.observe import Side
from zfs_sync_agent.record import Lock, Record
from zfs_sync_agent.transport import Answer, Shell

from .fakezfs import Killed, World
from .notation import WHO

USAGE = "usage:\n\treceive [-vMnsFhu] <filesystem>\n"
PROPERTIES = "\twritten NO NO <size>\n"
USAGE_RESUMES = f"{USAGE}\treceive -A <filesystem>\n\tsend -t <receive_resume_token>\n"


class FakeShell(Shell):
    """A shell on a node of a world: zfs, and what the agent asks besides."""

    def __init__(self, world: World, node: str) -> None:
        super().__init__(node, ())
        self._world = world

    def open(self) -> None:
        """Nothing to open."""

    def close(self) -> None:
        """Nothing to close."""

    def run(
        self, words: Sequence[str], names: Sequence[str] | None = None, text: str | None = None
    ) -> Answer:
        """Answer; of other programs there is only `date`."""
        self._world.check_alive(self.node)
        match list(words):
            case ["command", "-v", "zfs"]:
                return Answer(0, f"/{self.node}/zfs\n", "")
            case ["zfs"] | ["zfs", "get"]:
                usage = USAGE_RESUMES if self._world.resumes else USAGE
                return Answer(2, "", PROPERTIES if "get" in words else usage)
            case ["zfs", *argv] | [_, *argv] if words[0].endswith("zfs"):
                return self._world.zfs(self.node, argv, names or ())
            case ["zpool", "sync", pool]:
                return self._world.sync(self.node, pool)
            case ["date", *_]:
                return Answer(0, f"{self._world.clock(self.node)}\n", "")
        assert text is None
        return Answer(1, "", f"{words[0]}: not here\n")

    def ask(self, commands: Sequence[Sequence[str]]) -> list[Answer]:
        """Answer several."""
        return [self.run(words) for words in commands]

    def data_words(
        self, commands: Sequence[Sequence[str]], feeders: Sequence[Sequence[str]] = ()
    ) -> tuple[str, ...]:
        """Return the node and, as one word each, what it is to receive."""
        assert not feeders
        return (self.node, *("\0".join(words) for words in commands))


class FakeRecord(Record):
    """A state file in the world; writing it is a step, too."""

    def __init__(self, folder: str, world: World, empty: State) -> None:
        super().__init__(folder, empty)
        self._world, self._nothing = world, empty

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """There is one thread."""
        yield

    def read(self) -> State:
        """Return what the world knows."""
        return self._nothing._replace(targets=self._world.state)

    def update(
        self, node: str, dst: str, change: Callable[[TargetState], TargetState]
    ) -> TargetState:
        """Write one entry."""
        entry = change(self.entry(node, dst))
        with self._world.step("state", (node,)):
            self._world.state = {**self._world.state, node: entry}
        return entry

    def push(self, side: Side, node: str) -> None:
        """The copies are not looked at."""


class _Worker(Worker):
    """A worker without a thread: `lazy` acts when it is waited for."""

    lazy = False

    def start(self, act: Callable[[Worker], None]) -> None:
        self._act: Callable[[Worker], None] | None = act
        if not (self.lazy and self.joins):
            self._go()

    def wait_until_settled(self) -> None:
        self._go()

    def wait(self) -> None:
        self._go()

    def _go(self) -> None:
        act, self._act = getattr(self, "_act", None), None
        if act is None:
            return
        try:
            act(self)
        except SyncError as error:
            self.error = self.error or error


class _Clock:
    """What the agent calls `time`, on the source."""

    def __init__(self, world: World) -> None:
        self._world = world

    def time(self) -> float:
        return float(self._world.clock())


def _lock() -> Lock:
    return Lock(Path(os.devnull).open("a+"))


def _acquire(world: World, path: Path) -> Lock | int:
    """Lock a target, unless a transfer to it goes on."""
    if world.orphan is not None and path.name.endswith(f".{world.orphan.node}.lock"):
        return world.clock()
    return _lock()


def run_for(node: str) -> type[execute.Run]:
    """Return a run for one target: what a person named, or what its schedule is for."""

    class RunForOne(execute.Run):
        def __init__(self, context: Any, settings: Any, rec: Any, lock: Any, targets: Any) -> None:
            chosen = [one for one in targets if one.node == node]
            super().__init__(context, settings, rec, lock, chosen)

    return RunForOne


def run_agent(
    world: World,
    resource: SyncResource,
    *,
    lazy_joins: bool = False,
    kind: type[execute.Run] = execute.Run,
    consent: bool = False,
    who: Identity = WHO,
) -> list[Outcome] | None:
    """Run the agent once; return what became of each target, None if it was killed.

    `kind` is what a person asked for, `consent` that to a full copy.
    """
    assert resource.src is not None
    empty = State("z3", "sync#1", "osol1", "osol1", resource.src, 90000, "0", {})
    rec = FakeRecord("/nowhere", world, empty)
    lock = _lock()
    context = Context(
        resource, who, Names(resource.snap_prefix), world.log.append, world.log.append
    )
    settings = Settings("osol1", consent=consent, dry_run=False, show=world.log.append)
    _Worker.lazy = lazy_joins
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branch, "transfer", world.transfer)
        patch.setattr(record, "acquire", lambda path: _acquire(world, path))
        patch.setattr(record, "now", world.clock)
        patch.setattr(observe, "time", _Clock(world))
        patch.setattr(execute, "Worker", _Worker)
        patch.setattr(execute, "Shell", lambda node, _ssh, _fds: FakeShell(world, node))
        run = kind(context, settings, rec, lock, resource.targets)
        try:
            return run.go()
        except Killed:
            return None
        finally:
            lock.close()
            for worker in run.workers:
                worker.lock.close()
