"""Decides which dataset of the source is which of the target, and how each stands there.

It is pure. Guids tell the same snapshot on both sides; a name counts only for what is left.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass

from zfs_sync_agent.model import ROOT, Dataset, Identity, Snapshot, Tree


@dataclass(frozen=True, slots=True)
class Stand:
    """How one source dataset stands on a target; `target` is its name there, None: not there.

    `common` is the newest snapshot that both hold, as the source names it.
    """

    relative: str
    target: str | None
    common: Snapshot | None
    has_goal: bool


def pair(source: Tree, target: Tree) -> dict[str, str]:
    """Return source name -> target name of the datasets that are the same one (relative names).

    A common guid decides, since a receive renames children on its way: that of the same name first
    (somebody may have made a copy of a copy), then that of another one which carries our mark, or
    the name that we gave it (the rest of a cut stream carries no mark). What is left is paired by
    name, except where the source's dataset is younger than the last common snapshot: that is
    another dataset, created or moved there under the name.
    """
    pairs = {ROOT: ROOT} if ROOT in target.datasets else {}
    for name, dataset in source.datasets.items():
        if name not in pairs and newest_common(dataset, target.datasets.get(name)):
            pairs[name] = name
    taken = set(pairs.values())
    where = {
        snapshot.guid: dataset.name
        for dataset in without(target, taken)
        for snapshot in dataset.snapshots.values()
        if any(one.rid for one in dataset.snapshots.values())
        or dataset.name.endswith(place_suffix(snapshot.guid))
    }
    for dataset in without(source, pairs):
        newest_first = sorted(dataset.snapshots.values(), key=lambda snap: snap.order, reverse=True)
        hits = (where[snap.guid] for snap in newest_first if snap.guid in where)
        if (hit := next(hits, None)) and hit not in taken:
            pairs[dataset.name] = hit
            taken.add(hit)
    left = [
        dataset
        for dataset in without(source, pairs)
        if dataset.name in target.datasets and dataset.name not in taken
    ]
    since = _last_base(source, target, pairs) if left else None
    for dataset in left:
        if since is None or dataset.createtxg <= since:
            pairs[dataset.name] = dataset.name
    return pairs


def _last_base(source: Tree, target: Tree, pairs: Mapping[str, str]) -> int | None:
    """Return the txg of the last common snapshot, None if the root has none.

    The root's name of it may be that of an older one elsewhere, where only a part was sent: then it
    is the oldest. A child that lags holds its base under another name.
    """
    base = newest_common(source.datasets[ROOT], target.datasets.get(ROOT))
    if base is None:
        return None
    common = (
        newest_common(source.datasets[name], target.datasets[twin]) for name, twin in pairs.items()
    )
    return min(snap.createtxg for snap in common if snap is not None and snap.name == base.name)


def without(tree: Tree, names: Container[str]) -> list[Dataset]:
    """Return the datasets of a tree but for these; mostly few are left."""
    return [tree.datasets[name] for name in tree.datasets if name not in names]


def place_suffix(guid: str) -> str:
    """Return the end of the name of a dataset that is received where its own name is taken."""
    return f".{guid[-6:]}"


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
    taken = set(pairs.values())
    lone_target += [one.name for one in without(target, taken) if not one.complete]
    # A lone target dataset may be one that the source renamed: then only the source's other
    # snapshots tell.
    if lone_target:
        lone_source += [one.name for one in without(source, pairs) if not one.complete]
    return lone_source, lone_target


def unproven(source: Tree, target: Tree | None, goal: str) -> list[str]:
    """Return the datasets of the goal's tree that a listing of the target does not show there."""
    held = {
        snapshot.guid
        for dataset in (target.datasets.values() if target else ())
        for snapshot in dataset.snapshots.values()
    }
    return [name for name, guid in source.guids(goal).items() if guid not in held]


def resumable(source: Tree, dataset: Dataset) -> tuple[str, Snapshot] | None:
    """Return the source's dataset and snapshot that a receive which was cut there is for."""
    guid = dataset.partial.guid if dataset.partial else None
    for name, one in source.datasets.items():
        if guid is not None and (snap := one.by_guid(guid)) is not None:
            return name, snap
    return None


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


def with_unchanged(tree: Tree, goal: str, base: str, unchanged: Container[str]) -> Tree:
    """Return the tree in which the `base` of the unchanged datasets stands for the goal, too.

    It holds what the goal would: nothing was written in between.
    """
    datasets = {
        name: one._replace(snapshots={**one.snapshots, goal: one.snapshots[base]})
        if name in unchanged
        else one
        for name, one in tree.datasets.items()
    }
    return Tree(tree.root, datasets)


def is_ours(dataset: Dataset, who: Identity) -> bool:
    """Tell whether a snapshot in a dataset has the mark of this resource."""
    return any(snap.rid == who.rid_value for snap in dataset.snapshots.values())
