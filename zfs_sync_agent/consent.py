"""Decides what syncresync and syncfull do to a target: what a person's consent covers, what not.

It is pure. Nothing is given up before it was named: each plan says first what it keeps, discards
and sends. Foreign data is never part of a consent, except where --in-place replaces a dataset that
is not a replica at all.

syncresync keeps the whole old tree beside dst (one rename) and builds dst anew from clones of the
last common snapshots, which are then promoted. While that goes on the mark says `resync:`, so that
every other run leaves the target alone, and a second syncresync goes on from the listing.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from zfs_sync_agent import handover, judge, pairing, zfs
from zfs_sync_agent.errors import UNTOUCHED, BrokenChain, Refused
from zfs_sync_agent.model import (
    MARK,
    ROOT,
    Dataset,
    Identity,
    Snapshot,
    SourceView,
    Standing,
    TargetView,
    Tree,
)

# A clone has them from its origin, they would count twice, or a replica has its own.
_NOT_KEPT = frozenset({"volsize", "keylocation", "reservation", "refreservation", "readonly"})


def aside_name(dst: str, now: int) -> str:
    """Return the name that the old tree gets."""
    return f"{aside_prefix(dst)}{datetime.fromtimestamp(now, tz=timezone.utc):%Y%m%dT%H%M%SZ}"


def aside_prefix(dst: str) -> str:
    """Return what every such name begins with."""
    return f"{dst}.unsent-"


def beside_name(dst: str) -> str:
    """Return where syncfull sends the new copy."""
    return f"{dst}.full"


# --- what no consent covers --------------------------------------------------------------------


def check_is_no_other(source: SourceView, target: TargetView, who: Identity) -> None:
    """Raise Refused where the target is the source by a later takeover, or somebody else's replica.

    There the consent was given on the wrong node.
    """
    handover.check_no_later_source(source, target, who)
    mark = target.mark or target.repair or who.mark
    other, _, resource = mark.partition("/")
    peer = resource == who.rid_value and other in who.peers
    if mark != who.mark and not (peer and source.source_since is not None):
        raise Refused(
            f"{target.dst} on {target.node} is the replica of {mark}, not of {who.mark}",
            untouched=UNTOUCHED,
            hint=f"if {who.source} is to be the source: zfs_sync_agent -s {who.service}"
            f" --rid {who.rid} takeover (on {who.source}), then again"
            if peer
            else "choose another dst",
        )


def foreign(source: SourceView, target: TargetView, who: Identity) -> list[str]:
    """Return the datasets and snapshots below dst that this agent did not send."""
    assert target.tree is not None  # noqa: S101 - the caller saw it
    known = {s.guid for d in source.tree.datasets.values() for s in d.snapshots.values()}
    found = judge.without_own(target.tree, who)
    for name, dataset in target.tree.datasets.items():
        if (full := target.tree.full(name)) not in found:
            snaps = dataset.snapshots.values()
            found += [f"{full}@{s.name}" for s in snaps if s.rid is None and s.guid not in known]
    return found


def check_replaceable(
    source: SourceView, target: TargetView, who: Identity, *, in_place: bool, keep_gone: bool
) -> None:
    """Raise Refused where syncfull may not take away what is at dst. Needs a deep listing.

    `keep_gone`: datasets that the source does not have are to stay.
    """
    assert target.tree is not None  # noqa: S101 - the caller saw it
    check_is_no_other(source, target, who)
    again = f"zfs_sync_agent -s {who.service} --rid {who.rid} --node {target.node} syncfull"
    away = f"on {target.node}: zfs rename {target.dst} {target.dst}.mine; then {again}"
    if handover.was_source(target):
        root = target.tree.datasets[ROOT].snapshots.values()
        if any(snap.taken_here and snap.rid == who.rid_value for snap in root):
            raise Refused(
                f"{target.dst} on {target.node} was a source of {who.rid_value}",
                untouched=UNTOUCHED,
                hint=f"syncresync keeps what it never sent; or {away}",
            )
        if not in_place:
            raise Refused(
                f"{target.dst} on {target.node} is not a replica",
                untouched=UNTOUCHED,
                hint=f"{away}; or destroy it, with all that is in it: {again} --in-place",
            )
        return
    common = pairing.newest_common(source.tree.datasets[ROOT], target.tree.datasets[ROOT])
    if target.mark not in (None, who.mark) and not in_place and common is None:
        raise Refused(
            f"{target.dst} on {target.node} is the replica of {target.mark}, and {who.source} has"
            " none of its snapshots: it may be newer",
            untouched=UNTOUCHED,
            hint=f"{away}; or, if it is not needed: {again} --in-place",
        )
    if (gone := lone(source, target)) and keep_gone and not foreign(source, target, who):
        raise Refused(
            f"{target.dst} on {target.node} holds what {source.tree.root} does not have:"
            f" {', '.join(gone[:5])}{', ...' if gone[5:] else ''}",
            untouched=UNTOUCHED,
            hint=f"move it out of {target.dst}, or destroy it there; or {away}",
        )
    if strange := foreign(source, target, who):
        listed = ", ".join(strange[:5]) + (", ..." if strange[5:] else "")
        raise Refused(
            f"{target.dst} on {target.node} holds what this agent did not send, or what"
            f" {source.tree.root} no longer has: {listed}",
            untouched=UNTOUCHED,
            hint=f"move it out of {target.dst}; or {away}",
        )


def check_room(target: TargetView, needed: int, available: int, who: Identity) -> None:
    """Raise Refused where a second copy does not fit beside the first; bytes."""
    if needed > available:
        raise Refused(
            f"{target.dst}.full on {target.node} needs about {needed} bytes, and {available} are"
            f" available: {needed - available} are missing",
            untouched=UNTOUCHED,
            hint=f"make room; or give up the old copy before the new one is there: zfs_sync_agent"
            f" -s {who.service} --rid {who.rid} --node {target.node} syncfull --in-place",
        )


def check_beside(
    source: SourceView, beside: TargetView, who: Identity, goal: str
) -> zfs.Change | None:
    """Return what clears away an earlier new copy that is of no use any more, None if it is.

    It is of use if it is whole (marked), or was cut on its way to the goal: with `intermediary`
    the first that arrives are older snapshots of the source. Raises Refused where something else
    has its name.
    """
    if beside.tree is None:
        return None
    root, twin = source.tree.datasets[ROOT], beside.tree.datasets[ROOT]
    if beside.mark == who.mark and pairing.newest_common(root, twin):
        return None
    if goal in root.snapshots and twin.by_guid(root.snapshots[goal].guid):
        return None
    known = {s.guid for d in source.tree.datasets.values() for s in d.snapshots.values()}
    held = [s for d in beside.tree.datasets.values() for s in d.snapshots.values()]
    if twin.snapshots and all(s.rid is None and s.guid in known for s in held):
        return None
    ours = bool(twin.snapshots) and all(s.rid for s in twin.snapshots.values())
    if ours and not foreign(source, beside, who):
        return zfs.destroy_dataset(beside.dst, f"destroying {beside.dst}, an earlier new copy")
    raise Refused(
        f"{beside.dst} exists on {beside.node}, and it is not this agent's",
        untouched=UNTOUCHED,
        hint=f"the new copy has to be made there: zfs rename {beside.dst} to another name",
    )


# --- syncresync ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """What one dataset of a target has beyond the last common snapshot."""

    full: str
    base: Snapshot | None  # as the target names it
    newer: tuple[Snapshot, ...]
    size_bytes: int | None


def losses(source: SourceView, target: TargetView) -> list[Loss]:
    """Return what a resync takes out of each dataset that the source has, too."""
    assert target.tree is not None  # noqa: S101 - the caller saw it
    found = []
    for name, twin_name in pairing.pair(source.tree, target.tree).items():
        twin = target.tree.datasets[twin_name]
        base, newer = _beyond(source.tree.datasets[name], twin)
        sizes = [snap.written for snap in newer] + [twin.written]
        size = None if None in sizes else sum(one for one in sizes if one)
        if base is None or newer or size != 0:
            found.append(Loss(target.tree.full(twin_name), base, newer, size))
    return found


def _beyond(dataset: Dataset, twin: Dataset) -> tuple[Snapshot | None, tuple[Snapshot, ...]]:
    common = pairing.newest_common(dataset, twin)
    base = twin.by_guid(common.guid) if common else None
    newer = [s for s in twin.snapshots.values() if base is None or s.order > base.order]
    return base, tuple(sorted(newer, key=lambda snap: snap.order))


def check_resync(source: SourceView, target: TargetView, who: Identity) -> None:
    """Raise where a resync cannot help."""
    assert target.tree is not None  # noqa: S101 - the caller saw it
    root, twin = source.tree.datasets[ROOT], target.tree.datasets[ROOT]
    if pairing.newest_common(root, twin) is None:
        raise BrokenChain(
            f"chain broken: {target.dst} on {target.node} holds no snapshot that"
            f" {source.tree.root} on {who.source} has",
            untouched=UNTOUCHED,
            hint=f"zfs_sync_agent -s {who.service} --rid {who.rid} --node {target.node} syncfull",
        )


def lone(source: SourceView, target: TargetView) -> list[str]:
    """Return the datasets below dst that src does not have, by full name."""
    assert target.tree is not None  # noqa: S101 - the caller saw it
    paired = set(pairing.pair(source.tree, target.tree).values())
    return [target.tree.full(name) for name in target.tree.datasets if name not in paired]


def tell_resync(
    source: SourceView, target: TargetView, found: Sequence[Loss], *, aside: str | None
) -> list[str]:
    """Return the lines that a person reads before anything is done; `aside` None: discarded."""
    assert target.tree is not None  # noqa: S101 - the caller saw it
    lines = []
    for one in found:
        size = "an unknown number of bytes" if one.size_bytes is None else f"{one.size_bytes} bytes"
        newer = "".join(f", @{snap.name}" for snap in one.newer)
        to = f"rolled back to @{one.base.name}" if one.base else "without a common snapshot"
        lines.append(f"{target.node}: {one.full}: {to}: {size}{newer}")
    if aside:
        lines += [
            f"{target.node}: {name}: not on the source; it is in the tree that is kept, alone"
            for name in lone(source, target)
        ]
        lines.append(
            f"{target.node}: the tree as it is now is kept as {aside};"
            f" once nobody needs it: zfs destroy -r {aside}"
        )
    elif found:
        lines.append(f"{target.node}: what is rolled back is discarded, for good")
    return lines


def tell_sending(source: SourceView, target: TargetView, full_sizes: Mapping[str, int]) -> str:
    """Return the line about what will be sent; `full_sizes` in bytes, by full name."""
    incremental, full = 0, 0
    unknown = False
    pairs = pairing.pair(source.tree, target.tree) if target.tree else {}
    for name, dataset in source.tree.datasets.items():
        twin = target.tree.datasets[pairs[name]] if target.tree and name in pairs else None
        common = pairing.newest_common(dataset, twin) if twin else None
        if common is None:
            full += full_sizes.get(source.tree.full(name), 0)
            continue
        newer = [s.written for s in dataset.snapshots.values() if s.order > common.order]
        sizes = [*newer, dataset.written]
        unknown = unknown or None in sizes
        incremental += sum(one for one in sizes if one)
    count = len(source.tree.datasets)
    delta = "an unknown number of" if unknown else f"about {incremental}"
    return (
        f"{target.node}: to be sent: {count} datasets, about {full} bytes in full streams,"
        f" {delta} bytes in incremental ones"
    )


def discards(source: SourceView, target: TargetView, who: Identity) -> list[zfs.Change]:
    """Return what rolls each dataset back for good. Raises Refused where that takes more than ours.

    Own newer snapshots go one by one, by name and after a listing; a rollback with -r would take
    somebody's.
    """
    assert target.tree is not None  # noqa: S101 - the caller saw it
    born = [
        full
        for full in lone(source, target)
        if any(
            snap.rid == who.rid_value
            for snap in target.tree.datasets[zfs.relative_to(target.dst, full)].snapshots.values()
        )
    ]
    if born and target.mark is None:  # an ordinary run would take them for gone on the source
        raise Refused(
            f"{', '.join(born)} on {target.node}: {who.source} never had it",
            untouched=UNTOUCHED,
            hint="destroy it there, or run syncresync without --discard: it keeps it aside",
        )
    changes = []
    for one in losses(source, target):
        if one.base is None:
            raise Refused(
                f"{one.full} on {target.node} has no common snapshot to go back to",
                untouched=UNTOUCHED,
                hint="syncresync without --discard keeps it aside, and sends it in full",
            )
        strange = [snap.name for snap in one.newer if snap.rid != who.rid_value]
        if strange and one.size_bytes != 0:
            raise Refused(
                f"{one.full} on {target.node} has newer snapshots that this agent did not take:"
                f" {', '.join(f'@{name}' for name in strange)}",
                untouched=UNTOUCHED,
                hint="destroy them there, or run syncresync without --discard: it keeps them aside",
            )
        own = [snap.name for snap in one.newer if snap.rid == who.rid_value]
        changes += [zfs.destroy_snapshot(one.full, name, recursive=False) for name in own]
        if not strange and (own or one.size_bytes != 0):
            size = "changed" if one.size_bytes is None else f"{one.size_bytes} bytes"
            why = f"discarding what was written to {one.full}: {size}"
            changes.append(zfs.rollback(one.full, one.base.name, why))
    return changes


def restore(
    source: Tree,
    there: Tree | None,
    aside: Tree,
    dst: str,
    filesystems: Container[str],
    *,
    who: Identity,
) -> list[zfs.Change]:
    """Return what is left of building dst from the tree aside, by what both hold now.

    A clone without the common snapshot is not promoted yet; one that holds it is done. What has no
    common snapshot, or no parent, stays aside and is sent in full. Of a clone's own properties the
    first receive leaves none (ZFS takes them for received ones): canmount=noauto holds till then,
    so that nothing is mounted over the tree aside, and the mark, so that no other run takes what
    is half built for a replica or a source. `filesystems` are full names.
    """
    pairs = pairing.pair(source, aside)
    changes: list[zfs.Change] = []
    placed = set()
    for name, dataset in source.datasets.items():
        held = there.datasets.get(name) if there else None
        if held is not None and pairing.newest_common(dataset, held):
            placed.add(name)
            continue
        twin = aside.datasets[pairs[name]] if name in pairs else None
        base = _beyond(dataset, twin)[0] if twin else None
        if twin is None or base is None or (name and name.rpartition("/")[0] not in placed):
            continue
        full, new = aside.full(twin.name), f"{dst}/{name}" if name else dst
        if held is None:
            options = ("canmount=noauto",) if full in filesystems else ()
            if name == ROOT:
                options = (*options, f"{MARK}={Standing(repair=who.mark).value}")
            changes.append(zfs.clone(full, base.name, new, options))
        changes.append(zfs.promote(new))
        placed.add(name)
    return changes


def local_properties(
    values: Mapping[str, Mapping[str, tuple[str, str]]], pairs: Mapping[str, str]
) -> dict[str, list[str]]:
    """Return key=value -> the new datasets that get it, since the old ones had it set locally.

    `values` is name -> property -> (value, source) of the old ones, `pairs` new name -> old name.
    What both would be mounted at is mounted by hand only, as long as the old one is there.
    """
    found: dict[str, list[str]] = {}
    for new, old in pairs.items():
        own = {k: v for k, (v, origin) in values.get(old, {}).items() if origin == "local"}
        own = {k: v for k, v in own.items() if ":" not in k and k not in _NOT_KEPT}
        if own.get("mountpoint", "").startswith("/") and own.get("canmount", "on") == "on":
            own["canmount"] = "noauto"
        for key in sorted(own):  # canmount comes before mountpoint, which mounts
            found.setdefault(f"{key}={own[key]}", []).append(new)
    return found


def repair_mark(dst: str, who: Identity) -> zfs.Change:
    """Return what tells every other run to leave the target alone."""
    return zfs.set_property(dst, MARK, Standing(repair=who.mark).value)
