"""Decides how a dataset tree, its snapshots and the two sides of a sync resource are spoken of.

It holds values only: it never runs a command, never reads a clock and never judges.
"""

import marshal
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import NamedTuple

_KEPT = re.compile(r"\.\d{8}T\d{6}Z-\d{1,6}")

_SINCE = "none@"
_REPAIR = "resync:"

ROOT = ""  # the relative name of the root of a tree

MARK = "zfs_sync:replica"  # on a root: see Standing
SWAP = (
    "zfs_sync:swap"  # on a replica's root: <name> <guid> of the old copy that it takes the place of
)
RETAINED = "zfs_sync:retained"  # on a root: <snapshot>=<node>,<node>;... (src), <snapshot>= (dst)
TARGETS = "zfs_sync:targets"  # on the src's root: <service>/<rid>=<node>,<node>;... shown to hold
RID = "zfs_sync:rid"  # on every own snapshot: <service>/<rid>


class Snapshot(NamedTuple):
    """One snapshot; `guid` is what it is, `name` (after the @) only where it was put.

    `rid` is its mark; `taken_here` tells whether that is local, not received with a stream.
    `written` counts the bytes written between the snapshot before it and this one.
    """

    name: str
    guid: str
    creation: int
    createtxg: int = 0
    rid: str | None = None
    taken_here: bool = False
    written: int | None = None

    @property
    def order(self) -> tuple[int, int]:
        """Return what sorts the snapshots of one dataset by age; creation has ties, txg has not."""
        return (self.createtxg, self.creation)


class Dataset(NamedTuple):
    """One filesystem or volume; `name` is relative to its tree's root, which is ''.

    `snapshots` holds the own names alone until a deep listing made it `complete`. `written` counts
    the bytes written since the last snapshot, None where ZFS does not tell. `partial` is the
    receive that was cut there.
    """

    name: str
    creation: int
    createtxg: int = 0
    written: int | None = None
    snapshots: Mapping[str, Snapshot] = {}
    complete: bool = False
    partial: "Partial | None" = None

    def by_guid(self, guid: str) -> Snapshot | None:
        """Return the snapshot with that guid under whatever name, None if the dataset has none."""
        return next((snap for snap in self.snapshots.values() if snap.guid == guid), None)


class Partial(NamedTuple):
    """A receive that was cut and can go on: its token, and what the token says once it was read.

    `guid` and `snapshot` (full name) are those of the snapshot that was on its way.
    """

    token: str
    guid: str | None = None
    snapshot: str = ""


class Packed(Mapping[str, Dataset]):
    """Datasets by name, sorted, so parents first; each is made anew whenever it is asked for.

    A run has four trees at a time, and one of ten thousand datasets with two snapshots each takes
    8 MB as objects, 2 MB as this. The bytes never leave the process.
    """

    def __init__(self, datasets: Iterable[Dataset]) -> None:
        self._rows: dict[str, bytes] = {}
        for name, creation, createtxg, written, snapshots, complete, partial in datasets:
            held = [tuple(snapshot) for snapshot in snapshots.values()]
            rest = tuple(partial) if partial else None
            row = (creation, createtxg, written, held, complete, rest)
            self._rows[name] = marshal.dumps(row)
        self._rows = dict(sorted(self._rows.items()))

    def __getitem__(self, name: str) -> Dataset:
        row = marshal.loads(self._rows[name])  # noqa: S302 - nobody else's bytes
        creation, createtxg, written, held, complete, rest = row
        snapshots = {one[0]: Snapshot(*one) for one in held}
        partial = Partial(*rest) if rest else None
        return Dataset(name, creation, createtxg, written, snapshots, complete, partial)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._rows


@dataclass(frozen=True)
class Tree:
    """The datasets of a root (full name), by relative name, parents before children."""

    root: str
    datasets: Mapping[str, Dataset]

    def full(self, relative: str) -> str:
        """Return the full name of the dataset with that relative name."""
        return f"{self.root}/{relative}" if relative else self.root

    def guids(self, snapshot: str) -> dict[str, str]:
        """Return relative name -> guid over the datasets that hold a snapshot of that name."""
        return {
            name: dataset.snapshots[snapshot].guid
            for name, dataset in self.datasets.items()
            if snapshot in dataset.snapshots
        }


@dataclass(frozen=True)
class Capabilities:
    """What one side's zfs says that it can do, read from its own usage text.

    `send` and `receive` are the letters of their flags, `written` tells of the property.
    """

    zfs: tuple[str, ...] = ("zfs",)  # the words that run it there, with the path that was found
    send: frozenset[str] = frozenset()
    receive: frozenset[str] = frozenset()
    written: bool = False

    @property
    def resumes(self) -> bool:
        """Whether it can go on with a transfer that was cut, as the one side or the other."""
        return "s" in self.receive and "t" in self.send

    @property
    def estimates(self) -> bool:
        """Whether it tells the size of a stream without sending it."""
        return {"n", "P"} <= self.send


