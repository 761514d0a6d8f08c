"""Decides what one run does, from what was observed; every decision to write compares guids.

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

import shlex
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from check_zfs_sync.service import SyncResource
from check_zfs_sync.statefile import State, StateFileError, parse_state
from zfs_sync_agent import zfs
from zfs_sync_agent.errors import BrokenChain, CommandFailed, Refused, StandbyFor
from zfs_sync_agent.model import (
    MARK,
    RETAINED,
    ROOT,
    Dataset,
    Names,
    Snapshot,
    SourceView,
    TargetView,
    Tree,
    format_nodes,
)

UNTOUCHED = "everything on both sides"


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
class Stand:
    """How one source dataset stands on a target; `target` is its name there, None: not there.

    `common` is the newest snapshot that both hold, as the source names it.
    """

    relative: str
    target: str | None
    common: Snapshot | None
    has_goal: bool


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


# --- pairing ----------------------------------------------------------------------------------


def pair(source: Tree, target: Tree) -> dict[str, str]:
    """Return source name -> target name of the datasets that are the same one (relative names).

    A common guid decides, since a receive renames children on its way: that of the same name first
    (somebody may have made a copy of a copy), then that of another one which carries our mark. What
    is left is paired by name, except where the source's dataset is younger than the last common
    snapshot of the root: that is another dataset, created or moved there under the name.
    """
    pairs = {ROOT: ROOT} if ROOT in target.datasets else {}
    for name, dataset in source.datasets.items():
        if name not in pairs and newest_common(dataset, target.datasets.get(name)):
            pairs[name] = name
    taken = set(pairs.values())
    where = {
        snapshot.guid: dataset.name
        for dataset in target.datasets.values()
        for snapshot in dataset.snapshots.values()
        if dataset.name not in taken and any(one.rid for one in dataset.snapshots.values())
    }
    for dataset in source.datasets.values():
        newest_first = sorted(dataset.snapshots.values(), key=lambda snap: snap.order, reverse=True)
        hits = (where[snap.guid] for snap in newest_first if snap.guid in where)
        if dataset.name not in pairs and (hit := next(hits, None)) and hit not in taken:
            pairs[dataset.name] = hit
            taken.add(hit)
    base = newest_common(source.datasets[ROOT], target.datasets.get(ROOT))
    for dataset in source.datasets.values():
        if dataset.name in pairs or dataset.name not in target.datasets or dataset.name in taken:
            continue
        if base is None or dataset.createtxg <= base.createtxg:
            pairs[dataset.name] = dataset.name
            taken.add(dataset.name)
    return pairs


def newest_common(dataset: Dataset, twin: Dataset | None) -> Snapshot | None:
    """Return the newest snapshot that both hold, as the first names it."""
    guids = {snap.guid for snap in twin.snapshots.values()} if twin else set()
    common = [snap for snap in dataset.snapshots.values() if snap.guid in guids]
    return max(common, key=lambda snap: snap.order, default=None)


def lost_on_source(dataset: Dataset, twin: Dataset, who: Identity) -> Snapshot | None:
    """Return the newest own snapshot of the target that is newer than the newest common one.

    The source was rolled back, or its snapshot destroyed: what the target holds may be the only
    copy of it.
    """
    common = newest_common(dataset, twin)
    held = twin.by_guid(common.guid) if common else None
    if held is None:
        return None
    newer = [
        snap
        for snap in twin.snapshots.values()
        if snap.rid == who.rid_value and snap.order > held.order
    ]
    return max(newer, key=lambda snap: snap.order, default=None)


def stands(source: Tree, target: Tree, goal: str) -> list[Stand]:
    """Return how each dataset of the goal's tree stands on the target, parents first.

    While the goal has not been taken its tree is that of all datasets, and no target has it.
    """
    guids = source.guids(goal)
    pairs = pair(source, target)
    found = []
    for name in guids or source.datasets:
        twin = target.datasets.get(pairs[name]) if name in pairs else None
        has_goal = bool(guids) and twin is not None and twin.by_guid(guids[name]) is not None
        common = newest_common(source.datasets[name], twin)
        found.append(Stand(name, twin.name if twin else None, common, has_goal))
    return found


def unclear(source: Tree, target: Tree, who: Identity) -> tuple[list[str], list[str]]:
    """Return the datasets (source's, target's) that fall in no row by their own names alone.

    Only these are worth a listing of all their snapshots.
    """
    pairs = pair(source, target)
    lone_source, lone_target = [], []
    for name, twin_name in pairs.items():
        dataset, twin = source.datasets[name], target.datasets[twin_name]
        common = newest_common(dataset, twin)
        if (common is None or lost_on_source(dataset, twin, who)) and not dataset.complete:
            lone_source.append(name)
        if common is None and not twin.complete:
            lone_target.append(twin_name)
    lone_target += [
        dataset.name
        for dataset in target.datasets.values()
        if dataset.name not in set(pairs.values()) and not dataset.complete
    ]
    # A lone target dataset may be one that the source renamed: then only the source's other
    # snapshots tell.
    if lone_target:
        lone_source += [
            dataset.name
            for dataset in source.datasets.values()
            if dataset.name not in pairs and not dataset.complete
        ]
    return lone_source, lone_target


def unproven(source: Tree, target: Tree | None, goal: str) -> list[str]:
    """Return the datasets of the goal's tree that a listing of the target does not show there."""
    held = {
        snapshot.guid
        for dataset in (target.datasets.values() if target else ())
        for snapshot in dataset.snapshots.values()
    }
    return [name for name, guid in source.guids(goal).items() if guid not in held]


