"""What the killing tests know by themselves: every snapshot ever seen, and who holds what of it.

All of it comes from the tests' own `zfs get`. It judges what a state file claims; it never runs the
programs and never changes a node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.lab import CommandError, Node

ROOT = ""
RETAINED = "zfs_sync:retained"


class Snap(NamedTuple):
    """One snapshot."""

    guid: str
    txg: int
    creation: int


class Dataset(NamedTuple):
    """One dataset: its own guid (which a rename keeps) and its snapshots by name."""

    guid: str
    retained: str
    creation: int
    snapshots: dict[str, Snap]


class Tree(NamedTuple):
    """The tree of one snapshot: dataset guid -> the snapshot's guid there."""

    root: str
    creation: int
    members: dict[str, str]


@dataclass
class Listing:
    """All datasets below a root, by relative name; empty where the root does not exist."""

    datasets: dict[str, Dataset] = field(default_factory=dict)

    @classmethod
    def of(cls, node: Node, root: str) -> Listing:
        """Read a node."""
        wanted = f"guid,createtxg,creation,{RETAINED}"
        try:
            text = node.zfs("get", "-rHp", "-o", "name,property,value,source", wanted, root)
        except CommandError as error:
            if "does not exist" not in error.stderr:
                raise
            return cls()
        values: dict[str, dict[str, str]] = {}
        for line in text.splitlines():
            name, key, value, source = line.split("\t")
            if key != RETAINED or source == "local":
                values.setdefault(name[len(root) :], {})[key] = value
        found = cls()
        for name, value_of in values.items():
            relative, at, short = name.partition("@")
            if not at:
                retained = value_of.get(RETAINED, "")
                own = Dataset(value_of["guid"], retained, int(value_of["creation"]), {})
                found.datasets[relative.lstrip("/")] = own
        for name, value_of in values.items():
            relative, at, short = name.partition("@")
            if at:
                numbers = (int(value_of["createtxg"]), int(value_of["creation"]))
                snap = Snap(value_of["guid"], *numbers)
                found.datasets[relative.lstrip("/")].snapshots[short] = snap
        return found

    @property
    def guids(self) -> set[str]:
        """The guids of all snapshots."""
        return {snap.guid for one in self.datasets.values() for snap in one.snapshots.values()}


def digest(members: Mapping[str, str]) -> str:
    """Return the digest that a state file has of relative name -> guid."""
    lines = sorted(f"{name}\0{guid}\n".encode() for name, guid in members.items())
    return hashlib.sha256(b"".join(lines)).hexdigest()


class Ledger:
    """Every snapshot and every tree that was ever seen on the source."""

    def __init__(self) -> None:
        self._snapshots: dict[str, tuple[str, int]] = {}
        self._trees: dict[str, Tree] = {}

    def note(self, source: Listing, old_names: Mapping[str, str]) -> None:
        """Remember the source; `old_names` says what was renamed while a run was going on."""
        if ROOT not in source.datasets:
            return
        for one in source.datasets.values():
            for snap in one.snapshots.values():
                self._snapshots[snap.guid] = (one.guid, snap.txg)
        for short, top in source.datasets[ROOT].snapshots.items():
            holders = {name: one for name, one in source.datasets.items() if short in one.snapshots}
            members = {one.guid: one.snapshots[short].guid for one in holders.values()}
            tree = Tree(top.guid, top.creation, members)
            for names in ({}, old_names):
                named = {
                    names.get(name, name): one.snapshots[short].guid
                    for name, one in holders.items()
                }
                self._trees[digest(named)] = tree

    def held(self, target: Listing) -> dict[str, int]:
        """Return dataset guid -> createtxg of the newest snapshot of it that a target holds."""
        found: dict[str, int] = {}
        for guid in target.guids & set(self._snapshots):
            dataset, txg = self._snapshots[guid]
            found[dataset] = max(txg, found.get(dataset, 0))
        return found

    def lie(self, entry: Mapping[str, Any], source: Listing, target: Listing) -> str | None:
        """Return what is wrong with a state file's claim about a target; None if it is the truth.

        A target that holds something newer of a dataset holds the older data too.
        """
        claimed = entry["snapshot"]
        if claimed is None:
            return "no snapshot is recorded"
        tree = self._trees.get(claimed["digest"])
        if tree is None:
            return f"no tree of the source ever had the digest of {claimed}"
        recorded = (claimed["guid"], claimed["creation"], claimed["datasets"])
        if recorded != (tree.root, tree.creation, len(tree.members)):
            return f"{claimed} is not {tree}"
        held = self.held(target)
        alive = {one.guid for one in source.datasets.values()}
        for dataset, guid in tree.members.items():
            _, txg = self._snapshots[guid]
            if dataset in alive and held.get(dataset, -1) < txg:
                return f"the target lacks {guid} of dataset {dataset}, recorded {claimed}"
        return None
