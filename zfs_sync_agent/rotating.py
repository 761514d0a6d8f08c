"""Decides how B becomes @sent, on the target and on the source, and which bases are kept for whom.

It is pure. The order of the commands is such that a kill between any two leaves a state from which
the next run goes on, and no snapshot that is needed or of which nobody knows.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from check_zfs_sync.service import SyncResource
from zfs_sync_agent import pairing, zfs
from zfs_sync_agent.model import (
    RETAINED,
    ROOT,
    Dataset,
    Identity,
    Names,
    Snapshot,
    SourceView,
    TargetView,
    Tree,
    format_nodes,
)
from zfs_sync_agent.pairing import Stand


class Listing:
    """Who holds which snapshot name, kept true while the plan adds commands."""

    def __init__(self, tree: Tree, *, recursive: bool) -> None:
        self.tree = tree
        self.recursive = recursive
        self.holders: defaultdict[str, set[str]] = defaultdict(set)
        for name, dataset in tree.datasets.items():
            for snapshot in dataset.snapshots:
                self.holders[snapshot].add(name)

    def _is_whole(self, snapshot: str, datasets: set[str]) -> bool:
        """-r is right only where it hits these alone: it would take a foreign child's @sent."""
        return self.recursive and ROOT in datasets and self.holders[snapshot] == datasets

    def rename(self, old: str, new: str, datasets: set[str]) -> list[zfs.Change]:
        """Return what renames a snapshot of these datasets."""
        whole = self._is_whole(old, datasets)
        self.holders[old] = self.holders[old] - datasets
        self.holders[new] = self.holders[new] | datasets
        if whole:
            return [zfs.rename_snapshot(self.tree.root, old, new, recursive=True)]
        return [
            zfs.rename_snapshot(self.tree.full(name), old, new, recursive=False)
            for name in sorted(datasets)
        ]

    def destroy(self, snapshot: str, datasets: set[str]) -> list[zfs.Change]:
        """Return what destroys a snapshot of these datasets."""
        whole = self._is_whole(snapshot, datasets)
        self.holders[snapshot] = self.holders[snapshot] - datasets
        if whole:
            return [zfs.destroy_snapshot(self.tree.root, snapshot, recursive=True)]
        return [
            zfs.destroy_snapshot(self.tree.full(name), snapshot, recursive=False)
            for name in sorted(datasets)
        ]


@dataclass(frozen=True)
class Rotation:
    """What names the proven goal @sent on the target, after `marks` (snapshots to mark as own)."""

    marks: tuple[str, ...]
    changes: tuple[zfs.Change, ...]


def half_rotated(
    source: Tree, target: TargetView, resource: SyncResource, who: Identity, found: list[Stand]
) -> tuple[zfs.Change, ...]:
    """Return the rest of a rotation that was cut on the target, towards what it holds now.

    Otherwise its @tosend, or its old @sent, would be in the way of the next one. What is gone on
    the source is left alone: it would pass for seen by an earlier run.
    """
    assert target.tree is not None  # noqa: S101 - the caller branches on it
    names = Names(resource.snap_prefix)
    want = {
        stand.target: stand.common.guid
        for stand in found
        if stand.target is not None
        and stand.common is not None
        and names.is_own(stand.common.name)
        and not stand.has_goal
        and not pairing.lost_on_source(
            source.datasets[stand.relative], target.tree.datasets[stand.target], who
        )
    }
    intents = {names.tosend, names.tosend_for(target.node)}
    known = cache(lambda: ages(source))

    def is_cut(twin: Dataset, guid: str) -> bool:
        held = twin.by_guid(guid)
        misnamed = held is not None and held.name != names.sent and names.is_own(held.name)
        begun = any(
            twin.snapshots[name].rid is not None or twin.snapshots[name].guid in known()
            for name in intents & twin.snapshots.keys()
        )
        return begun or (misnamed and names.sent in twin.snapshots)

    cut = any(is_cut(target.tree.datasets[twin], guid) for twin, guid in want.items())
    if not cut or not (target.mark or target.follows):
        return ()
    listing = Listing(target.tree, recursive=resource.recursive)
    return _rotate_to(listing, known(), want, who, names).changes


def rotate_target(
    source: Tree, target: TargetView, goal: str, resource: SyncResource, who: Identity
) -> Rotation:
    """Return the rotation of a target on which the goal is proven (wholly, or but for broken ones).

    Own snapshots with another guid go first, the goal is renamed last: cut in between, the goal is
    found by its guid. What is unmarked and unknown to the source stays.
    """
    tree = target.tree
    assert tree is not None  # noqa: S101 - it was proven there
    guids = source.guids(goal)
    want = {
        twin: guids[name]
        for name, twin in pairing.pair(source, tree).items()
        if name in guids and tree.datasets[twin].by_guid(guids[name])
    }
    names = Names(resource.snap_prefix)
    listing = Listing(tree, recursive=resource.recursive)
    known = ages(source)
    aside: list[zfs.Change] = []
    for name, dataset in tree.datasets.items():
        if resource.recursive and name not in want and pairing.is_ours(dataset, who):
            aside += _set_aside(listing, dataset, names, source, known)
    rotation = _rotate_to(listing, known, want, who, names)
    return Rotation(rotation.marks, (*aside, *rotation.changes))


