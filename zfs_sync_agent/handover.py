"""Decides who the source is: takeover, and what becomes of the nodes that follow a new source.

It is pure, and permits nothing by itself: whether a target goes over to a source that took over is
a question of marks, whether anything there was never sent is one of guids and of bytes written.
"""

from collections.abc import Callable
from dataclasses import dataclass

from zfs_sync_agent import judge, pairing, zfs
from zfs_sync_agent.errors import UNTOUCHED, Refused
from zfs_sync_agent.model import MARK, ROOT, Identity, Names, SourceView, Standing, TargetView


@dataclass(frozen=True)
class Unsent:
    """What a dataset of a target has that the source never had; `size_bytes` None: ZFS cannot tell.

    `name` is the full name, `base` the last snapshot that both hold (None: there is none).
    """

    name: str
    base: str | None
    snapshots: tuple[str, ...]
    size_bytes: int | None

    def __str__(self) -> str:
        size = "some bytes" if self.size_bytes is None else f"{self.size_bytes} bytes"
        since = f" since @{self.base}" if self.base else ""
        newer = f", snapshots {', '.join(f'@{name}' for name in self.snapshots)}"
        return f"{self.name}: {size} written{since}{newer if self.snapshots else ''}"


def follows(source: SourceView, target: TargetView, who: Identity) -> bool:
    """Tell whether the target goes over to this node, which took over from the one before.

    That is the old source itself, if its own takeover is not a later one, and the replicas of
    whichever node of the service file was the source.
    """
    if source.source_since is None or target.mark == who.mark or target.tree is None:
        return False
    if target.mark is not None:
        other, _, resource = target.mark.partition("/")
        return other in who.peers and resource == who.rid_value
    return target.repair is None and (target.source_since or 0) < source.source_since


def check_no_later_source(source: SourceView, target: TargetView, who: Identity) -> None:
    """Raise Refused where the target took over later: it is the source, for all targets."""
    if (target.source_since or 0) <= (source.source_since or 0):
        return
    raise Refused(
        f"{target.dst} on {target.node} is the source of {who.rid_value} by takeover",
        untouched=UNTOUCHED,
        hint=f"if {who.source} is to be the source: zfs_sync_agent -s {who.service} --rid {who.rid}"
        f" takeover (on {who.source}), then again; else the next run of {target.node} makes"
        f" {who.source} its replica, unless data would be lost by that",
    )


def was_source(target: TargetView) -> bool:
    """Tell whether the target may have been a source: it carries no mark of a replica."""
    return target.tree is not None and target.mark is None and target.repair is None


def unsent(
    source: SourceView, target: TargetView, who: Identity, *, recursive: bool
) -> list[Unsent]:
    """Return what the target holds and the source never had, as far as ZFS can tell.

    Snapshots of others, of another resource of the same src too, stay where they are and count by
    their bytes alone. Needs a listing of all snapshots of the target. Where ZFS has no property
    `written`, changes since the last snapshot are not in it: the receive finds those.
    """
    if target.tree is None:
        return []
    twins = {twin: name for name, twin in pairing.pair(source.tree, target.tree).items()}
    found = []
    for name, twin in target.tree.datasets.items():
        if not recursive and name != ROOT:
            continue
        full = target.tree.full(name)
        here = source.tree.datasets[twins[name]] if name in twins else None
        common = pairing.newest_common(here, twin) if here else None
        base = twin.by_guid(common.guid) if common else None
        newer = [
            snap for snap in twin.snapshots.values() if base is None or snap.order > base.order
        ]
        sizes = [snap.written for snap in newer] + [twin.written]
        size = None if None in sizes else sum(one for one in sizes if one)
        own = any(snap.rid == who.rid_value for snap in newer)
        if base is None or own or size:
            names = tuple(snap.name for snap in sorted(newer, key=lambda snap: snap.order))
            found.append(Unsent(full, base.name if base else None, names, size))
    return found


def check_nothing_unsent(
    source: SourceView, target: TargetView, who: Identity, *, recursive: bool
) -> None:
    """Raise Refused where the node that was the source holds what it never sent."""
    found = unsent(source, target, who, recursive=recursive)
    if not found:
        return
    listed = "; ".join(str(one) for one in found[:5]) + ("; ..." if found[5:] else "")
    sizes = [one.size_bytes for one in found]
    total = "an unknown number of" if None in sizes else str(sum(one for one in sizes if one))
    raise Refused(
        f"{target.dst} on {target.node} holds {total} bytes that {who.source} never had: {listed}",
        untouched=UNTOUCHED,
        hint=f"zfs_sync_agent -s {who.service} --rid {who.rid} --node {target.node} syncresync"
        f" (on {who.source}); it keeps them beside {target.dst}, see zfs_sync(7)",
    )


def check_takeover(source: SourceView, who: Identity) -> None:
    """Raise Refused where src is no whole replica of this resource.

    There is one mark: to replace another resource's would end the replication by that one.
    """
    src, of = source.tree.root, source.replica_of
    if of is not None and not judge.is_standby(source, who):
        service, _, rid = of.partition("/")[2].partition("/")
        raise Refused(
            f"{src} is the replica of {of}, not of {who.rid_value}",
            untouched=UNTOUCHED,
            hint=f"{who.rid_value} sends it on as it is; if {who.source} is to be the source of"
            f" {service}/{rid}: zfs_sync_agent -s {service} --rid {rid} takeover",
        )
    if source.half_built:
        raise Refused(
            f"a syncresync of {src} on {who.source} did not come to its end: datasets may be"
            " missing from it",
            untouched=UNTOUCHED,
            hint=f"let it go on, from the node that began it; if that one is lost: what {src} held"
            f" is in {src}.unsent-DATE, if that is there: zfs rename it to {src}; then"
            f" zfs inherit {MARK} {src}, and takeover",
        )


def tell_takeover(source: SourceView, names: Names, date: Callable[[int], str]) -> list[str]:
    """Return what a person has to know before this node becomes the source."""
    src = source.tree.root
    if source.replica_of is None:
        return [f"{src} is no replica; it is the source from now on"]
    held = source.tree.datasets[ROOT].snapshots.get(names.sent)
    lines = [f"{src} was the replica of {source.replica_of}; it is the source from now on"]
    if held:
        lines.append(
            f"it holds the data as of {date(held.creation)}; what the old source got since"
        )
        lines.append("then is not in it, and is kept there until syncresync or a person decides")
    return lines


def takeover(src: str, *, readonly: bool, now: int) -> tuple[zfs.Change, ...]:
    """Return what makes a src the source from now on; `readonly` is set on src itself.

    Cut before the mark the node is still a standby; cut after it, a second takeover does the rest.
    """
    mark = zfs.set_property(src, MARK, Standing(source_since=now).value)
    writable = zfs.set_property(src, "readonly", "")
    return (mark, writable) if readonly else (mark,)
