"""Decides what a target gets in a run, and what has to go before; guids decide, never names.

It is pure: it runs no command, reads no clock and no file. A name, a mark or a state file may make
it refuse; only a guid that both sides hold lets it write.

A is the source's @sent, B its @tosend. Which interruption leads where:

- killed after B was taken: (A,B), the targets at A. B is finished first, then a new one is taken.
- killed while B was received: some datasets at B, some at A, some under a name in between. What
  lacks B is sent again from what both sides hold.
- killed, or the answer lost, after the target had B: B is found there by its guid, nothing is sent.
- killed while the target rotated: B under either name; the rotation goes on from the listing.
- killed while the source rotated: (-,B) with a kept base or with B on a target; it is renamed on.

Invariants, each with the test that holds it, stand in zfs_sync(7).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from check_zfs_sync.service import SyncResource
from zfs_sync_agent import judge, pairing, rotating, zfs
from zfs_sync_agent.errors import UNTOUCHED, Refused
from zfs_sync_agent.model import (
    MARK,
    ROOT,
    Dataset,
    Identity,
    Names,
    Snapshot,
    SourceView,
    TargetView,
    Tree,
)
from zfs_sync_agent.pairing import Stand


@dataclass(frozen=True)
class Branch:
    """What one target gets in this run; nothing in it has been done yet.

    `before` comes first, while the names are still those of the listing. `broken` names the
    children without a common snapshot: they are left alone, the others go on. `again`: names change
    by it, and what comes next has to be planned from a new listing.
    """

    node: str
    goal: str
    before: tuple[zfs.Change, ...] = ()
    streams: tuple[zfs.Stream, ...] = ()
    broken: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    again: bool = False

    @property
    def mode(self) -> str:
        """Return the word of the state file for what is sent."""
        if not self.streams:
            return "none"
        return "full" if any(stream.base is None for stream in self.streams) else "incremental"


def plan_branch(
    source: SourceView,
    target: TargetView,
    resource: SyncResource,
    who: Identity,
    goal: str,
    *,
    one_by_one: bool = False,
    skip: frozenset[str] = frozenset(),
) -> Branch:
    """Return what brings a target that judge.check_target let pass to the goal.

    `one_by_one` asks for a stream per dataset, for what a stream of the whole tree did not mend;
    those in `skip` and what is below them are left out. Raises Refused, BrokenChain.
    """
    if target.tree is None:
        if ROOT in skip:  # nothing can be received below it
            return Branch(target.node, goal)
        return Branch(
            target.node,
            goal,
            before=tuple(zfs.create_parent(parent) for parent in target.missing_parents),
            streams=_first_streams(source.tree, target, resource, goal),
        )
    found = pairing.stands(source.tree, target.tree, goal)
    _check_sent_is_ours(source, target, Names(resource.snap_prefix), found, goal)
    if cut := rotating.half_rotated(source.tree, target, resource, who, found):
        return Branch(target.node, goal, before=cut, again=True)
    broken = _broken_children(source, target, who, found, goal)
    left_out = (*broken, *skip)
    lacking = [
        stand
        for stand in found
        if not stand.has_goal
        and stand.relative not in left_out
        and not any(stand.relative.startswith(f"{name}/") for name in skip)
    ]
    gone = _Gone.of(source, target, resource, who)
    moved = gone.move_aside(found)
    streams = _streams(source.tree, target, resource, found, goal)
    if one_by_one or broken or streams is None:
        streams = _single_streams(source.tree, target, resource, lacking, goal)
    return Branch(
        target.node,
        goal,
        before=(
            *gone.destroy(),
            *_discards(target, resource, lacking),
            *moved,
            *_name_clashes(source, target, resource, who, lacking, goal=goal),
        ),
        streams=streams,
        broken=broken,
        warnings=gone.warnings,
    )


def is_sent(full: str, root: str, resource: SyncResource) -> bool:
    """Tell by its name whether a snapshot is one that the agent sends from below a root.

    With intermediary that is any: somebody else took it, and may have destroyed it since.
    """
    dataset, _, name = full.partition("@")
    sent = resource.intermediary or Names(resource.snap_prefix).is_own(name)
    return sent and (dataset == root or dataset.startswith(f"{root}/"))


def _pool_for(source: Tree, target: TargetView) -> str | None:
    """Return POOL where `receive -d POOL` maps the source's root to dst exactly."""
    pool = target.dst.split("/", 1)[0]
    below = source.root.partition("/")[2]
    return pool if below and target.dst == f"{pool}/{below}" else None


