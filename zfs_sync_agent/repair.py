"""Carries out what a person consented to on one target: syncresync, and the swap of syncfull.

It decides nothing by itself (consent does) and sends nothing. Each step is found again from the
datasets and marks that are there, so that a second call goes on where a first one was cut.
"""

from collections.abc import Callable
from dataclasses import replace

from zfs_sync_agent import consent, observe, pairing, zfs
from zfs_sync_agent.branch import Context, change
from zfs_sync_agent.errors import CommandFailed, Refused
from zfs_sync_agent.model import (
    MARK,
    SWAP,
    Identity,
    SourceView,
    Standing,
    TargetView,
    Tree,
    parse_standing,
)
from zfs_sync_agent.observe import Side


def find_aside(side: Side, dst: str, who: Identity) -> str | None:
    """Return the name of the tree that a syncresync which was cut has put aside."""
    prefix = consent.aside_prefix(dst)
    for name in reversed(observe.list_beside(side, dst)):
        if name.startswith(prefix):
            marks = observe.read_root(side, name)
            if parse_standing(marks.get(MARK)) == Standing(repair=who.mark):
                return name
    return None


class Resync:
    """Takes one target back to the last common snapshots, and keeps or discards the rest."""

    def __init__(
        self,
        context: Context,
        source_side: Side,
        side: Side,
        source: SourceView,
        view: TargetView,
        *,
        discard: bool,
        now: int,
    ) -> None:
        self.context, self.source_side, self.side = context, source_side, side
        self.source, self.view, self.now = source, view, now
        self.discard = discard
        self.aside: TargetView | None = None  # what an earlier call, or this one, put aside
        self.left: str | None = None  # what one that came to its end without us has left
        self.pairs: dict[str, str] = {}  # full names: the new dataset, the one aside

    def look(self) -> list[str]:
        """Look at all snapshots of both sides; return what a person has to know before.

        Raises Refused, BrokenChain where no consent helps.
        """
        tree = self.source.tree
        tree = observe.deepen(self.source_side, tree, list(tree.datasets))
        self.source = replace(self.source, tree=tree)
        self.view = self._observe(self.view.dst)
        who = self.context.who
        if self.view.tree is not None:
            consent.check_is_no_other(self.source, self.view, who)
        aside = find_aside(self.side, self.view.dst, who)
        if aside is not None and self._is_over():
            self.left = aside
        elif aside is not None:
            self.aside = self._observe(aside)
            return [f"{self.view.node}: going on from {aside}, which is kept"]
        if self.view.tree is None:
            return []
        consent.check_resync(self.source, self.view, who)
        found = consent.losses(self.source, self.view)
        aside = None if self.discard else consent.aside_name(self.view.dst, self.now)
        if self.discard:
            consent.discards(self.source, self.view, who)
        lines = consent.tell_resync(self.source, self.view, found, aside=aside if found else None)
        return [*lines, self._sending()]

    def _sending(self) -> str:
        sizes = observe.read_sizes(
            self.source_side,
            [self.source.tree.full(name) for name in self.source.tree.datasets],
            "referenced",
        )
        return consent.tell_sending(self.source, self.view, sizes)

    def run(self, remember: Callable[[], None]) -> None:
        """Do it; `remember` makes it known on the source that the target held a replica.

        Killed anywhere, the target is marked as being repaired, or its dst is missing, which is no
        new target by then: only syncresync touches it.
        """
        if self.view.tree is None and self.aside is None:
            return
        nothing = self.aside is None and not consent.losses(self.source, self.view)
        if nothing and self.view.mark == self.context.who.mark:
            return
        remember()
        if self.left is not None:
            change(self.context, self.side, zfs.set_property(self.left, MARK, ""))
        if self.aside is None:
            change(self.context, self.side, consent.repair_mark(self.view.dst, self.context.who))
            if self.discard or nothing:
                self._discard()
            else:
                self._put_aside()
        if self.aside is not None:
            self._restore(self.aside)
        self._adopt()

    def _discard(self) -> None:
        for step in consent.discards(self.source, self.view, self.context.who):
            change(self.context, self.side, step)

    def _put_aside(self) -> None:
        name = consent.aside_name(self.view.dst, self.now)
        change(self.context, self.side, zfs.rename_tree(self.view.dst, name))
        self.aside = self._observe(name)

    def _restore(self, aside: TargetView) -> None:
        assert aside.tree is not None  # noqa: S101 - it was just found
        dst, source = self.view.dst, self.source.tree
        self.view = self._observe(dst)
        values = self._properties(aside.tree)
        filesystems = {n for n, own in values.items() if own.get("type", ("",))[0] == "filesystem"}
        self.pairs = {
            f"{dst}/{name}" if name else dst: aside.tree.full(twin)
            for name, twin in pairing.pair(source, aside.tree).items()
        }
        who, there = self.context.who, self.view.tree
        for step in consent.restore(source, there, aside.tree, dst, filesystems, who=who):
            self._build(step)
        if not self.context.resource.recursive:
            self._move_back(aside.dst)

    def _build(self, step: zfs.Change) -> None:
        """A clone that cannot be mounted is a clone."""
        try:
            change(self.context, self.side, step)
        except CommandFailed as error:
            if step.verb != "clone" or not observe.read_names(self.side, [step.argv[-1]]):
                raise
            self.context.warn(f"{error.reason}; but it is there")

    def _move_back(self, aside: str) -> None:
        """What is below the one dataset of the resource is none of it."""
        answer = self.side.run(zfs.list_children_argv(aside))
        for name in answer.stdout.splitlines():
            if name.startswith(f"{aside}/"):
                new = self.view.dst + name[len(aside) :]
                change(self.context, self.side, zfs.rename_tree(name, new))

    def _properties(self, tree: Tree) -> dict[str, dict[str, tuple[str, str]]]:
        names = [tree.full(name) for name in tree.datasets]
        return zfs.parse_values(self.side.run(zfs.get_values_argv("all"), names).stdout)

    def _adopt(self) -> None:
        """The replica is whole again: no other run is kept away any more."""
        context, dst = self.context, self.view.dst
        if context.resource.replica_readonly:
            change(context, self.side, zfs.set_readonly(dst))
        change(context, self.side, zfs.set_property(dst, MARK, context.who.mark))

    def finish(self) -> None:
        """After a receive onto the new datasets: what was set on the old ones is set on them.

        The first receive clears what was set before it. The mark of the tree aside goes last: as
        long as it is there, a second syncresync does all of this again.
        """
        if self.aside is None or self.aside.tree is None:
            return
        kept = consent.local_properties(self._properties(self.aside.tree), self.pairs)
        for setting, names in kept.items():
            there = list(observe.read_names(self.side, names))
            argv = ("set", setting)
            self.context.info(f"{self.side.shown(argv)} (on {', '.join(there)})")
            answer = self.side.run(argv, there)
            if answer.status != 0:
                self.context.warn(f"{' '.join(argv)}: {' '.join(answer.stderr.split())}")
        change(self.context, self.side, zfs.set_property(self.aside.dst, MARK, ""))
        self.context.warn(
            f"what {self.view.node} held is kept as {self.aside.dst}; once nobody needs it:"
            f" zfs destroy -r {self.aside.dst}"
        )

    # --- what is there --------------------------------------------------------------------------

    def _observe(self, dst: str) -> TargetView:
        """Return a tree of the target with all its snapshots."""
        return observe.observe_target(
            self.side,
            self.view.node,
            dst,
            self.context.names,
            self.source,
            recursive=self.context.resource.recursive,
            deep=True,
        )

    def _is_over(self) -> bool:
        """Tell whether dst is a replica again that has something new to be rolled back."""
        if self.view.tree is None or self.view.mark != self.context.who.mark:
            return False
        found = consent.losses(self.source, self.view)
        return any(one.base is None or one.newer or one.size_bytes for one in found)