def is_headless(source: Tree, goal: str) -> bool:
    """Tell whether datasets hold the goal and the root does not: it is an intent of nothing."""
    return goal not in source.datasets[ROOT].snapshots and bool(source.guids(goal))


def left_behind(source: Tree, goal: str) -> list[str]:
    """Return the datasets that are older than the goal and lack it: somebody destroyed it there.

    A target that holds the goal holds something older of them.
    """
    born = source.datasets[ROOT].snapshots[goal].createtxg
    return [
        name
        for name, dataset in source.datasets.items()
        if goal not in dataset.snapshots and dataset.createtxg < born
    ]


# --- the source by itself ---------------------------------------------------------------------


def check_source(source: SourceView, names: Names, who: Identity) -> None:
    """Raise BrokenChain where a snapshot with an own name is not the agent's.

    Someone destroyed ours and took another under the name, or another tool uses it: renaming or
    destroying by that name would hit what the agent did not make.
    """
    tree = source.tree
    foreign: dict[str, set[str]] = {}
    for dataset in tree.datasets.values():
        for snap in dataset.snapshots.values():
            if names.is_own(snap.name) and snap.rid != who.rid_value:
                foreign.setdefault(snap.name, set()).add(dataset.name)
    if is_headless(tree, names.tosend):
        foreign[names.tosend] = set(tree.guids(names.tosend))
    if not foreign:
        return
    listing = _Listing(tree, recursive=True)
    steps = [step for name, held in foreign.items() for step in listing.destroy(name, held)]
    commands = "; ".join(f"zfs {shlex.join(step.argv)}" for step in steps)
    raise BrokenChain(
        f"chain broken: {steps[0].argv[-1]} on {who.source} is not one that this agent took of the"
        " tree for this resource",
        untouched=UNTOUCHED,
        hint=f"if nobody needs it: {commands}; then run again, and do what that run says of each"
        " target. If another tool uses the name, set snap_prefix",
    )


def is_half_rotated(source: SourceView, targets: Iterable[TargetView], names: Names) -> bool:
    """Tell whether the source was cut between dropping A and renaming B: (-,B), B proven somewhere.

    A kept base beside (-,B) says the same: A is only renamed to one after B was proven.
    """
    root = source.tree.datasets[ROOT].snapshots
    if names.sent in root or names.tosend not in root:
        return False
    kept = any(names.is_kept(name) for name in root)
    # On the root alone it proves nothing: the first sync may have been cut after it.
    return kept or any(not unproven(source.tree, one.tree, names.tosend) for one in targets)