def _first_streams(
    source: Tree, target: TargetView, resource: SyncResource, goal: str
) -> tuple[zfs.Stream, ...]:
    """One -R stream, unless that would carry more than the goal.

    A full -R stream carries every older snapshot: those that intermediary=False says not to send,
    and own names that other runs rename meanwhile, which loses children silently.
    """
    names = source.guids(goal) or source.datasets
    history = any(set(source.datasets[name].snapshots) - {goal} for name in names)
    if resource.recursive and (resource.intermediary or not history) and len(names) > 1:
        pool = _pool_for(source, target)
        return (zfs.Stream(ROOT, None, goal, target.dst, True, False, pool),)
    everything = [Stand(name, None, None, has_goal=False) for name in names]
    return _single_streams(source, target, resource, everything, goal)


def _streams(
    source: Tree, target: TargetView, resource: SyncResource, found: list[Stand], goal: str
) -> tuple[zfs.Stream, ...] | None:
    """Return the one -R -i stream that does it all, () if nothing lacks, None if one cannot.

    It can where each dataset has the same base or is new on the source too: then it creates,
    renames and updates the children. A child that is lost on the target, or has the goal already,
    makes it stop half-way (zfs-fuse; newer ZFS skips the latter).
    """
    if all(stand.has_goal for stand in found):
        return ()
    if not resource.recursive or any(stand.has_goal for stand in found):
        return None
    taken = goal in source.datasets[ROOT].snapshots
    if taken and pairing.left_behind(source, goal):  # newer ZFS refuses to send such a tree
        return None
    bases = {stand.common.name for stand in found if stand.common}
    if len(bases) != 1 or found[0].relative != ROOT:
        return None
    base = bases.pop()
    names = {stand.relative for stand in found}
    lost = any(
        stand.target is None and base in source.datasets[stand.relative].snapshots
        for stand in found
    )
    orphan = any(name and name.rpartition("/")[0] not in names for name in names)
    copied = target.tree is not None and _is_copied(source, target.tree, found, base)
    if lost or orphan or copied or base not in source.datasets[ROOT].snapshots:
        return None
    pool = _pool_for(source, target)
    return (zfs.Stream(ROOT, base, goal, target.dst, True, resource.intermediary, pool),)


def _is_copied(source: Tree, target: Tree, found: list[Stand], base: str) -> bool:
    """Tell whether a dataset that is none of ours holds the base: a stream of the tree renames it.

    ZFS itself pairs by guid there, and would take somebody's copy for the replica.
    """
    paired = {stand.target for stand in found}
    guids = set(source.guids(base).values())
    return any(
        snap.guid in guids
        for name, dataset in target.datasets.items()
        if name not in paired
        for snap in dataset.snapshots.values()
    )


def _single_streams(
    source: Tree, target: TargetView, resource: SyncResource, lacking: list[Stand], goal: str
) -> tuple[zfs.Stream, ...]:
    pairs = pairing.pair(source, target.tree) if target.tree else {}
    guids = source.guids(goal)
    streams = []
    for stand in lacking:
        place = stand.target
        if place is None:
            place = _place(stand.relative, pairs, target.tree, guids)
        pairs[stand.relative] = place
        into = f"{target.dst}/{place}" if place else target.dst
        base = stand.common.name if stand.common else None
        pool = _pool_for(source, target) if stand.relative == ROOT else None
        streams.append(
            zfs.Stream(
                stand.relative,
                base,
                goal,
                into,
                False,
                bool(base) and resource.intermediary,
                pool,
            )
        )
    return tuple(streams)


