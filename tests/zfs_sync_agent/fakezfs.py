"""Nodes with ZFS in memory, as far as the agent sees it, and runs of the agent that end anywhere.

What a command does was measured on zfs-fuse 0.7.0 and OpenZFS 2.3.2, the stricter of the two is
taken: `rename -r` is all or nothing, `destroy -r` may be cut between two datasets, the incremental
stream of a tree stops at a dataset that has its goal already. It never shares code with plan.py.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from check_zfs_sync.service import SyncResource
from check_zfs_sync.statefile import State, TargetState
from zfs_sync_agent import branch, execute, record
from zfs_sync_agent.branch import Context
from zfs_sync_agent.errors import NoAnswer, SyncError
from zfs_sync_agent.execute import Outcome, Settings, Worker
from zfs_sync_agent.model import RID, Names
from zfs_sync_agent.observe import Side
from zfs_sync_agent.record import Lock, Record
from zfs_sync_agent.transport import Answer, Shell, Stage, Transfer

from .notation import EPOCH, WHO


class Killed(BaseException):
    """The agent was killed; BaseException, as no handler of failures may swallow it."""


@dataclass(frozen=True)
class Snap:
    """A snapshot; `rid` is its mark, `source` the one that `zfs get` would show for it."""

    guid: str
    txg: int
    rid: str | None
    source: str = "local"


@dataclass
class Dataset:
    """A dataset; `ident` stays with it when it is renamed."""

    ident: int
    txg: int
    snaps: dict[str, Snap] = field(default_factory=dict)
    props: dict[str, tuple[str, str]] = field(default_factory=dict)
    written: int = 0

    def copy(self) -> "Dataset":
        """Return an independent one."""
        return Dataset(self.ident, self.txg, dict(self.snaps), dict(self.props), self.written)

    def at(self, guid: str) -> str | None:
        """Return the name of the snapshot with that guid."""
        return next((name for name, snap in self.snaps.items() if snap.guid == guid), None)


@dataclass(frozen=True)
class Piece:
    """What a stream holds of one dataset: `base` None is a full one; `names` of all its snapshots.

    `snaps` are received in that order.
    """

    relative: str
    base: str | None
    snaps: tuple[tuple[str, Snap], ...]
    names: tuple[tuple[str, str], ...]


class ZfsError(Exception):
    """What zfs would say on stderr before it exits 1."""


Pools = dict[str, dict[str, Dataset]]


class World:
    """All nodes, what is wrong with them, and a fuse: so many steps until the agent is killed.

    A step is one change that ZFS commits at once. `lose` = (node, steps): a node that stops
    answering. `watch` is called after each step with the node and the words.
    """

    def __init__(self, pools: Pools, txg: int = 100) -> None:
        self.pools = pools
        self.txg = txg
        self.state: dict[str, TargetState] = {}
        self.down: set[str] = set()
        self.lose: tuple[str, int] | None = None
        self.fuse: int | None = None
        self.steps = 0
        self.full_streams: list[str] = []
        self.log: list[str] = []
        self.watch: Callable[[str, Sequence[str]], None] = lambda _node, _words: None

    def copy(self) -> "World":
        """Return an independent one, its fuse out and nothing wrong with it."""
        pools = {
            node: {name: dataset.copy() for name, dataset in datasets.items()}
            for node, datasets in self.pools.items()
        }
        twin = World(pools, self.txg)
        twin.state = dict(self.state)
        return twin

    def next_txg(self) -> int:
        """Return the next transaction group; it is the clock, too."""
        self.txg += 1
        return self.txg

    def check_alive(self, node: str) -> None:
        """Raise what a command meets that is run now: Killed, NoAnswer."""
        if self.fuse is not None and self.steps > self.fuse:
            raise Killed
        if self.lose is not None and self.steps >= self.lose[1]:
            self.down.add(self.lose[0])
        if node in self.down:
            raise NoAnswer(f"no answer from {node}")

    @contextlib.contextmanager
    def step(self, node: str, words: Sequence[str]) -> Iterator[None]:
        """Do one change, unless the fuse has burnt down."""
        if self.fuse is not None and self.steps >= self.fuse:
            self.steps = self.fuse + 1
            raise Killed
        self.check_alive(node)
        yield
        self.steps += 1
        self.log.append(f"  {self.steps} {node}: {' '.join(words)}")
        self.watch(node, words)

    # --- zfs ----------------------------------------------------------------------------------

    def zfs(self, node: str, argv: Sequence[str], names: Sequence[str] = ()) -> Answer:
        """Run one zfs command."""
        self.check_alive(node)
        out: list[str] = []
        err: list[str] = []
        act = getattr(self, f"_{argv[0]}")
        try:
            act(node, list(argv[1:]), list(names), out, err)
        except ZfsError as error:
            err.append(str(error))
        self.check_alive(node)  # it may have been done, and the answer lost
        text = "".join(f"{line}\n" for line in out)
        return Answer(1 if err else 0, text, "".join(f"{line}\n" for line in err))

    def _below(self, node: str, root: str) -> list[str]:
        return sorted(n for n in self.pools[node] if n == root or n.startswith(f"{root}/"))

    def _open(self, node: str, name: str) -> Dataset:
        dataset, at, snap = name.partition("@")
        found = self.pools[node].get(dataset)
        if found is None or (at and snap not in found.snaps):
            raise ZfsError(f"cannot open '{name}': dataset does not exist")
        return found

    def _list(
        self, node: str, words: list[str], names: list[str], out: list[str], err: list[str]
    ) -> None:
        if "-t" in words and words[words.index("-t") + 1] == "snapshot":
            for name in names:
                out += [f"{name}@{snap}" for snap in self.pools[node][name].snaps]
            return
        root = words[-1]
        if "/" in root:
            self._open(node, root)
        out += self._below(node, root) if "-r" in words else [root]
        err += []

    def _get(
        self, node: str, words: list[str], names: list[str], out: list[str], err: list[str]
    ) -> None:
        keys = words[3].split(",")
        if words[2] == "property,value,source":
            dataset = self._open(node, words[4])
            for key in keys:
                out.append("\t".join((key, *dataset.props.get(key, ("-", "-")))))
            return
        for name in names:
            try:
                dataset = self._open(node, name)
            except ZfsError as error:
                err.append(str(error))
                continue
            snap = dataset.snaps.get(name.partition("@")[2])
            for key in keys:
                out.append("\t".join((name, key, *_property(dataset, snap, key))))

    def _snapshot(
        self, node: str, words: list[str], _names: list[str], _out: list[str], _err: list[str]
    ) -> None:
        root, _, name = words[-1].partition("@")
        rid = words[words.index("-o") + 1].partition("=")[2]
        taken = self._below(node, root) if "-r" in words else [root]
        if any(name in self.pools[node][one].snaps for one in taken):
            raise ZfsError(f"cannot create snapshot '{words[-1]}': dataset already exists")
        with self.step(node, ("snapshot", *words)):
            txg = self.next_txg()
            for number, one in enumerate(taken):
                self.pools[node][one].snaps[name] = Snap(f"{txg}{number:03d}", txg, rid)
                self.pools[node][one].written = 0

    def _rename(
        self, node: str, words: list[str], _names: list[str], _out: list[str], _err: list[str]
    ) -> None:
        old, new = words[-2:]
        self._open(node, old)
        if "@" not in old:
            self._move(node, old, new)
            return
        root, _, before = old.partition("@")
        after = new.partition("@")[2]
        within = self._below(node, root) if "-r" in words else [root]
        holders = [self.pools[node][one] for one in within if before in self.pools[node][one].snaps]
        if any(after in one.snaps for one in holders):
            raise ZfsError(f"cannot rename '{new}': a child dataset already has a snapshot ...")
        with self.step(node, ("rename", *words)):
            for one in holders:
                one.snaps[after] = one.snaps.pop(before)

    def _move(self, node: str, old: str, new: str) -> None:
        if new in self.pools[node]:
            raise ZfsError(f"cannot rename '{old}': dataset already exists")
        with self.step(node, ("rename", old, new)):
            for one in self._below(node, old):
                self.pools[node][new + one[len(old) :]] = self.pools[node].pop(one)

    def _destroy(
        self, node: str, words: list[str], _names: list[str], _out: list[str], _err: list[str]
    ) -> None:
        self._open(node, words[-1])
        root, at, name = words[-1].partition("@")
        within = self._below(node, root) if "-r" in words else [root]
        if not at:
            for one in reversed(within):
                with self.step(node, ("destroy", one)):
                    del self.pools[node][one]
            return
        for one in within:
            if name in self.pools[node][one].snaps:
                with self.step(node, ("destroy", f"{one}@{name}")):
                    del self.pools[node][one].snaps[name]

    def _rollback(
        self, node: str, words: list[str], _names: list[str], _out: list[str], _err: list[str]
    ) -> None:
        dataset = self._open(node, words[-1])
        name = words[-1].partition("@")[2]
        if max(dataset.snaps.values(), key=lambda snap: snap.txg) is not dataset.snaps[name]:
            raise ZfsError(f"cannot rollback to '{words[-1]}': more recent snapshots exist")
        with self.step(node, ("rollback", *words)):
            dataset.written = 0

    def _set(
        self, node: str, words: list[str], names: list[str], _out: list[str], _err: list[str]
    ) -> None:
        key, _, value = words[0].partition("=")
        for name in [*words[1:], *names]:
            dataset = self._open(node, name)
            snap = name.partition("@")[2]
            with self.step(node, ("set", words[0], name)):
                if snap:
                    dataset.snaps[snap] = replace(dataset.snaps[snap], rid=value, source="local")
                else:
                    dataset.props[key] = (value, "local")

    def _inherit(
        self, node: str, words: list[str], _names: list[str], _out: list[str], _err: list[str]
    ) -> None:
        with self.step(node, ("inherit", *words)):
            self._open(node, words[1]).props.pop(words[0], None)

    def _create(
        self, node: str, words: list[str], _names: list[str], _out: list[str], _err: list[str]
    ) -> None:
        with self.step(node, ("create", *words)):
            txg = self.next_txg()
            self.pools[node][words[-1]] = Dataset(txg, txg)

    # --- send and receive ---------------------------------------------------------------------

    def send(self, node: str, argv: Sequence[str]) -> list[Piece]:
        """Return the pieces of a stream. Raises ZfsError."""
        root, _, goal = argv[-1].partition("@")
        self._open(node, argv[-1])
        option = next((one for one in argv if one in ("-i", "-I")), None)
        base = argv[argv.index(option) + 1].partition("@")[2] if option else None
        if base:
            self._open(node, f"{root}@{base}")
        snaps = self.pools[node][root].snaps
        if base and snaps[base].txg >= snaps[goal].txg:
            raise ZfsError(f"incremental source (@{base}) is not earlier than it")
        within = self._below(node, root) if "-R" in argv else [root]
        pieces = []
        for name in within:
            snaps = self.pools[node][name].snaps
            if goal not in snaps:
                continue
            begin = snaps.get(base) if base else None
            after = begin.txg if begin else -1
            wanted = [
                (one, snap)
                for one, snap in sorted(snaps.items(), key=lambda item: item[1].txg)
                if one == goal
                or (
                    (option == "-I" or ("-R" in argv and not base))
                    and after < snap.txg < snaps[goal].txg
                )
            ]
            names = tuple((snap.guid, one) for one, snap in snaps.items())
            guid = begin.guid if begin else None
            pieces.append(Piece(name[len(root) :], guid, tuple(wanted), names))
        return pieces

    def receive(self, node: str, into: str, pieces: Sequence[Piece], *, replicate: bool) -> None:
        """Receive a stream at an exact name, one step per dataset. Raises ZfsError."""
        if replicate:
            self._follow_names(node, into, pieces)
        for piece in pieces:
            name = f"{into}{piece.relative}"
            if piece.base is None:
                self._receive_full(node, name, piece)
            else:
                self._receive_incremental(node, name, piece)

    def _follow_names(self, node: str, into: str, pieces: Sequence[Piece]) -> None:
        """The receiver of a tree renames datasets and snapshots by guid before it receives."""
        for piece in (*pieces, *pieces):  # a second time for those that were in each other's way
            name = f"{into}{piece.relative}"
            for one in self._below(node, into):
                here = self.pools[node].get(one)  # gone, if its parent was renamed just now
                if here and piece.base and one != name and here.at(piece.base):
                    taken = name in self.pools[node]
                    self._move(node, one, f"{into}/recv-1-{self.steps}" if taken else name)
        for piece in pieces:
            name = f"{into}{piece.relative}"
            dataset = self.pools[node].get(name)
            for guid, label in piece.names if dataset else ():
                assert dataset is not None
                old = dataset.at(guid)
                if old is None or old == label or old.startswith("recv-"):
                    continue
                new = f"recv-1-{self.steps}" if label in dataset.snaps else label
                with self.step(node, ("(receive) rename", f"{name}@{old}", new)):
                    dataset.snaps[new] = dataset.snaps.pop(old)

    def _receive_full(self, node: str, name: str, piece: Piece) -> None:
        if name in self.pools[node]:
            raise ZfsError(
                f"cannot receive new filesystem stream: destination '{name}' exists\n"
                "must specify -F to overwrite it"
            )
        if name.rpartition("/")[0] not in self.pools[node]:
            raise ZfsError(f"cannot open '{name}': dataset does not exist")
        with self.step(node, ("(receive) full", name)):
            self.full_streams.append(f"{node}:{name}")
            txg = self.next_txg()
            snaps = {one: replace(snap, source="received") for one, snap in piece.snaps}
            self.pools[node][name] = Dataset(txg, txg, snaps)

    def _receive_incremental(self, node: str, name: str, piece: Piece) -> None:
        dataset = self.pools[node].get(name)
        if dataset is None:
            raise ZfsError(f"destination '{name}' does not exist")
        base = dataset.at(piece.base or "")
        if base is None or any(dataset.at(snap.guid) for _, snap in piece.snaps):
            raise ZfsError(
                f"cannot receive incremental stream: most recent snapshot of {name} does not\n"
                "match incremental source"
            )
        if dataset.written:
            raise ZfsError(f"destination {name} has been modified\nsince most recent snapshot")
        if clash := [one for one, _ in piece.snaps if one in dataset.snaps]:
            raise ZfsError(f"cannot restore to {name}@{clash[0]}: destination already exists")
        with self.step(node, ("(receive) incremental", name)):
            for one, snap in piece.snaps:
                dataset.snaps[one] = replace(snap, source="received")

    def transfer(
        self,
        senders: Sequence[Sequence[str]],
        receiver: Sequence[str],
        _fds: Sequence[int],
        _stall_timeout: int,
    ) -> Transfer:
        """Stand in for transport.transfer."""
        node, *commands = receiver
        sent, received = Stage("zfs send", 0, ""), Stage("zfs receive", 0, "")
        try:
            for words, into in zip(senders, commands, strict=True):
                pieces = self.send(_node_of(words[0]), words[1:])
                where = _landing(words[-1], into.split("\0"))
                self.check_alive(node)
                self.receive(node, where, pieces, replicate="-R" in words)
        except ZfsError as error:
            sent, received = Stage("zfs send", -13, ""), Stage("zfs receive", 1, str(error))
        except NoAnswer as error:
            received = Stage("ssh zfs receive", 255, str(error))
        return Transfer(1, (sent, received))


def _property(dataset: Dataset, snap: Snap | None, key: str) -> tuple[str, str]:
    txg = snap.txg if snap else dataset.txg
    values = {
        "guid": (snap.guid if snap else str(dataset.ident), "-"),
        "creation": (str(EPOCH + 60 * txg), "-"),
        "createtxg": (str(txg), "-"),
        "written": ("-" if snap else str(dataset.written), "-"),
        RID: (snap.rid, snap.source) if snap and snap.rid else ("-", "-"),
    }
    return values.get(key, ("-", "-"))


def _node_of(program: str) -> str:
    return program.split("/")[1]


def _landing(sent: str, receive: Sequence[str]) -> str:
    if "-d" in receive:
        return f"{receive[receive.index('-d') + 1]}/{sent.partition('@')[0].split('/', 1)[1]}"
    return receive[-1]


# --- the agent in such a world ----------------------------------------------------------------


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
            case ["zfs"]:
                return Answer(2, "", "usage:\n\treceive [-vMnsFhu] <filesystem>\n")
            case ["zfs", "get"]:
                return Answer(2, "", "\twritten NO NO <size>\n")
            case ["zfs", *argv] | [_, *argv] if words[0].endswith("zfs"):
                return self._world.zfs(self.node, argv, names or ())
            case ["date", *_]:
                return Answer(0, "0\n", "")
        assert text is None
        return Answer(1, "", f"{words[0]}: not here\n")

    def ask(self, commands: Sequence[Sequence[str]]) -> list[Answer]:
        """Answer several."""
        return [self.run(words) for words in commands]

    def data_words(self, commands: Sequence[Sequence[str]]) -> tuple[str, ...]:
        """Return the node and, as one word each, what it is to receive."""
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


def _lock() -> Lock:
    return Lock(Path(os.devnull).open("a+"))


def run_agent(
    world: World, resource: SyncResource, *, lazy_joins: bool = False
) -> list[Outcome] | None:
    """Run the agent once; return what became of each target, None if it was killed."""
    assert resource.src is not None
    empty = State("z3", "sync#1", "osol1", "osol1", resource.src, 90000, "0", {})
    rec = FakeRecord("/nowhere", world, empty)
    lock = _lock()
    context = Context(
        resource, WHO, Names(resource.snap_prefix), world.log.append, world.log.append
    )
    settings = Settings("osol1", consent=False, dry_run=False, show=world.log.append)
    _Worker.lazy = lazy_joins
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branch, "transfer", world.transfer)
        patch.setattr(record, "acquire", lambda _path: _lock())
        patch.setattr(execute, "Worker", _Worker)
        patch.setattr(execute, "Shell", lambda node, _ssh, _fds: FakeShell(world, node))
        run = execute.Run(context, settings, rec, lock, resource.targets)
        try:
            return run.go()
        except Killed:
            return None
        finally:
            lock.close()
            for worker in run.workers:
                worker.lock.close()