# --- one target -------------------------------------------------------------------------------


def state_owner(target: TargetView) -> State | None:
    """Return the state file that the target holds; None if there is none that can be read."""
    try:
        return parse_state(target.state_text, "") if target.state_text else None
    except StateFileError:
        return None  # torn, or of another format: the next push mends it


def is_others_state(target: TargetView, who: Identity) -> bool:
    """Tell whether the target's state file is another source's: then it is not overwritten.

    The target's own, from a time when it was the source itself, is no such case.
    """
    other = state_owner(target)
    return other is not None and other.source not in (who.source, target.node)


def check_state_owner(target: TargetView, who: Identity) -> None:
    """Raise Refused where the target already has this state file from another source and dst.

    Two clients that use one service name would overwrite each other's proof.
    """
    other = state_owner(target)
    if other is None or not is_others_state(target, who):
        return
    entry = other.targets.get(target.node)
    if entry is not None and entry.dst != target.dst:
        raise Refused(
            f"{target.node} already has the state file of {who.service}/{who.rid} from"
            f" {other.source} (dst {entry.dst}); this one is from {who.source} (dst {target.dst})",
            untouched=UNTOUCHED,
            hint="give one of the two services another name, or remove the other's state file on"
            f" {target.node} if {other.source} no longer sends",
        )


def check_target(
    source: SourceView,
    target: TargetView,
    who: Identity,
    names: Names,
    *,
    known: bool,
    consent: bool,
) -> None:
    """Raise BrokenChain or Refused where the target's root falls in a row that forbids writing.

    `known`: the target was once shown to hold a snapshot. `consent`: a full sync was asked for.
    """
    check_state_owner(target, who)
    if target.tree is None:
        if known and not consent:
            raise BrokenChain(
                f"chain broken: {target.dst} on {target.node} is gone, and it was a replica",
                untouched=UNTOUCHED,
                hint="if it was removed or dst was changed on purpose:"
                f" {_command(who, target, 'syncfull')}",
            )
        return
    if not target.follows:
        _check_mark(source, target, who)
    root, twin = source.tree.datasets[ROOT], target.tree.datasets[ROOT]
    if newest_common(root, twin) is None:
        if target.mark:
            raise BrokenChain(
                f"chain broken: {target.dst} on {target.node} holds no snapshot that"
                f" {source.tree.root} on {who.source} has",
                untouched=UNTOUCHED,
                hint=f"{_command(who, target, 'syncfull')} sends all of it beside {target.dst}, and"
                f" then lets it take the place of {target.dst}",
            )
        for intent in (names.tosend, names.tosend_for(target.node)):
            _check_not_in_flight(target, twin, root.snapshots.get(intent))
        raise Refused(
            f"{target.dst} exists on {target.node} and is not a replica of {source.tree.root}",
            untouched=UNTOUCHED,
            hint="choose another dst, or move it away; or destroy it and send everything:"
            f" {_command(who, target, 'syncfull --in-place')}",
        )
    if target.mark and (lost := lost_on_source(root, twin, who)):
        raise BrokenChain(
            f"chain broken: {target.dst}@{lost.name} (guid {lost.guid}) on {target.node} came from"
            f" {source.tree.root}, which no longer has it",
            untouched=UNTOUCHED,
            hint=f"if {source.tree.root} was rolled back on purpose:"
            f" {_command(who, target, 'syncresync')}; it keeps what {target.node} has of it",
        )


def cut_resync(target: TargetView, who: Identity) -> Refused:
    """Return the refusal of a target that only a second syncresync may touch."""
    return Refused(
        f"a syncresync of {target.dst} on {target.node} did not come to its end",
        untouched=UNTOUCHED,
        hint=f"let it go on: {_command(who, target, 'syncresync')}",
    )