def _place(
    name: str, pairs: Mapping[str, str], target: Tree | None, guids: Mapping[str, str]
) -> str:
    """Return where a dataset that is not on the target is received: its name, if it can be.

    A parent that was created after the goal is not there yet: then it goes below the nearest one
    that is. Another dataset may still have the name. The next stream of the tree moves it by guid.
    """
    parent, _, leaf = name.rpartition("/")
    while parent and parent not in pairs:
        parent = parent.rpartition("/")[0]
    above = pairs.get(parent, parent)
    place = f"{above}/{leaf}" if above else leaf
    taken = set(pairs.values())  # by what was renamed on the source, and is not yet on the target
    if place != name:
        taken |= set(target.datasets if target else ())
    return place + pairing.place_suffix(guids.get(name, "")) if place in taken else place


def _name_clashes(
    source: SourceView,
    target: TargetView,
    resource: SyncResource,
    who: Identity,
    lacking: list[Stand],
    *,
    goal: str,
) -> list[zfs.Change]:
    """Return what frees the snapshot names that are about to be given: ours are renamed aside.

    That is the goal's, and with -I those in between. A name that was used again on the source is
    there with another guid, or somebody used the goal's; someone may still want that snapshot, so
    it is refused by name.
    """
    assert target.tree is not None  # noqa: S101 - the caller branches on it
    names = Names(resource.snap_prefix)
    known = cache(lambda: rotating.ages(source.tree))
    changes = []
    for stand in lacking:
        if stand.target is None or stand.common is None:
            continue
        twin = target.tree.datasets[stand.target]
        full = target.tree.full(twin.name)
        for snap in source.tree.datasets[stand.relative].snapshots.values():
            other = twin.snapshots.get(snap.name)
            brought = resource.intermediary and snap.order > stand.common.order
            if not (brought or snap.name == goal) or other is None or other.guid == snap.guid:
                continue
            # The rest of a cut stream carries no mark.
            mine = other.rid == who.rid_value or other.guid in known()
            ours = names.is_own(other.name) and mine
            # Another resource of the same src uses its names again; they came with our stream.
            passenger = other.rid is not None and other.rid == snap.rid
            if (ours or passenger) and (target.mark or other.guid in known()):
                changes.append(_keep(full, other, names))
            elif brought or not ours:  # of a first sync that was cut the receive renames it itself
                raise _in_the_way(target, full, other, snap)
    return changes


def free_name(
    target: TargetView, twin: Dataset, snap: Snapshot, who: Identity, names: Names
) -> list[zfs.Change]:
    """Return what frees the name that a snapshot has by now for the rest of its stream.

    Where another target got it meanwhile it is @sent on the source, and an older one is here.
    """
    other = twin.snapshots.get(snap.name)
    if other is None or not target.mark or target.tree is None:
        return []
    ours = names.is_own(other.name) and other.rid == who.rid_value
    return [_keep(target.tree.full(twin.name), other, names)] if ours else []


def _keep(full: str, snap: Snapshot, names: Names) -> zfs.Change:
    return zfs.rename_snapshot(full, snap.name, names.kept(snap), recursive=False)


def _check_sent_is_ours(
    source: SourceView, target: TargetView, names: Names, found: list[Stand], goal: str
) -> None:
    """Raise Refused where somebody's @sent would keep a rotation from its end."""
    assert target.tree is not None  # noqa: S101 - the caller branches on it
    known = cache(lambda: rotating.ages(source.tree))
    for stand in found:
        if stand.target is None or stand.common is None:
            continue
        last = target.tree.datasets[stand.target].snapshots.get(names.sent)
        if last is not None and last.rid is None and last.guid not in known():
            held = source.tree.datasets[stand.relative].snapshots
            full = target.tree.full(stand.target)
            raise _in_the_way(target, full, last, held.get(goal, stand.common))


def _in_the_way(target: TargetView, full: str, other: Snapshot, snap: Snapshot) -> Refused:
    return Refused(
        f"{full}@{other.name} on {target.node} (guid {other.guid}) is in the way of the"
        f" source's snapshot of that name (guid {snap.guid})",
        untouched=UNTOUCHED,
        hint=f"on {target.node}: zfs rename or zfs destroy '{full}@{other.name}'",
    )