@dataclass(frozen=True)
class Standing:
    """What the mark zfs_sync:replica of a root says; all None where there is none.

    `replica_of` is <source node>/<service>/<rid>, `source_since` the epoch of a takeover (0: by
    hand), `repair` the mark that it had, or gets, while a syncresync is under way.
    """

    replica_of: str | None = None
    source_since: int | None = None
    repair: str | None = None

    @property
    def value(self) -> str:
        """Return the property's value, which parse_standing reads back; '' for no mark."""
        if self.repair:
            return f"{_REPAIR}{self.repair}"
        if self.source_since is not None:
            return f"{_SINCE}{self.source_since}"
        return self.replica_of or ""


def parse_standing(value: str | None) -> Standing:
    """Return what a mark says.

    >>> parse_standing("none@1276950000").source_since
    1276950000
    >>> parse_standing("osol1/web/sync#1").replica_of
    'osol1/web/sync#1'
    """
    if not value:
        return Standing()
    if value.startswith(_REPAIR):
        return Standing(repair=value.removeprefix(_REPAIR))
    if value == "none" or value.startswith(_SINCE):
        since = value.removeprefix(_SINCE)
        return Standing(source_since=int(since) if since.isdecimal() else 0)
    return Standing(replica_of=value)


@dataclass(frozen=True)
class SourceView:
    """The source as one observation saw it; only properties with source `local` are in it.

    `retained` and `targets` are this resource's own: another one may share the src. `source_since`
    is the epoch of its takeover, `half_built` tells that a syncresync of it did not come to its
    end.
    """

    tree: Tree
    replica_of: str | None
    retained: Mapping[str, frozenset[str]]
    targets: frozenset[str]
    can: Capabilities
    source_since: int | None = None
    half_built: bool = False


@dataclass(frozen=True)
class TargetView:
    """One target as one observation saw it; `tree` is None where dst does not exist.

    `mark`, `source_since` and `repair` are its Standing, `swap` is what SWAP says. `follows`: it
    was found to go over to the source that looks, see handover.
    """

    node: str
    dst: str
    tree: Tree | None
    mark: str | None
    retained: Mapping[str, frozenset[str]]
    clock_offset: int
    missing_parents: tuple[str, ...]
    state_text: str | None  # the state file that the target holds
    can: Capabilities
    source_since: int | None = None
    repair: str | None = None
    swap: str | None = None
    follows: bool = False


@dataclass(frozen=True)
class Identity:
    """Who sends: the texts by which the agent knows its own marks again.

    `peers` are the nodes of the service file: each of them may be the source at another time.
    """

    source: str
    service: str
    rid: str
    peers: frozenset[str] = frozenset()

    @property
    def rid_value(self) -> str:
        """Return what stands in zfs_sync:rid of every own snapshot."""
        return f"{self.service}/{self.rid}"

    @property
    def mark(self) -> str:
        """Return what stands in zfs_sync:replica of a replica of this source."""
        return f"{self.source}/{self.service}/{self.rid}"


@dataclass(frozen=True)
class Names:
    """The snapshot names that belong to one resource, by its snap_prefix."""

    prefix: str = ""

    @property
    def sent(self) -> str:
        """Return the name of A, the last snapshot that the targets hold."""
        return f"{self.prefix}sent"

    @property
    def tosend(self) -> str:
        """Return the name of B, the intent."""
        return f"{self.prefix}tosend"

    def tosend_for(self, node: str) -> str:
        """Return the name of the snapshot with which one node joins or catches up."""
        return f"{self.prefix}tosend.{node}"

    def kept(self, snapshot: Snapshot) -> str:
        """Return the name under which a base is kept: the same at every call, so a cut is found."""
        created = datetime.fromtimestamp(snapshot.creation, tz=timezone.utc)
        return f"{self.prefix}sent.{created:%Y%m%dT%H%M%SZ}-{snapshot.guid[-6:]}"

    def is_kept(self, name: str) -> bool:
        """Tell whether a name is one that `kept` makes."""
        return name.startswith(f"{self.sent}.") and bool(_KEPT.fullmatch(name, len(self.sent)))

    def is_own(self, name: str) -> bool:
        """Tell whether a name is of the agent's; the name alone permits nothing."""
        return (
            name in (self.sent, self.tosend)
            or self.is_kept(name)
            or name.startswith(f"{self.prefix}tosend.")
        )

    def own(self, value: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
        """Return the entries of a property that are this resource's."""
        return {name: nodes for name, nodes in value.items() if self.is_own(name)}


def parse_nodes(value: str | None) -> dict[str, frozenset[str]]:
    """Return name -> nodes from a property value `name=node,node;name=`.

    The names are snapshots' (RETAINED) or resources' (TARGETS).

    >>> parse_nodes("sent.x=osol2,osol3;tosend.osol4=osol4;sent.y=")["sent.y"]
    frozenset()
    """
    found = {}
    for entry in (value or "").split(";"):
        name, equals, nodes = entry.partition("=")
        if equals:
            found[name] = frozenset(node for node in nodes.split(",") if node)
    return found


def format_nodes(value: Mapping[str, frozenset[str]]) -> str:
    """Return the property value that parse_nodes reads back; '' for nothing."""
    return ";".join(f"{name}={','.join(sorted(nodes))}" for name, nodes in sorted(value.items()))