def _check_mark(source: SourceView, target: TargetView, who: Identity) -> None:
    """Raise where the mark, or its absence, says that the target is not this source's replica."""
    if target.mark == who.mark:
        return
    if target.repair is not None:
        raise cut_resync(target, who)
    if target.mark is None:
        _check_is_no_source(source, target, who)
        if target.node in source.targets:
            raise Refused(
                f"{target.dst} on {target.node} was a replica and no longer carries the mark"
                f" {MARK}={who.mark}: it may be in use as a source",
                untouched=UNTOUCHED,
                hint=f"if it is to be a replica: {_command(who, target, 'syncresync')}; it keeps"
                " what was written there",
            )
        return
    other = target.mark.removesuffix(f"/{who.rid_value}")
    if other in who.peers and not has_sent(source, who):
        raise StandbyFor(f"{target.dst} on {target.node} is the replica of {target.mark}")
    hint = "choose another dst"
    if other in who.peers:
        hint += f"; or, if {who.source} is to be the source: zfs_sync_agent -s {who.service}"
        hint += f" --rid {who.rid} takeover (on {who.source})"
    raise Refused(
        f"{target.dst} on {target.node} is the replica of {target.mark}, not of {who.mark}",
        untouched=UNTOUCHED,
        hint=hint,
    )


def check_same_standing(before: TargetView, now: TargetView, who: Identity) -> None:
    """Raise Refused where the target took over, or got another source, while something was sent.

    A mark that is gone is no such case: the first properties that are received clear it.
    """
    took_over = now.source_since is not None and now.source_since != before.source_since
    if not took_over and now.mark in (None, before.mark, who.mark):
        return
    what = "took over" if took_over else f"became the replica of {now.mark}"
    raise Refused(
        f"{now.dst} on {now.node} {what} while this run sent to it",
        untouched="its mark and its snapshots; what was received stays there",
        hint=f"nothing, if that was meant; if {who.source} is to be the source: zfs_sync_agent"
        f" -s {who.service} --rid {who.rid} takeover (on {who.source})",
    )


def _check_is_no_source(source: SourceView, target: TargetView, who: Identity) -> None:
    """Raise where the target took over, or takes snapshots of its own for this resource.

    The symmetric service file runs on both nodes, and while the first sync goes on neither dataset
    carries a mark. The node that never sent stands by; two that did are a person's matter.
    """
    assert target.tree is not None  # noqa: S101 - the caller branches on it
    root = target.tree.datasets[ROOT].snapshots.values()
    sends = any(snap.taken_here and snap.rid == who.rid_value for snap in root)
    if target.source_since is None and not sends:
        return
    if target.source_since is None and not has_sent(source, who):
        raise StandbyFor(
            f"{target.node} sends {target.dst}; {source.tree.root} stands by for it",
            untouched=UNTOUCHED,
        )
    raise Refused(
        f"{target.dst} on {target.node} is a source of {who.rid_value} itself"
        + (" (by takeover)" if target.source_since is not None else ""),
        untouched=UNTOUCHED,
        hint=f"on the node that is to send: zfs_sync_agent -s {who.service} --rid {who.rid}"
        " takeover; its next run makes the other its replica, unless data would be lost by that",
    )


def _check_not_in_flight(target: TargetView, twin: Dataset, goal: Snapshot | None) -> None:
    """Raise CommandFailed where a dataset may be one that a cut receive is about to take back.

    It is there without any snapshot for a moment, and younger than what was being sent.
    """
    if goal is None or twin.snapshots or twin.creation - target.clock_offset < goal.creation - 1:
        return
    assert target.tree is not None  # noqa: S101 - the dataset is in it
    full = target.tree.full(twin.name)
    raise CommandFailed(
        f"{full} on {target.node} has no snapshot yet: an earlier run's receive may be under way",
        untouched=UNTOUCHED,
        hint=f"the next run looks again; if {full} is somebody else's, move it away",
    )


def _command(who: Identity, target: TargetView, action: str) -> str:
    return f"zfs_sync_agent -s {who.service} --rid {who.rid} --node {target.node} {action}"


class Role(Enum):
    """Where a target stands to the others; none of them waits for another."""

    ABREAST = "takes part in A -> B"
    JOINING = "catches up with a snapshot of its own"
    AHEAD = "holds a base that is newer than the B of an earlier run"