def _broken_children(
    source: SourceView, target: TargetView, who: Identity, found: list[Stand], goal: str
) -> tuple[str, ...]:
    """Return the children that are ours and have nothing in common; refuse where one is foreign."""
    assert target.tree is not None  # noqa: S101 - the caller branches on it
    broken = []
    for stand in found:
        if stand.target is None or stand.has_goal:
            continue
        twin = target.tree.datasets[stand.target]
        if stand.common is not None:
            if pairing.lost_on_source(source.tree.datasets[stand.relative], twin, who):
                broken.append(stand.relative)
            continue
        if not any(snap.rid for snap in twin.snapshots.values()):
            judge.check_not_in_flight(target, twin, source.tree.datasets[ROOT].snapshots.get(goal))
            raise Refused(
                f"{target.tree.full(twin.name)} on {target.node} is not a replica, and"
                f" {source.tree.full(stand.relative)} has to go there",
                untouched=UNTOUCHED,
                hint=f"move it away: zfs rename '{target.tree.full(twin.name)}' ...",
            )
        broken.append(stand.relative)
    return tuple(broken)


def _discards(target: TargetView, resource: SyncResource, lacking: list[Stand]) -> list[zfs.Change]:
    """Return the rollbacks of what was written on the replica, each with its bytes."""
    assert target.tree is not None  # noqa: S101 - the caller branches on it
    changes = []
    for stand in lacking:
        twin = target.tree.datasets[stand.target] if stand.target is not None else None
        if twin is None or not twin.written:
            continue
        changes.append(discard(target, resource, stand, f"{twin.written} bytes"))
    return changes


def discard(target: TargetView, resource: SyncResource, stand: Stand, amount: str) -> zfs.Change:
    """Return the rollback of one written dataset to its base, or raise Refused.

    `amount` says how much was written: bytes, or `changed` where ZFS does not tell.
    """
    assert target.tree is not None  # noqa: S101 - the caller saw it
    full = target.tree.full(stand.target or ROOT)
    what = f"{full} on {target.node} was written to since the last synchronization ({amount})"
    if resource.on_divergence == "refuse" or target.mark is None:
        reason = "on_divergence = refuse" if target.mark else f"{MARK} is not set on it"
        raise Refused(
            f"{what}; {reason}",
            untouched=UNTOUCHED,
            hint=f"zfs_sync_agent -s {resource.service} --rid {resource.rid} --node {target.node}"
            f" syncresync keeps what was written beside {target.dst}, and goes on",
        )
    twin = target.tree.datasets[stand.target or ROOT]
    base = twin.by_guid(stand.common.guid) if stand.common else None
    if base is None:
        raise Refused(f"{what}, and there is no common snapshot to go back to", untouched=UNTOUCHED)
    return zfs.rollback(full, base.name, f"discarding what was written to {full}: {amount}")