class Swap:
    """Lets the copy that syncfull made take the place of the old one, which is destroyed last.

    The new copy's property SWAP names the old one by name and guid before anything is renamed.
    """

    def __init__(self, context: Context, side: Side, source: SourceView, node: str, dst: str):
        self.context, self.side, self.source = context, side, source
        self.node, self.dst = node, dst
        self.beside = consent.beside_name(dst)

    def begin(self) -> None:
        """Name the old copy in the new one, then rename both."""
        taken = observe.list_beside(self.side, self.dst)
        old = f"{self.dst}.old"
        number = 1
        while old in taken:
            number += 1
            old = f"{self.dst}.old{number}"
        guid = observe.read_guid(self.side, self.dst)
        change(self.context, self.side, zfs.set_property(self.beside, SWAP, f"{old} {guid}"))
        change(self.context, self.side, zfs.rename_tree(self.dst, old))
        self._rename()

    def finish_renaming(self) -> bool:
        """Go on where dst is missing since a run was cut; tell whether that is how it was."""
        if self.beside not in observe.list_beside(self.side, self.dst):
            return False
        marks = observe.read_root(self.side, self.beside)
        if marks.get(MARK) != self.context.who.mark or SWAP not in marks:
            return False
        self.context.warn(f"a syncfull was cut: {self.beside} takes the place of {self.dst}")
        self._rename()
        return True

    def _rename(self) -> None:
        change(self.context, self.side, zfs.rename_tree(self.beside, self.dst))

    def drop_old(self, swap: str) -> None:
        """Destroy the old copy, if it is still the one that was named and holds nothing foreign."""
        name, _, guid = swap.rpartition(" ")
        there = name in observe.list_beside(self.side, self.dst)
        if there and observe.read_guid(self.side, name) == guid and not self._destroy(name):
            return
        change(self.context, self.side, zfs.set_property(self.dst, SWAP, ""))

    def _destroy(self, name: str) -> bool:
        names = self.context.names
        old = observe.observe_target(
            self.side, self.node, name, names, self.source, recursive=True, deep=True
        )
        if old.tree is None:
            return True
        try:
            consent.check_replaceable(
                self.source, old, self.context.who, in_place=False, keep_gone=False
            )
        except Refused as refused:
            self.context.warn(f"{name} is kept: {refused.reason}")
            return False
        why = f"destroying {name}: {self.dst} was sent anew, and proven"
        try:
            change(self.context, self.side, zfs.destroy_dataset(name, why))
        except CommandFailed as error:
            self.context.warn(f"{error.reason}; it is kept, later runs try again")
            return False
        return True
