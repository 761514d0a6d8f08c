"""Decides whether a run may write at all: the source by itself, then each target's root.

It is pure, and refuses by names, marks and state files; what it lets pass it lets pass by guids.
"""

import shlex
from collections.abc import Container, Iterable, Mapping, Sequence
from enum import Enum

from check_zfs_sync.service import SyncResource
from check_zfs_sync.statefile import State, StateFileError, TargetState, digest, parse_state
from zfs_sync_agent import pairing, rotating
from zfs_sync_agent.errors import UNTOUCHED, BrokenChain, CommandFailed, Refused, StandbyFor
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

# One of so many datasets may be sent alone. Of 100 on OpenZFS 2.3.2, emulated, 1 / 5 / 20 / 50 took
# 6 / 9 / 27 / 81 s alone and 100 to 220 s as one stream of the tree: the two meet near 70. Each one
# that is sent alone costs two commands more on the target, which a distant one makes dearer.
MOST_ALONE = 4

# The flags of zfs send that decide the format of a whole chain.
_FORMATS = {"-w": "raw", "-L": "large blocks"}


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
    if pairing.is_headless(tree, names.tosend):
        foreign[names.tosend] = set(tree.guids(names.tosend))
    if not foreign:
        return
    listing = rotating.Listing(tree, recursive=True)
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
    return kept or any(not pairing.unproven(source.tree, one.tree, names.tosend) for one in targets)


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


def without_own(tree: Tree, who: Identity) -> list[str]:
    """Return the datasets, by full name, of which no snapshot shows that this agent sent them."""
    return [
        tree.full(name)
        for name, dataset in tree.datasets.items()
        if not any(snap.rid == who.rid_value for snap in dataset.snapshots.values())
    ]


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
                f" {command(who, target, 'syncfull')}",
            )
        return
    if not target.follows:
        _check_mark(source, target, who)
    root, twin = source.tree.datasets[ROOT], target.tree.datasets[ROOT]
    if pairing.newest_common(root, twin) is None:
        if not twin.snapshots and pairing.resumable(source.tree, twin):
            return  # our own stream, cut inside its first dataset
        if target.mark:
            again = command(who, target, "syncfull")
            raise BrokenChain(
                f"chain broken: {target.dst} on {target.node} holds no snapshot that"
                f" {source.tree.root} on {who.source} has",
                untouched=UNTOUCHED,
                # syncfull destroys nothing of which no snapshot shows that it was sent.
                hint=f"on {target.node}: zfs rename {target.dst} {target.dst}.mine; then {again}"
                if without_own(target.tree, who)
                else f"{again} sends all of it beside {target.dst}, and then lets it take the place"
                f" of {target.dst}",
            )
        for intent in (names.tosend, names.tosend_for(target.node)):
            check_not_in_flight(target, twin, root.snapshots.get(intent))
        raise Refused(
            f"{target.dst} exists on {target.node} and is not a replica of {source.tree.root}",
            untouched=UNTOUCHED,
            hint="choose another dst, or move it away; or destroy it and send everything:"
            f" {command(who, target, 'syncfull --in-place')}",
        )
    if target.mark and (lost := pairing.lost_on_source(root, twin, who)):
        raise BrokenChain(
            f"chain broken: {target.dst}@{lost.name} (guid {lost.guid}) on {target.node} came from"
            f" {source.tree.root}, which no longer has it",
            untouched=UNTOUCHED,
            hint=f"if {source.tree.root} was rolled back on purpose:"
            f" {command(who, target, 'syncresync')}; it keeps what {target.node} has of it",
        )