def ages(source: Tree) -> dict[str, tuple[int, int]]:
    """Return the guids of all snapshots of a tree, each with its order among the others."""
    one: dict[tuple[int, int], tuple[int, int]] = {}  # what -r takes is of one age
    return {
        snap.guid: one.setdefault(snap.order, snap.order)
        for dataset in source.datasets.values()
        for snap in dataset.snapshots.values()
    }


def _rotate_to(
    listing: Listing,
    known: Mapping[str, tuple[int, int]],
    want: Mapping[str, str],
    who: Identity,
    names: Names,
) -> Rotation:
    """Return what makes the snapshot with the wanted guid @sent, per dataset of the target.

    `known` are the ages of the source's.
    """
    tree = listing.tree
    changes: list[zfs.Change] = []
    own: dict[str, set[str]] = {}
    for name, guid in want.items():
        for snap in tree.datasets[name].snapshots.values():
            mine = snap.rid is not None or snap.guid in known
            newer = snap.guid in known and known[snap.guid] > known[guid]
            if _is_agents_name(names, snap) and mine and snap.guid != guid and not newer:
                own.setdefault(snap.name, set()).add(name)
    for snapshot, holders in sorted(own.items()):
        changes += listing.destroy(snapshot, holders)
    under: dict[str, set[str]] = {}
    marks = []
    for name, guid in want.items():
        at = tree.datasets[name].by_guid(guid)
        assert at is not None  # noqa: S101 - want holds only those that have it
        marks += [f"{tree.full(name)}@{at.name}"] if at.rid != who.rid_value else []
        if at.name != names.sent and _is_agents_name(names, at):
            under.setdefault(at.name, set()).add(name)
    for snapshot, holders in sorted(under.items()):
        changes += listing.rename(snapshot, names.sent, holders)
    return Rotation(tuple(marks), tuple(changes))


def _is_agents_name(names: Names, snap: Snapshot) -> bool:
    """Tell whether a snapshot has a name of ours, or one that a cut receive left (recv-PID-N)."""
    return names.is_own(snap.name) or (snap.name.startswith("recv-") and snap.rid is not None)


def _set_aside(
    listing: Listing, dataset: Dataset, names: Names, source: Tree, known: Container[str]
) -> list[zfs.Change]:
    """Take the own names of a dataset that is gone on the source out of the way of -r.

    A child that lags or is broken keeps them: its guids are known to the source, or its twin is.
    """
    own = [s for s in dataset.snapshots.values() if names.is_own(s.name) and s.rid]
    if dataset.name in source.datasets or any(snap.guid in known for snap in own):
        return []
    return [
        change
        for snap in own
        if snap.name != names.kept(snap)
        for change in listing.rename(snap.name, names.kept(snap), {dataset.name})
    ]


@dataclass(frozen=True)
class Finish:
    """What rotates the source: the properties and commands, in the order in which they must run.

    `retained` is the property's value while the commands run, `cleaned` that after them.
    """

    retained: Mapping[str, frozenset[str]]
    changes: tuple[zfs.Change, ...]
    dropped: tuple[zfs.Change, ...]
    cleaned: Mapping[str, frozenset[str]]


def finish_source(
    source: SourceView,
    names: Names,
    needs: Mapping[str, frozenset[str]],
    *,
    recursive: bool,
    rotate: bool,
) -> Finish:
    """Return the rotation of the source; `needs` is snapshot name -> nodes that may still need it.

    Order: the property, A to its kept name (or destroyed, if nobody needs it), B to @sent, then
    what was dropped. The property names a snapshot as long as it exists, so that a cut leaves none
    behind that the fast path does not ask for.
    """
    tree = source.tree
    listing = Listing(tree, recursive=recursive)
    holders = {name: held for name, held in listing.holders.items() if names.is_own(name)}
    retained = {name: nodes for name, nodes in needs.items() if nodes}
    retained |= {name: frozenset() for name in source.retained if name not in retained}
    changes: list[zfs.Change] = []
    if rotate and names.tosend in holders:
        old = holders.get(names.sent, set())
        changes += _retire(listing, names, old, holders[names.tosend], retained)
        changes += listing.rename(names.tosend, names.sent, holders[names.tosend])
    dropped: list[zfs.Change] = []
    for name in sorted(retained):
        if not retained[name] and (names.is_kept(name) or name.startswith(f"{names.tosend}.")):
            dropped += listing.destroy(name, holders.get(name, set()))
    cleaned = {name: nodes for name, nodes in retained.items() if nodes}
    return Finish(retained, tuple(changes), tuple(dropped), cleaned)