@dataclass(frozen=True)
class _Gone:
    """The target's datasets that no source dataset pairs with, and what becomes of them.

    A dataset is ours if a snapshot in it carries this resource's mark. It is destroyed one run
    after it was first seen to be gone: the first run renames its own snapshots to the kept names
    of their own guids, which is how the second one knows. A receive gives them those of the root.
    What this source did not send since it took over is not gone: it may never have had it.
    """

    target: TargetView
    policy: str
    ours: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    names: Names = field(default_factory=Names)

    @classmethod
    def of(
        cls, source: SourceView, target: TargetView, resource: SyncResource, who: Identity
    ) -> "_Gone":
        tree = target.tree
        names = Names(resource.snap_prefix)
        if tree is None or not resource.recursive:  # without -r the rest is outside the tree
            return cls(target, "keep", names=names)
        paired = set(pairing.pair(source.tree, tree).values())
        extra = [dataset for name, dataset in tree.datasets.items() if name not in paired]
        ours = [one for one in extra if pairing.is_ours(one, who)]
        foreign = tuple(one.name for one in extra if not pairing.is_ours(one, who))
        seen, warnings = [], []
        for one in ours:
            inside = [name for name in tree.datasets if name.startswith(f"{one.name}/")]
            strange = [
                f"{tree.full(one.name)}@{s.name}" for s in one.snapshots.values() if not s.rid
            ]
            strange += [tree.full(name) for name in inside if name in foreign]
            if strange:
                warnings.append(
                    f"{tree.full(one.name)} on {target.node} is gone on the source and is kept: it"
                    f" holds {', '.join(strange[:5])}, which this agent did not take"
                )
            elif _is_older(one, source.source_since):
                warnings.append(
                    f"{tree.full(one.name)} on {target.node} is kept: {who.source} did not send it"
                    f" since it took over; if nobody needs it: zfs destroy -r {tree.full(one.name)}"
                )
            elif all(s.name == names.kept(s) for s in one.snapshots.values()) and not (
                paired & set(inside)
            ):
                seen.append(one.name)
        if ours and resource.on_child_gone == "stop" and target.mark:
            listed = ", ".join(tree.full(one.name) for one in ours)
            raise Refused(
                f"gone on the source, still on {target.node}: {listed}; on_child_gone = stop",
                untouched=UNTOUCHED,
                hint="destroy them there by hand, or set on_child_gone to follow or keep",
            )
        return cls(
            target,
            resource.on_child_gone,
            tuple(one.name for one in ours),
            foreign,
            tuple(seen),
            tuple(warnings),
            names,
        )

    def _destroyed(self) -> list[str]:
        """Return the datasets that go now: seen before with all that is below; none if unmarked."""
        assert self.target.tree is not None  # noqa: S101 - of() saw it
        if self.policy != "follow" or not self.target.mark:
            return []
        below = {
            name: {one for one in self.target.tree.datasets if one.startswith(f"{name}/")}
            for name in self.seen
        }
        return [name for name in self.seen if below[name] <= set(self.seen)]

    def destroy(self) -> tuple[zfs.Change, ...]:
        """Return what removes those seen before, subtrees at once.

        It comes before anything is received: a stream may put another dataset under the name.
        """
        assert self.target.tree is not None  # noqa: S101 - of() saw it
        changes = []
        for name in self._destroyed():
            if any(name.startswith(f"{up}/") for up in self._destroyed()):
                continue
            inside = {one for one in self.target.tree.datasets if one.startswith(f"{name}/")}
            written = sum(
                self.target.tree.datasets[one].written or 0 for one in (name, *sorted(inside))
            )
            full = self.target.tree.full(name)
            why = f"destroying {full}, gone on the source since the run before"
            why += f" ({written} bytes written there are lost)" if written else ""
            changes.append(zfs.destroy_dataset(full, why))
        return tuple(changes)

    def move_aside(self, found: list[Stand]) -> tuple[zfs.Change, ...]:
        """Return what frees the names that the source's datasets are about to take."""
        tree = self.target.tree
        assert tree is not None  # noqa: S101 - of() saw it
        changes: list[zfs.Change] = []
        for stand in found:
            if stand.target == stand.relative or stand.has_goal:
                continue
            name = stand.relative
            if name in self.foreign:
                raise Refused(
                    f"{tree.full(name)} on {self.target.node} is not a replica, and a dataset of"
                    " that name has to be received",
                    untouched=UNTOUCHED,
                    hint=f"move it away: zfs rename '{tree.full(name)}' ...",
                )
            if name not in self.ours or name in self._destroyed():
                continue
            if not self.target.mark or any(one.startswith(f"{name}/") for one in self.foreign):
                raise Refused(
                    f"{tree.full(name)} on {self.target.node} is gone on the source and its name is"
                    " needed, but it holds what this agent did not send",
                    untouched=UNTOUCHED,
                    hint=f"move it away: zfs rename '{tree.full(name)}' ...",
                )
            changes += _aside_changes(tree, tree.datasets[name], self.names)
        return tuple(changes)


def _is_older(dataset: Dataset, epoch: int | None) -> bool:
    return epoch is not None and all(s.creation <= epoch for s in dataset.snapshots.values())


def _aside_changes(tree: Tree, dataset: Dataset, names: Names) -> list[zfs.Change]:
    """Rename the own snapshots first: cut after that, the dataset is seen as gone, and no more."""
    full = tree.full(dataset.name)
    own = [snap for snap in dataset.snapshots.values() if names.is_own(snap.name) and snap.rid]
    changes = [
        zfs.rename_snapshot(full, snap.name, names.kept(snap), recursive=False)
        for snap in own
        if snap.name != names.kept(snap)
    ]
    newest = max(own or dataset.snapshots.values(), key=lambda snap: snap.order)
    aside = f"{full}.gone-{newest.guid[-6:]}"
    why = f"{full} was re-created on the source; the copy of the old one is kept for one run"
    return [*changes, zfs.rename_dataset(full, aside, why)]