def cut_resync(target: TargetView, who: Identity) -> Refused:
    """Return the refusal of a target that only a second syncresync may touch."""
    return Refused(
        f"a syncresync of {target.dst} on {target.node} did not come to its end",
        untouched=UNTOUCHED,
        hint=f"let it go on: {command(who, target, 'syncresync')}",
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
                hint=f"if it is to be a replica: {command(who, target, 'syncresync')}; it keeps"
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


def check_not_in_flight(target: TargetView, twin: Dataset, goal: Snapshot | None) -> None:
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


def command(who: Identity, target: TargetView, action: str) -> str:
    """Return the command that a person types for a target."""
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
    common = pairing.newest_common(root, target.tree.datasets.get(ROOT) if target.tree else None)
    joining = root.snapshots.get(names.tosend_for(target.node))
    resumable = joining is not None and not is_stale_join(source, target, names)
    if resumable and pairing.unproven(source.tree, target.tree, names.tosend_for(target.node)):
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
    common = pairing.newest_common(root, target.tree.datasets.get(ROOT) if target.tree else None)
    return joining is not None and common is not None and common.order > joining.order


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


def lacking(options: Sequence[str], known: frozenset[str]) -> list[str]:
    """Return the flags of send_options or receive_options that a zfs does not know.

    Where zfs prints no flags at all nothing is known. -u works with old ones that do not list it.

    >>> lacking(("-w", "-X", "tank/a"), frozenset("nw"))
    ['-X']
    """
    flags = [word[:2] for word in options if word.startswith("-")]
    return [one for one in flags if one[1:] not in known | {"u"}] if known else []


def check_options(
    source: SourceView, target: TargetView, resource: SyncResource, who: Identity
) -> None:
    """Raise Refused where send_options or receive_options ask for what that side's zfs lacks."""
    for key, node, given, known in (
        ("send_options", who.source, resource.send_options, source.can.send),
        ("receive_options", target.node, resource.receive_options, target.can.receive),
    ):
        if absent := lacking(given, known):
            verb = key.partition("_")[0]
            raise Refused(
                f"{key} asks for {' '.join(absent)}, which zfs {verb} on {node} does not have",
                untouched=UNTOUCHED,
                hint=f"take it out of the service file, or update ZFS on {node}; zfs {verb} without"
                " arguments shows what it has",
            )


def check_programs(needed: Mapping[str, str], found: Container[str], node: str) -> None:
    """Raise Refused where a node lacks a program that a key of the service file needs."""
    for key, program in needed.items():
        if program not in found:
            raise Refused(
                f"{key} needs {program}, which {node} does not have",
                untouched=UNTOUCHED,
                hint=f"install the package {program} on {node}, or take {key} out of the service"
                " file",
            )


def check_flags(
    entry: TargetState, resource: SyncResource, target: TargetView, who: Identity
) -> None:
    """Raise Refused where the next stream would be of another format than those before it.

    Guids say nothing of it: one stream that is not raw ends a raw chain for good, and so does one
    without large blocks after one with them (openzfs#8758, zrepl#435).
    """
    if entry.last_attempt is None:
        return
    before, now = (
        {one for one in _FORMATS if one in flags} for flags in (entry.flags, resource.send_options)
    )
    if before == now:
        return
    changed = ", ".join(f"{one} ({_FORMATS[one]})" for one in sorted(before ^ now))
    raise Refused(
        f"send_options was changed for {target.dst} on {target.node}: {changed}; the replica was"
        f" sent {'with' if before - now else 'without'} it, and a chain cannot change that",
        untouched=UNTOUCHED,
        hint=f"write send_options = {' '.join(entry.flags) or '(nothing)'} as before; or send all"
        f" of it anew: {command(who, target, 'syncfull')}",
    )


def is_settled(
    source: SourceView,
    target: TargetView,
    entry: TargetState,
    resource: SyncResource,
    *,
    names: Names,
    who: Identity,
) -> bool:
    """Tell whether both sides hold @sent of every dataset, and the last run left nothing to do.

    Whether anything was written since is not looked at.
    """
    claim, here, there = entry.snapshot, source.tree, target.tree
    if there is None or claim is None or entry.status != "ok" or target.mark != who.mark:
        return False  # without our mark it has to be made our replica first, whatever it holds
    guids = here.guids(names.sent)
    held = (
        here.datasets.keys() == there.datasets.keys() == guids.keys()
        and there.guids(names.sent) == guids
        and claim.digest == digest(guids.items())
    )
    owed = any(target.node in nodes for nodes in source.retained.values())
    known = target.node in source.targets and entry.flags == resource.send_options
    return (
        held
        and known
        and not owed
        and all(
            one.partial is None
            and all(
                snap.order <= one.snapshots[names.sent].order for snap in one.snapshots.values()
            )
            for one in (*here.datasets.values(), *there.datasets.values())
        )
    )


def few(
    source: SourceView, changed: frozenset[str], resource: SyncResource, names: Names, now: int
) -> frozenset[str] | None:
    """Return the datasets to be sent alone, the root among them; None: the whole tree.

    A property that was set on one of the others is seen by nobody. It travels with the whole tree,
    which is sent once an @sent gets as old as the lag that is allowed.
    """
    tree = source.tree.datasets
    alone = changed | {ROOT}
    oldest = min(
        (tree[name].snapshots[names.sent].creation for name in tree.keys() - alone), default=0
    )
    is_old = now - oldest >= resource.sync_max_delay
    many = len(alone) * MOST_ALONE > len(tree)
    return None if many or is_old or not resource.recursive else alone


def check_first_room(needed: int, available: int | None, target: TargetView, who: Identity) -> None:
    """Raise Refused where a first sync needs more bytes than the target has; None: not known."""
    if available is None or needed <= available:
        return
    raise Refused(
        f"{target.dst} needs about {needed} bytes, and {available} are available on {target.node}",
        untouched=UNTOUCHED,
        hint="make room there; or, if it will be smaller there, by compression:"
        f" {command(who, target, 'syncfull')}",
    )


def has_sent(source: SourceView, who: Identity) -> bool:
    """Tell whether this node ever took a snapshot of its src for this resource."""
    root = source.tree.datasets[ROOT].snapshots.values()
    return any(snap.taken_here and snap.rid == who.rid_value for snap in root)


def is_standby(source: SourceView, who: Identity) -> bool:
    """Tell whether the src is itself a replica of this resource: then another node sends.

    A replica of another resource may be sent on (a cascade, with a snap_prefix).
    """
    return source.replica_of is not None and source.replica_of.endswith(f"/{who.rid_value}")