def _retire(
    listing: Listing,
    names: Names,
    old: set[str],
    new: set[str],
    retained: dict[str, frozenset[str]],
) -> list[zfs.Change]:
    """Keep A where a node may need it, destroy it else; `retained` then speaks of the new names.

    Where no B takes its place A stays @sent: nothing was written there, or B was destroyed.
    """
    needed_old = retained.pop(names.sent, frozenset())
    needed_new = retained.pop(names.tosend, frozenset())
    # Of B, if a run was cut after A was dropped; else of the A that stays.
    if ROOT not in old or not old <= new:
        needed_new |= needed_old
    old = old & new
    if needed_new:
        retained[names.sent] = needed_new
    if old and needed_old:
        kept = kept_name(listing.tree, names, old, names.sent)
        retained[kept] = retained.get(kept, frozenset()) | needed_old
        return listing.rename(names.sent, kept, old)
    return listing.destroy(names.sent, old) if old else []


def kept_name(tree: Tree, names: Names, holders: Iterable[str], snapshot: str) -> str:
    """Return one kept name for a snapshot of the whole tree: that of its topmost holder."""
    return names.kept(tree.datasets[min(holders)].snapshots[snapshot])


def rename_own(tree: Tree, old: str, new: str, *, recursive: bool) -> list[zfs.Change]:
    """Return the renaming of an own snapshot of the source wherever it is."""
    return Listing(tree, recursive=recursive).rename(old, new, set(tree.guids(old)))


@dataclass(frozen=True)
class Knowledge:
    """What a run knows of one target at its end.

    `proven`: a listing showed B on every dataset. `listing`: the last one, None if there is none or
    something was sent after it; `may_hold_goal` is the latter.
    """

    proven: bool
    listing: TargetView | None
    may_hold_goal: bool


NOTHING_KNOWN = Knowledge(proven=False, listing=None, may_hold_goal=False)


def needs(
    source: SourceView,
    names: Names,
    known: Mapping[str, Knowledge],
    *,
    leftover: bool,
    rotate: bool,
) -> dict[str, frozenset[str]]:
    """Return own snapshot name -> the configured targets that may still need it.

    A target not proven by a listing counts as holding A or B; B only if a send of it may have begun
    (in this run, or in one before if B is a `leftover`). One that is proven needs nothing: in what
    is not in B's tree it holds A, which stays @sent, unless that is something older.
    """
    found: dict[str, set[str]] = {}
    for node, what in known.items():
        wanted = None if what.listing is None else _held_names(source, names, what.listing)
        if what.proven and (wanted is None or wanted <= {names.tosend, names.sent}):
            continue
        if wanted is None:
            begun = what.may_hold_goal or leftover
            wanted = _assumed_names(source, names, node) | ({names.tosend} if begun else set())
        for name in wanted:
            found.setdefault(name, set()).add(node)
    if not rotate:
        # A and B stay as they are. Who is not in the property counts as holding A, so it has to
        # name A only for those that it names for something else.
        found.pop(names.tosend, None)
        named = {node for name, nodes in found.items() if name != names.sent for node in nodes}
        named |= source.retained.get(names.sent, frozenset())
        found[names.sent] = found.get(names.sent, set()) & named
    return {name: frozenset(nodes) for name, nodes in found.items() if nodes}


def _held_names(source: SourceView, names: Names, listing: TargetView) -> set[str] | None:
    """Return the own names of what a target holds; None where a replica is gone.

    Someone may have renamed it and rename it back: its base is not dropped for that.
    """
    if listing.tree is None:
        return None if listing.node in source.targets else set()
    pairs = pairing.pair(source.tree, listing.tree)
    held = set()
    for name, twin in pairs.items():
        guids = {snap.guid for snap in listing.tree.datasets[twin].snapshots.values()}
        own = [
            snap
            for snap in source.tree.datasets[name].snapshots.values()
            if names.is_own(snap.name) and snap.guid in guids
        ]
        if own:
            held.add(max(own, key=lambda snap: snap.order).name)
        elif not listing.tree.datasets[twin].complete:  # it may be there under another name
            held |= _assumed_names(source, names, listing.node)
    return held


def _assumed_names(source: SourceView, names: Names, node: str) -> set[str]:
    """Return what a target may hold of which there is no listing: what it held last, at least A.

    A name in the property that no snapshot has (a run was cut before it renamed A to it) is A.
    """
    entries = {name for name, nodes in source.retained.items() if node in nodes}
    existing = {
        name for name in entries if any(name in d.snapshots for d in source.tree.datasets.values())
    }
    if entries - existing or (not entries and node in source.targets):
        existing.add(names.sent)
    return existing


def retain(
    root: str,
    names: Names,
    value: Mapping[str, frozenset[str]],
    now: Mapping[str, frozenset[str]],
) -> zfs.Change:
    """Return the command that writes zfs_sync:retained; what others have in it `now` stays."""
    others = {name: nodes for name, nodes in now.items() if not names.is_own(name)}
    return zfs.set_property(root, RETAINED, format_nodes({**others, **value}))