def role(source: SourceView, target: TargetView, names: Names) -> Role:
    """Return the target's role in this cycle.

    A new or lagging target would hold up the others: its stream is long, and B cannot be renamed
    while it is sent. A base that is not older than A (that of a finished join) is as good as A. If
    the source has no A, nobody is there to be held up: the first sync.
    """
    root = source.tree.datasets[ROOT]
    last, intent = root.snapshots.get(names.sent), root.snapshots.get(names.tosend)
    common = newest_common(root, target.tree.datasets.get(ROOT) if target.tree else None)
    joining = root.snapshots.get(names.tosend_for(target.node))
    resumable = joining is not None and not is_stale_join(source, target, names)
    if resumable and unproven(source.tree, target.tree, names.tosend_for(target.node)):
        return Role.JOINING  # it was cut: the root is there first, the rest may be long
    if last is None:
        return Role.ABREAST
    if common is None or (common.name != last.name and common.order < last.order):
        return Role.JOINING
    if intent is not None and common.name != intent.name and common.order > intent.order:
        return Role.AHEAD
    return Role.ABREAST


def is_stale_join(source: SourceView, target: TargetView, names: Names) -> bool:
    """Tell whether the snapshot of a join that was cut is older than what the target got since."""
    root = source.tree.datasets[ROOT]
    joining = root.snapshots.get(names.tosend_for(target.node))
    common = newest_common(root, target.tree.datasets.get(ROOT) if target.tree else None)
    return joining is not None and common is not None and common.order > joining.order


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
    """Return what brings a target that check_target let pass to the goal.

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
    found = stands(source.tree, target.tree, goal)
    _check_sent_is_ours(source, target, Names(resource.snap_prefix), found, goal)
    if cut := _half_rotated(source.tree, target, resource, who, found):
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


def check_mounts(
    carried: Mapping[str, str], used: Mapping[str, str], target: TargetView, resource: SyncResource
) -> None:
    """Raise Refused where a first sync would mount over what another dataset of the target uses.

    `carried` is source dataset -> path of the properties in the stream, `used` path -> dataset.
    """
    options = resource.receive_options
    if any(word == "mountpoint" or word.startswith("mountpoint=") for word in options):
        return
    clashes = [(name, path) for name, path in carried.items() if path in used]
    if clashes:
        name, path = clashes[0]
        raise Refused(
            f"{name} carries the mountpoint {path}, which {used[path]} uses on {target.node}",
            untouched=UNTOUCHED,
            hint="write receive_options = -x mountpoint in the service file; where the target's"
            " zfs receive has no -x, let the mountpoint be inherited on the source",
        )


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
    pairs = pair(source, target.tree) if target.tree else {}
    streams = []
    for stand in lacking:
        place = stand.target
        if place is None:
            place = _place(stand.relative, pairs, target.tree, source.guids(goal))
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
    that is, and the next stream of the tree moves it by its guid.
    """
    parent, _, leaf = name.rpartition("/")
    while parent and parent not in pairs:
        parent = parent.rpartition("/")[0]
    above = pairs.get(parent, parent)
    place = f"{above}/{leaf}" if above else leaf
    taken = set(target.datasets if target else ()) | set(pairs.values())
    return f"{place}.{guids.get(name, '')[-6:]}" if place != name and place in taken else place


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
            ours = names.is_own(other.name) and other.rid == who.rid_value
            # Another resource of the same src uses its names again; they came with our stream.
            passenger = other.rid is not None and other.rid == snap.rid
            if (ours or passenger) and target.mark:
                kept = names.kept(other)
                changes.append(zfs.rename_snapshot(full, other.name, kept, recursive=False))
            elif brought or not ours:  # of a first sync that was cut the receive renames it itself
                raise _in_the_way(target, full, other, snap)
    return changes


