"""Nodes with ZFS in memory, as far as the agent sees it, and what may go wrong with them.

What a command does was measured on zfs-fuse 0.7.0 and OpenZFS 2.3.2, the stricter of the two is
taken: `rename -r` is all or nothing, `destroy -r` may be cut between two datasets, the incremental
stream of a tree stops at a dataset that has its goal already. test_contract.py holds it to a real
ZFS. It never shares code with plan.py, and never judges what the agent does.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from check_zfs_sync.statefile import TargetState
from zfs_sync_agent.errors import NoAnswer
from zfs_sync_agent.model import RID
from zfs_sync_agent.transport import Answer, Stage, Transfer
from zfs_sync_agent.zfs import TOKEN

from .notation import EPOCH

MOST_STEPS = 4000  # of one world: an agent that needs more goes round in circles


class Killed(BaseException):
    """The agent was killed; BaseException, as no handler of failures may swallow it."""


class Endless(BaseException):
    """The agent goes on and on."""


@dataclass(frozen=True)
class Snap:
    """A snapshot; `rid` is its mark, `source` the one that `zfs get` would show for it.

    `txg` is the age in its own pool, `born` the creation, which a stream carries along. `data`:
    something had changed since the one before. `held`: a hold or a clone keeps it.
    """

    guid: str
    txg: int
    rid: str | None
    source: str = "local"
    born: int = -1
    data: bool = True
    held: bool = False

    @property
    def age(self) -> int:
        """Return the creation, in the units of txg."""
        return self.txg if self.born < 0 else self.born


@dataclass
class Dataset:
    """A dataset; `ident` stays with it when it is renamed; `partial`: a receive was cut there.

    `unsynced`: bytes that zfs does not count before the pool is synced or a snapshot taken.
    `dirtied`: when the first of them was written, 0: before all that is looked at.
    """

    ident: int
    txg: int
    snaps: dict[str, Snap] = field(default_factory=dict)
    props: dict[str, tuple[str, str]] = field(default_factory=dict)
    written: int = 0
    unsynced: int = 0
    dirtied: int = 0
    partial: "Partial | None" = None

    def copy(self) -> "Dataset":
        """Return an independent one."""
        return replace(self, snaps=dict(self.snaps), props=dict(self.props))

    @property
    def dirty(self) -> int:
        """Return all that was written since the last snapshot."""
        return self.written + self.unsynced

    def since(self, snap: Snap) -> int:
        """Return the bytes of `written@` that snapshot."""
        newer = (one for one in self.snaps.values() if one.txg > snap.txg)
        return self.written + 4096 * sum(one.data for one in newer)

    def at(self, guid: str) -> str | None:
        """Return the name of the snapshot with that guid."""
        return next((name for name, snap in self.snaps.items() if snap.guid == guid), None)


@dataclass(frozen=True)
class Piece:
    """What a stream holds of one dataset: `base` None is a full one; `names` of all its snapshots.

    `snaps` are received in that order; `props` are the dataset's own.
    """

    dataset: str
    relative: str
    base: str | None
    snaps: tuple[tuple[str, Snap], ...]
    names: tuple[tuple[str, str], ...]
    props: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Partial:
    """What a receive that was cut is for, which is all that its token says.

    `base` '' is a full one; `name` the snapshot's full name when it was sent.
    """

    guid: str
    base: str
    name: str

    @property
    def token(self) -> str:
        """Return the token, which holds all of it."""
        return ",".join((self.guid, self.base, self.name))

    @classmethod
    def of(cls, token: str) -> "Partial":
        """Return what a token says."""
        return cls(*token.split(","))


@dataclass(frozen=True)
class Action:
    """One change of a receive, not done yet."""

    words: tuple[str, ...]
    do: Callable[[], None]


@dataclass
class Orphan:
    """A transfer that goes on after its agent was killed; `node` receives."""

    node: str
    actions: Iterator[Action]


class ZfsError(Exception):
    """What zfs would say on stderr before it exits with a status."""

    status = 1


class SendError(ZfsError):
    """What the sending zfs would say; the receiver may find nothing wrong."""


class ResumeError(SendError):
    """What a send by a token says that cannot go on."""

    status = 255


Pools = dict[str, dict[str, Dataset]]


@dataclass
class Trouble:
    """What is wrong with a world, until it is mended.

    `fuse`: so many steps until the agent is killed; `orphans`: its transfer goes on then, and does
    a step `beside` each step of the next run, or none before that has ended (`after`). `lose`: a
    node stops answering after so many steps; those in `down` do not answer at all, those in
    `exported` have no pool. `gap`, `lie`: the number of the transfer that skips the last dataset
    and exits with 0, or does everything and exits with 1. `blind`: the node and the number of the
    reading of which the second half cannot be read. `work`: the source's last dataset is written to
    right after so many of its readings. `skew`: minutes that a node's clock is ahead.
    """

    fuse: int | None = None
    orphans: str = ""
    lose: tuple[str, int] | None = None
    down: set[str] = field(default_factory=set)
    exported: set[str] = field(default_factory=set)
    gap: int | None = None
    lie: int | None = None
    blind: tuple[str, int] | None = None
    work: int | None = None
    skew: dict[str, int] = field(default_factory=dict)


class World:
    """All nodes, the agent's state file and what is wrong.

    A step is one change that ZFS commits at once. `watch` is called after each with the node and
    the words, those of the state file included. `taken` knows of every snapshot of the source, also
    of those that are gone: guid -> dataset and creation. `resumes`: each ZFS knows `receive -s`,
    and keeps what it received of a dataset when it is cut.
    """

    def __init__(self, pools: Pools, txg: int = 100, *, resumes: bool = False) -> None:
        self.pools = pools
        self.txg = txg
        self.resumes = resumes
        self.state: dict[str, TargetState] = {}
        self.trouble = Trouble()
        self.steps = 0
        self.transfers = 0
        self.readings: dict[str, int] = {}
        self.full_streams: list[str] = []
        self.resumed: set[tuple[str, Partial]] = set()
        self.made: set[int] = set()  # datasets that a receive made
        self.bare: set[str] = set()  # guids of what had a mark and arrived without it
        self.orphan: Orphan | None = None
        self.by_orphan = False  # the step that is watched is not the agent's
        self.unfinished: set[tuple[str, str]] = set()  # datasets of a full receive that was cut
        self.log: list[str] = []
        self.watch: Callable[[str, Sequence[str]], None] = lambda _node, _words: None
        self.taken = {
            snap.guid: (dataset.ident, snap.age)
            for dataset in pools.get("osol1", {}).values()
            for snap in dataset.snaps.values()
        }

    def copy(self) -> "World":
        """Return an independent one with nothing wrong."""
        pools = {
            node: {name: dataset.copy() for name, dataset in datasets.items()}
            for node, datasets in self.pools.items()
        }
        twin = World(pools, self.txg, resumes=self.resumes)
        twin.state = dict(self.state)
        twin.taken = dict(self.taken)
        twin.made = set(self.made)
        twin.bare = set(self.bare)
        return twin

    def mend(self) -> None:
        """Let nothing be wrong any more."""
        self.trouble = Trouble()

    def next_txg(self) -> int:
        """Return the next transaction group; it is the clock, too."""
        self.txg += 1
        return self.txg

    def clock(self, node: str = "osol1") -> int:
        """Return the epoch on a node."""
        return EPOCH + 60 * (self.txg + self.trouble.skew.get(node, 0))

    def below(self, node: str, root: str) -> list[str]:
        """Return the names of a tree, parents first."""
        return sorted(n for n in self.pools[node] if n == root or n.startswith(f"{root}/"))

    def partials(self, node: str) -> dict[str, Partial]:
        """Return the datasets in which a receive was cut that can go on, by name."""
        datasets = self.pools[node].items()
        return {name: one.partial for name, one in datasets if one.partial is not None}

    def find(self, node: str, guid: str) -> tuple[str, str] | None:
        """Return dataset and name of the snapshot with a guid, wherever it is on a node."""
        hits = ((name, one.at(guid)) for name, one in self.pools[node].items())
        return next(((name, label) for name, label in hits if label is not None), None)

    def can_go_on(self, node: str, partial: Partial) -> bool:
        """Tell whether a node has what the rest of a receive needs."""
        needed = filter(None, (partial.guid, partial.base))
        return all(self.find(node, guid) is not None for guid in needed)

    def check_alive(self, node: str) -> None:
        """Raise what a command meets that is run now: Killed, NoAnswer."""
        trouble = self.trouble
        if trouble.fuse is not None and self.steps > trouble.fuse:
            raise Killed
        if trouble.lose is not None and self.steps >= trouble.lose[1]:
            trouble.down.add(trouble.lose[0])
        if node in trouble.down:
            raise NoAnswer(f"no answer from {node}", hint="mend it; the next run tries again")

    @contextlib.contextmanager
    def step(self, node: str, words: Sequence[str]) -> Iterator[None]:
        """Do one change, unless the fuse has burnt down."""
        fuse = self.trouble.fuse
        if fuse is not None and self.steps >= fuse:
            self.steps = fuse + 1
            raise Killed
        if self.steps > MOST_STEPS:
            raise Endless
        self.check_alive(node)
        yield
        self.steps += 1
        self.log.append(f"  {self.steps} {node}: {' '.join(words)}")
        self.watch(node, words)
        if self.orphan is not None and self.trouble.orphans == "beside":
            self.let_orphan(1)

    def let_orphan(self, steps: int = MOST_STEPS) -> None:
        """Let an orphan take some steps, or come to its end."""
        for _ in range(steps):
            if self.orphan is None:
                return
            try:
                action = next(self.orphan.actions, None)
            except (ZfsError, NoAnswer):
                action = None  # nobody hears of it
            if action is None:
                self.orphan = None
                return
            node = self.orphan.node
            action.do()
            self.log.append(f"    orphan, {node}: {' '.join(action.words)}")
            self.by_orphan = True
            self.watch(node, action.words)
            self.by_orphan = False

    def tidy(self, cut: Collection[tuple[str, str]]) -> None:
        """Let ZFS take away datasets of full receives that were cut."""
        for node, name in sorted(self.unfinished & set(cut)):
            if self.orphan is None:
                del self.pools[node][name]
                self.unfinished.discard((node, name))

    # --- zfs ----------------------------------------------------------------------------------

    def zfs(self, node: str, argv: Sequence[str], names: Sequence[str] = ()) -> Answer:
        """Run one zfs command."""
        self.check_alive(node)
        out: list[str] = []
        err: list[str] = []
        act = getattr(self, f"_{argv[0]}")
        failed = 1
        try:
            act(node, list(argv[1:]), list(names), out, err)
        except ZfsError as error:
            failed = error.status
            err += str(error).splitlines()
        self.check_alive(node)  # it may have been done, and the answer lost
        text = "".join(f"{line}\n" for line in out)
        return Answer(failed if err else 0, text, "".join(f"{line}\n" for line in err))

    def _open(self, node: str, name: str) -> Dataset:
        dataset, at, snap = name.partition("@")
        found = self.pools[node].get(dataset)
        if found is None or (at and snap not in found.snaps) or node in self.trouble.exported:
            raise ZfsError(f"cannot open '{name}': dataset does not exist")
        return found

    def _list(
        self, node: str, words: list[str], names: list[str], out: list[str], err: list[str]
    ) -> None:
        if "-t" in words and words[words.index("-t") + 1] == "snapshot":
            for name in names:
                snaps = self._open(node, name).snaps
                out += [f"{name}@{one}" for one in sorted(snaps, key=lambda one: snaps[one].txg)]
            return
        if words[-1] == "name,mountpoint":
            out += [f"{name}\tnone" for name in sorted(self.pools[node])]
            return
        root = words[-1]
        self._open(node, root)
        out += self.below(node, root) if "-r" in words else [root]
        err += []

    def sync(self, node: str, pool: str) -> Answer:
        """Let what was written to a pool be counted."""
        for name in self.below(node, pool):
            one = self.pools[node][name]
            one.written, one.unsynced = one.dirty, 0
        return Answer(0, "", "")

    def _get(
        self, node: str, words: list[str], names: list[str], out: list[str], err: list[str]
    ) -> None:
        keys = words[3].split(",")
        if words[2] == "property,value,source":
            dataset = self._open(node, words[4])
            for key in keys:
                out.append("\t".join((key, *dataset.props.get(key, ("-", "-")))))
            return
        asked = [*words[4:], *names]
        self.readings[node] = number = self.readings.get(node, 0) + 1
        seen = len(asked) // 2 if self.trouble.blind == (node, number) else len(asked)
        for name in asked[:seen]:
            try:
                dataset = self._open(node, name)
            except ZfsError as error:
                err.append(str(error))
                continue
            values = _properties(dataset, dataset.snaps.get(name.partition("@")[2]))
            for key in keys:
                value, kind = values.get(key, ("-", "-"))
                if key.startswith("written@"):
                    base = dataset.snaps.get(key.partition("@")[2])
                    value = str(dataset.since(base)) if base else "-"
                out.append(f"{name}\t{key}\t{value}\t{kind}")
        err += [f"cannot open '{name}': I/O error" for name in asked[seen:]]
        if node == "osol1" and self.trouble.work == number:
            self._write_last(asked)

    def _write_last(self, asked: Sequence[str]) -> None:
        """Write to the last dataset of those that were asked for."""
        dataset = self.pools["osol1"][max(name.partition("@")[0] for name in asked)]
        dataset.dirtied = dataset.dirtied if dataset.dirty else self.next_txg()
        dataset.unsynced += 4096

    def _snapshot(
        self, node: str, words: list[str], _names: list[str], _out: list[str], _err: list[str]
    ) -> None:
        given = words[words.index("-o") + 2 :] if "-o" in words else words[-1:]
        root, _, name = given[-1].partition("@")
        roots = [one.partition("@")[0] for one in given]
        for one in roots:
            self._open(node, one)
        rid = words[words.index("-o") + 1].partition("=")[2] if "-o" in words else None
        among = self.below(node, root) if "-r" in words else roots
        for one in among:
            if name in self.pools[node][one].snaps:
                raise ZfsError(
                    f"cannot create snapshot '{one}@{name}': dataset already exists\n"
                    "no snapshots were created"
                )
        with self.step(node, ("snapshot", *words)):
            txg = self.next_txg()
            for number, one in enumerate(among):
                dataset = self.pools[node][one]
                guid = f"{txg}{number:03d}"
                dataset.snaps[name] = Snap(guid, txg, rid, data=dataset.dirty > 0)
                dataset.written = dataset.unsynced = dataset.dirtied = 0
                if node == "osol1":
                    self.taken[guid] = (dataset.ident, txg)

    def _rename(
        self, node: str, words: list[str], _names: list[str], _out: list[str], _err: list[str]
    ) -> None:
        old, new = words[-2:]
        self._open(node, old)
        if "@" not in old:
            action = self._moving(node, old, new)
            with self.step(node, action.words):
                action.do()
            return
        root, _, before = old.partition("@")
        after = new.partition("@")[2]
        within = self.below(node, root) if "-r" in words else [root]
        holders = [one for one in within if before in self.pools[node][one].snaps]
        for one in holders:
            if after in self.pools[node][one].snaps:
                what = (
                    "a child dataset already has a snapshot with the new name"
                    if "-r" in words
                    else "dataset already exists"
                )
                raise ZfsError(f"cannot rename '{one}@{after}': {what}")
        with self.step(node, ("rename", *words)):
            for one in holders:
                snaps = self.pools[node][one].snaps
                snaps[after] = snaps.pop(before)

    def _moving(self, node: str, old: str, new: str) -> Action:
        if new in self.pools[node]:
            raise ZfsError(f"cannot rename '{old}': dataset already exists")

        def do() -> None:
            for one in self.below(node, old):
                self.pools[node][new + one[len(old) :]] = self.pools[node].pop(one)

        return Action(("rename", old, new), do)

    def _destroy(
        self, node: str, words: list[str], _names: list[str], _out: list[str], _err: list[str]
    ) -> None:
        root, at, name = words[-1].partition("@")
        if not at:
            self._destroy_datasets(node, root, recursive="-r" in words)
            return
        within = self.below(node, root) if "-r" in words else [root]
        holders = [one for one in within if name in self.pools[node][one].snaps]
        if "-r" in words and (not holders or node in self.trouble.exported):
            raise ZfsError(
                f"cannot destroy '{words[-1]}': dataset does not exist\nno snapshots destroyed"
            )
        self._open(node, words[-1])
        for one in holders:  # in a newer ZFS those before the busy one are gone then
            dataset = self.pools[node][one]
            snap = dataset.snaps[name]
            if snap.held or (dataset.partial and dataset.partial.base == snap.guid):
                raise ZfsError(f"cannot destroy '{one}@{name}': dataset is busy")
            with self.step(node, ("destroy", f"{one}@{name}")):
                del self.pools[node][one].snaps[name]

    def _destroy_datasets(self, node: str, root: str, *, recursive: bool) -> None:
        dataset = self._open(node, root)
        within = self.below(node, root)
        if not recursive and (dataset.snaps or len(within) > 1):
            raise ZfsError(f"cannot destroy '{root}': filesystem has children")
        for one in reversed(within):
            if any(snap.held for snap in self.pools[node][one].snaps.values()):
                raise ZfsError(f"cannot destroy '{one}': dataset is busy")
            with self.step(node, ("destroy", one)):
                del self.pools[node][one]

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
        dataset = self._open(node, words[1])
        with self.step(node, ("inherit", *words)):
            dataset.props.pop(words[0], None)

    def _create(
        self, node: str, words: list[str], _names: list[str], _out: list[str], _err: list[str]
    ) -> None:
        with self.step(node, ("create", *words)):
            txg = self.next_txg()
            self.pools[node][words[-1]] = Dataset(txg, txg)

    # --- send and receive ---------------------------------------------------------------------

    def _send(
        self, node: str, words: list[str], _names: list[str], out: list[str], _err: list[str]
    ) -> None:
        """Say what a token is for, also where its snapshot is gone."""
        assert words[0] == "-nvt"
        partial = Partial.of(words[1])
        out += ["resume token contents:", f"\ttoguid = 0x{int(partial.guid):x}"]
        out.append(f"\ttoname = {partial.name}")
        self._rest_of(node, partial)

    def _rest_of(self, node: str, partial: Partial) -> Piece:
        """Return the rest that a token asks for, under the name of now; it has no properties."""
        found = self.find(node, partial.guid)
        if found is None or not self.can_go_on(node, partial):
            raise ResumeError(
                f"cannot resume send: '{partial.name}' used in the initial send no longer exists"
            )
        dataset, label = found
        snap = self.pools[node][dataset].snaps[label]
        return Piece(dataset, "", partial.base or None, ((label, snap),), (), ())

    def _receive(
        self, node: str, words: list[str], _names: list[str], _out: list[str], _err: list[str]
    ) -> None:
        """Give up a receive that was cut."""
        assert words[0] == "-A"
        name = words[1]
        dataset = self._open(node, name)
        partial = dataset.partial
        if partial is None:
            raise ZfsError(f"'{name}' does not have any resumable receive state to abort")
        with self.step(node, ("receive", *words)):
            dataset.partial = None
            if not partial.base:
                del self.pools[node][name]

    def send(self, node: str, argv: Sequence[str]) -> list[Piece]:
        """Return what a stream announces. Raises ZfsError."""
        root, _, goal = argv[-1].partition("@")
        self._open(node, argv[-1])
        option = next((one for one in argv if one in ("-i", "-I")), None)
        base = argv[argv.index(option) + 1].partition("@")[2] if option else None
        if base:
            self._open(node, f"{root}@{base}")
        snaps = self.pools[node][root].snaps
        if base and snaps[base].txg >= snaps[goal].txg:
            raise ZfsError(f"incremental source ({root}@{base}) is not earlier than it")
        within = self.below(node, root) if "-R" in argv else [root]
        history = option == "-I" or ("-R" in argv and not base)
        return [
            self._piece(node, name, name[len(root) :], base, goal, history=history)
            for name in within
            if goal in self.pools[node][name].snaps
        ]

    def _piece(
        self, node: str, name: str, relative: str, base: str | None, goal: str, *, history: bool
    ) -> Piece:
        dataset = self.pools[node][name]
        snaps = dataset.snaps
        begin = snaps.get(base) if base else None
        after = begin.txg if begin else -1
        wanted = [
            (one, snap)
            for one, snap in sorted(snaps.items(), key=lambda item: item[1].txg)
            if one == goal or (history and after < snap.txg < snaps[goal].txg)
        ]
        names = tuple((snap.guid, one) for one, snap in snaps.items())
        guid = begin.guid if begin else None
        props = tuple((key, value) for key, (value, _) in dataset.props.items())
        return Piece(name, relative, guid, tuple(wanted), names, props)

    def _receiving(
        self,
        sender: str,
        node: str,
        into: str,
        pieces: Sequence[Piece],
        *,
        replicate: bool,
        keep: bool,
    ) -> Iterator[Action]:
        """Receive a stream at an exact name, one action per change. Raises ZfsError.

        A dataset is sent when its turn comes: a goal that was renamed meanwhile is skipped. `keep`
        what is received of a snapshot, if it is cut.
        """
        if replicate:
            yield from self._follow_names(node, into, pieces)
        skipped = ""
        for piece in pieces:
            here = self.pools[sender].get(piece.dataset)
            goal, snap = piece.snaps[-1]
            if here is None or here.snaps.get(goal) != snap:
                skipped = f"{piece.dataset}@{goal}"
                continue
            name = f"{into}{piece.relative}"
            for part in _parts(piece) if keep else (piece,):
                if part.base is None:
                    yield from self._receive_full(node, name, part, keep=keep)
                else:
                    yield from self._receive_incremental(node, name, part, keep=keep)
        if skipped:
            raise SendError(f"WARNING: could not send {skipped}: does not exist")

    def _follow_names(self, node: str, into: str, pieces: Sequence[Piece]) -> Iterator[Action]:
        """The receiver of a tree renames datasets and snapshots by guid before it receives."""
        for piece in (*pieces, *pieces):  # a second time for those that were in each other's way
            name = f"{into}{piece.relative}"
            for one in self.below(node, into):
                here = self.pools[node].get(one)  # gone, if its parent was renamed just now
                if here and piece.base and one != name and here.at(piece.base):
                    taken = name in self.pools[node]
                    yield self._moving(node, one, f"{into}/recv-1-{self.steps}" if taken else name)
        for piece in pieces:
            name = f"{into}{piece.relative}"
            dataset = self.pools[node].get(name)
            for guid, label in piece.names if dataset else ():
                assert dataset is not None
                old = dataset.at(guid)
                if old is None or old == label or old.startswith("recv-"):
                    continue
                new = f"recv-1-{self.steps}" if label in dataset.snaps else label
                yield self._relabeling(dataset, name, old, new)

    def _relabeling(self, dataset: Dataset, name: str, old: str, new: str) -> Action:
        def do() -> None:
            dataset.snaps[new] = dataset.snaps.pop(old)

        return Action(("(receive) rename", f"{name}@{old}", new), do)

    def _arrived(self, piece: Piece) -> dict[str, Snap]:
        return {
            name: replace(
                snap, source="received", txg=self.next_txg(), born=snap.age, data=True, held=False
            )
            for name, snap in piece.snaps
        }

    def _check_no_partial(self, node: str, name: str) -> None:
        if name in self.partials(node):
            raise ZfsError(
                f"cannot receive: destination {name} contains partially-complete state from"
                ' "zfs receive -s".'
            )

    def _receive_full(self, node: str, name: str, piece: Piece, *, keep: bool) -> Iterator[Action]:
        """A dataset without a snapshot comes first; if the receive is cut, it is taken away."""
        self._check_no_partial(node, name)
        if name in self.pools[node]:
            raise ZfsError(
                f"cannot receive new filesystem stream: destination '{name}' exists\n"
                "must specify -F to overwrite it"
            )
        if name.rpartition("/")[0] not in self.pools[node]:
            raise ZfsError(f"cannot open '{name}': dataset does not exist")
        txg = self.next_txg()
        new = Dataset(txg, txg)

        def begin() -> None:
            self.pools[node][name] = new
            self.made.add(new.ident)
            if keep:
                new.partial = _partial(piece)
                new.props.update({key: (value, "received") for key, value in piece.props})
            else:
                self.unfinished.add((node, name))

        def end() -> None:
            self.full_streams.append(f"{node}:{name}")
            self.unfinished.discard((node, name))
            self._arrive(new, piece)

        yield Action(("(receive) begin", name), begin)
        yield Action(("(receive) full", name), end)

    def _arrive(self, dataset: Dataset, piece: Piece) -> None:
        dataset.partial = None
        dataset.snaps.update(self._arrived(piece))
        for key, value in piece.props:
            if dataset.props.get(key, ("", ""))[1] != "local":
                dataset.props[key] = (value, "received")

    def _receive_incremental(
        self, node: str, name: str, piece: Piece, *, keep: bool
    ) -> Iterator[Action]:
        self._check_no_partial(node, name)
        dataset = self.pools[node].get(name)
        if dataset is None:
            raise ZfsError(
                f"cannot receive incremental stream: destination '{name}' does not exist"
            )
        self._check_incremental(dataset, name, piece)

        def begin() -> None:
            dataset.partial = _partial(piece)

        if keep:
            yield Action(("(receive) begin", name), begin)
        yield Action(("(receive) incremental", name), lambda: self._arrive(dataset, piece))

    def _check_incremental(self, dataset: Dataset, name: str, piece: Piece) -> None:
        base = dataset.snaps.get(dataset.at(piece.base or "") or "")
        if dataset.snaps and (
            base is None or any(s.data and s.txg > base.txg for s in dataset.snaps.values())
        ):
            raise ZfsError(
                f"cannot receive incremental stream: most recent snapshot of {name} does not\n"
                "match incremental source"
            )
        if dataset.written or not dataset.snaps:
            raise ZfsError(
                f"cannot receive incremental stream: destination {name} has been modified\n"
                "since most recent snapshot"
            )
        if clash := [one for one, _ in piece.snaps if one in dataset.snaps]:
            raise ZfsError(f"cannot restore to {name}@{clash[0]}: destination already exists")

    def _going_on(self, sender: str, node: str, name: str, token: str) -> Iterator[Action]:
        """Receive the rest of what was cut; cut again, it can go on once more."""
        partial = Partial.of(token)
        piece = self._rest_of(sender, partial)
        dataset = self.pools[node].get(name)
        if dataset is None or dataset.partial != partial:
            raise ZfsError(f"cannot receive resume stream: {name} has no such partial state")
        if partial.base:
            self._check_incremental(dataset, name, piece)

        def end() -> None:
            self.resumed.add((node, partial))
            ((label, snap),) = piece.snaps
            self.bare |= {snap.guid} if snap.rid else set()
            self._arrive(dataset, replace(piece, snaps=((label, replace(snap, rid=None)),)))

        yield Action(("(receive) resumed", name), end)

    def _carry(
        self, node: str, pairs: Sequence[tuple[Sequence[str], Sequence[str]]], *, gap: bool
    ) -> Iterator[Action]:
        """Run several streams over one connection, each if the one before it did well."""
        for number, (words, into) in enumerate(pairs, start=1):
            sender = node_of(words[0])
            if "-t" in words:
                if not gap or number < len(pairs):
                    yield from self._going_on(sender, node, into[-1], words[-1])
                continue
            try:
                pieces = self.send(sender, words[1:])
            except ZfsError as error:
                raise SendError(str(error)) from error
            if gap and number == len(pairs):
                pieces = pieces[:-1]
            where = landing(words[-1], into)
            yield from self._receiving(
                sender, node, where, pieces, replicate="-R" in words, keep="-s" in into
            )

    def transfer(
        self,
        senders: Sequence[Sequence[str]],
        receiver: Sequence[str],
        _fds: Sequence[int],
        _passage: object,
    ) -> Transfer:
        """Stand in for transport.transfer."""
        node, *commands = receiver
        self.transfers += 1
        pairs = [(w, into.split("\0")) for w, into in zip(senders, commands, strict=True)]
        actions = self._carry(node, pairs, gap=self.trouble.gap == self.transfers)
        sent, received = Stage("zfs send", 0, ""), Stage("zfs receive", 0, "")
        if self.trouble.lie == self.transfers:
            received = Stage("zfs receive", 1, "cannot receive: I/O error")
        try:
            self.check_alive(node)
            for action in actions:
                self._do(node, action, actions)
        except SendError as error:
            sent = Stage("zfs send", 1, str(error))
        except ZfsError as error:
            sent, received = Stage("zfs send", -13, ""), Stage("zfs receive", 1, str(error))
        except NoAnswer as error:
            received = Stage("ssh zfs receive", 255, str(error))
        return Transfer(1, (sent, received))

    def _do(self, node: str, action: Action, rest: Iterator[Action]) -> None:
        try:
            with self.step(node, action.words):
                action.do()
        except Killed:
            if self.trouble.orphans and self.orphan is None:
                self.orphan = Orphan(node, _chain(action, rest))
            raise


def _partial(piece: Piece) -> Partial:
    ((label, snap),) = piece.snaps
    return Partial(snap.guid, piece.base or "", f"{piece.dataset}@{label}")


def _parts(piece: Piece) -> Iterator[Piece]:
    """Return the stream of each snapshot: only the one that is cut is received in part."""
    base = piece.base
    for label, snap in piece.snaps:
        yield replace(piece, base=base, snaps=((label, snap),))
        base = snap.guid


def _chain(first: Action, rest: Iterator[Action]) -> Iterator[Action]:
    yield first
    yield from rest


def _properties(dataset: Dataset, snap: Snap | None) -> dict[str, tuple[str, str]]:
    if snap is None:
        fresh = dataset.partial is not None and not dataset.partial.base
        return {
            "guid": (str(dataset.ident), "-"),
            "creation": (str(EPOCH + 60 * dataset.txg), "-"),
            "createtxg": (str(dataset.txg), "-"),
            "written": (str(4096 if fresh else dataset.written), "-"),
            TOKEN: (dataset.partial.token if dataset.partial else "-", "-"),
        }
    return {
        "guid": (snap.guid, "-"),
        "creation": (str(EPOCH + 60 * snap.age), "-"),
        "createtxg": (str(snap.txg), "-"),
        "used": ("4096", "-"),
        RID: (snap.rid, snap.source) if snap.rid else ("-", "-"),
    }


def node_of(program: str) -> str:
    """Return the node of a program's path in a world: /NODE/zfs."""
    return program.split("/")[1]


def landing(sent: str, receive: Sequence[str]) -> str:
    """Return the name at which a stream's root is received."""
    if "-d" in receive:
        return f"{receive[receive.index('-d') + 1]}/{sent.partition('@')[0].split('/', 1)[1]}"
    return receive[-1]