def _check_sent_is_ours(
    source: SourceView, target: TargetView, names: Names, found: list[Stand], goal: str
) -> None:
    """Raise Refused where somebody's @sent would keep a rotation from its end."""
    assert target.tree is not None  # noqa: S101 - the caller branches on it
    known = _known(source.tree)
    for stand in found:
        if stand.target is None or stand.common is None:
            continue
        last = target.tree.datasets[stand.target].snapshots.get(names.sent)
        if last is not None and last.rid is None and last.guid not in known:
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
            if lost_on_source(source.tree.datasets[stand.relative], twin, who):
                broken.append(stand.relative)
            continue
        if not any(snap.rid for snap in twin.snapshots.values()):
            _check_not_in_flight(target, twin, source.tree.datasets[ROOT].snapshots.get(goal))
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


# --- datasets that are gone on the source -----------------------------------------------------


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
        paired = set(pair(source.tree, tree).values())
        extra = [dataset for name, dataset in tree.datasets.items() if name not in paired]
        ours = [one for one in extra if _is_ours(one, who)]
        foreign = tuple(one.name for one in extra if not _is_ours(one, who))
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


def _is_ours(dataset: Dataset, who: Identity) -> bool:
    return any(snap.rid == who.rid_value for snap in dataset.snapshots.values())


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


# --- rotation ---------------------------------------------------------------------------------


class _Listing:
    """Who holds which snapshot name, kept true while the plan adds commands."""

    def __init__(self, tree: Tree, *, recursive: bool) -> None:
        self.tree = tree
        self.recursive = recursive
        self.held = {
            name: {snap.name: snap.guid for snap in dataset.snapshots.values()}
            for name, dataset in tree.datasets.items()
        }

    def _is_whole(self, snapshot: str, datasets: set[str]) -> bool:
        """-r is right only where it hits these alone: it would take a foreign child's @sent."""
        holders = {name for name, held in self.held.items() if snapshot in held}
        return self.recursive and ROOT in datasets and holders == datasets

    def rename(self, old: str, new: str, datasets: set[str]) -> list[zfs.Change]:
        whole = self._is_whole(old, datasets)
        for name in datasets:
            self.held[name][new] = self.held[name].pop(old)
        if whole:
            return [zfs.rename_snapshot(self.tree.root, old, new, recursive=True)]
        return [
            zfs.rename_snapshot(self.tree.full(name), old, new, recursive=False)
            for name in sorted(datasets)
        ]

    def destroy(self, snapshot: str, datasets: set[str]) -> list[zfs.Change]:
        whole = self._is_whole(snapshot, datasets)
        for name in datasets:
            del self.held[name][snapshot]
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


def _half_rotated(
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
        and not lost_on_source(
            source.datasets[stand.relative], target.tree.datasets[stand.target], who
        )
    }
    intents = {names.tosend, names.tosend_for(target.node)}

    def is_cut(twin: Dataset, guid: str) -> bool:
        held = twin.by_guid(guid)
        misnamed = held is not None and held.name != names.sent and names.is_own(held.name)
        return bool(intents & twin.snapshots.keys()) or (misnamed and names.sent in twin.snapshots)

    cut = any(is_cut(target.tree.datasets[twin], guid) for twin, guid in want.items())
    if not cut or not (target.mark or target.follows):
        return ()
    listing = _Listing(target.tree, recursive=resource.recursive)
    return _rotate_to(listing, source, want, who, names).changes


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
        for name, twin in pair(source, tree).items()
        if name in guids and tree.datasets[twin].by_guid(guids[name])
    }
    names = Names(resource.snap_prefix)
    listing = _Listing(tree, recursive=resource.recursive)
    known = _known(source)
    aside: list[zfs.Change] = []
    for name, dataset in tree.datasets.items():
        if resource.recursive and name not in want and _is_ours(dataset, who):
            aside += _set_aside(listing, dataset, names, source, known)
    rotation = _rotate_to(listing, source, want, who, names)
    return Rotation(rotation.marks, (*aside, *rotation.changes))


def _known(source: Tree) -> dict[str, Snapshot]:
    return {s.guid: s for d in source.datasets.values() for s in d.snapshots.values()}


def _rotate_to(
    listing: _Listing, source: Tree, want: Mapping[str, str], who: Identity, names: Names
) -> Rotation:
    """Return what makes the snapshot with the wanted guid @sent, per dataset of the target."""
    tree = listing.tree
    known = _known(source)
    changes: list[zfs.Change] = []
    own: dict[str, set[str]] = {}
    for name, guid in want.items():
        for snap in tree.datasets[name].snapshots.values():
            mine = snap.rid is not None or snap.guid in known
            newer = snap.guid in known and known[snap.guid].order > known[guid].order
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
    listing: _Listing, dataset: Dataset, names: Names, source: Tree, known: Container[str]
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
    listing = _Listing(tree, recursive=recursive)
    holders: dict[str, set[str]] = {}
    for name, dataset in tree.datasets.items():
        for snap in dataset.snapshots.values():
            if names.is_own(snap.name):
                holders.setdefault(snap.name, set()).add(name)
    retained = {name: nodes for name, nodes in needs.items() if nodes}
    retained |= {name: frozenset() for name in source.retained if name not in retained}
    changes: list[zfs.Change] = []
    if rotate and names.tosend in holders:
        changes += _retire(listing, names, holders.get(names.sent, set()), retained)
        changes += listing.rename(names.tosend, names.sent, holders[names.tosend])
    dropped: list[zfs.Change] = []
    for name in sorted(retained):
        if not retained[name] and (names.is_kept(name) or name.startswith(f"{names.tosend}.")):
            dropped += listing.destroy(name, holders.get(name, set()))
    cleaned = {name: nodes for name, nodes in retained.items() if nodes}
    return Finish(retained, tuple(changes), tuple(dropped), cleaned)


def _retire(
    listing: _Listing, names: Names, old: set[str], retained: dict[str, frozenset[str]]
) -> list[zfs.Change]:
    """Keep A where a node may need it, destroy it else; `retained` then speaks of the new names."""
    needed_old = retained.pop(names.sent, frozenset())
    needed_new = retained.pop(names.tosend, frozenset())
    if ROOT not in old:  # cut after A was dropped: what the property says of @sent is B's
        needed_new |= needed_old
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
    return _Listing(tree, recursive=recursive).rename(old, new, set(tree.guids(old)))


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
    (in this run, or in one before if B is a `leftover`). One that is proven needs nothing, unless a
    dataset is not in B's tree, because its B was destroyed: there it holds A.
    """
    found: dict[str, set[str]] = {}
    for node, what in known.items():
        wanted = None if what.listing is None else _held_names(source, names, what.listing)
        if what.proven and (wanted is None or wanted <= {names.tosend}):
            continue
        if wanted is None:
            begun = what.may_hold_goal or leftover
            wanted = _assumed_names(source, names, node) | ({names.tosend} if begun else set())
        for name in wanted:
            found.setdefault(name, set()).add(node)
    if not rotate:  # A and B stay as they are; the property need not name them
        found.pop(names.tosend, None)
        found[names.sent] = found.get(names.sent, set()) & source.retained.get(
            names.sent, frozenset()
        )
    return {name: frozenset(nodes) for name, nodes in found.items() if nodes}


def _held_names(source: SourceView, names: Names, listing: TargetView) -> set[str] | None:
    """Return the own names of what a target holds; None where a replica is gone.

    Someone may have renamed it and rename it back: its base is not dropped for that.
    """
    if listing.tree is None:
        return None if listing.node in source.targets else set()
    pairs = pair(source.tree, listing.tree)
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


def has_sent(source: SourceView, who: Identity) -> bool:
    """Tell whether this node ever took a snapshot of its src for this resource."""
    root = source.tree.datasets[ROOT].snapshots.values()
    return any(snap.taken_here and snap.rid == who.rid_value for snap in root)


def is_standby(source: SourceView, who: Identity) -> bool:
    """Tell whether the src is itself a replica of this resource: then another node sends.

    A replica of another resource may be sent on (a cascade, with a snap_prefix).
    """
    return source.replica_of is not None and source.replica_of.endswith(f"/{who.rid_value}")
