"""Runs that a person asks for: syncresync and syncfull, for the targets that were named.

It changes what an ordinary run does before the first stream and after the last, and nothing else;
what may be given up is decided by consent. A refusal of these is told, and not recorded: it says
nothing about the replica.
"""

import threading
from collections.abc import Sequence
from dataclasses import replace

from zfs_sync_agent import consent, judge, observe, record, zfs
from zfs_sync_agent.branch import change
from zfs_sync_agent.errors import SyncError
from zfs_sync_agent.execute import Run, Worker
from zfs_sync_agent.judge import Role
from zfs_sync_agent.model import SourceView, TargetView
from zfs_sync_agent.repair import Resync, Swap

_PRINTING = threading.Lock()


class ResyncRun(Run):
    """Takes each target back to the last common snapshots; then it is an ordinary run."""

    asked = True
    discard = False

    def _prepare(self, source: SourceView) -> SourceView | None:
        self.resyncs: dict[str, Resync] = {}
        self._each(self.workers, lambda worker: self._resync(worker, source))
        for worker in self.workers:
            worker.recorded |= worker.error is not None
        if self.settings.dry_run:
            return None
        return self._observe_again()

    def _observe_again(self) -> SourceView:
        source = self._observe_source()
        self._each(self.workers, lambda worker: self._observe(worker, source))
        return source

    def _resync(self, worker: Worker, source: SourceView) -> None:
        assert worker.view is not None  # noqa: S101 - it was observed
        judge.check_state_owner(worker.view, self.who)
        resync = Resync(
            self.context,
            self.side,
            worker.side,
            source,
            worker.view,
            discard=self.discard,
            now=record.now(),
        )
        self._say(resync.look())
        if not self.settings.dry_run:
            resync.run(lambda: self._remember(worker))
            self.resyncs[worker.node] = resync

    def _land(self, worker: Worker) -> None:
        if worker.node in self.resyncs:
            self.resyncs[worker.node].finish()

    def _remember(self, worker: Worker) -> None:
        with self.record.exclusive():
            self._set_targets(worker.source_side, lambda known: known | {worker.node})

    def _say(self, lines: Sequence[str]) -> None:
        with _PRINTING:
            for line in lines:
                self.settings.show(line)


class DiscardRun(ResyncRun):
    """The same, and keeps nothing of what the source never had."""

    discard = True


class FullRun(ResyncRun):
    """Sends everything beside dst, and lets that take its place; a dst that is absent is filled."""

    in_place = False

    def _prepare(self, source: SourceView) -> SourceView | None:
        return source

    def _judge(self, worker: Worker, source: SourceView, view: TargetView, *, known: bool) -> None:
        try:
            if view.tree is not None and self.consent and not worker.swapped:
                self._replace(worker, source, view)
                return
            super()._judge(worker, source, view, known=known)
            if view.tree is None:
                self._say([self._sending(source, view)])
        except SyncError:
            worker.recorded = True
            raise

    def _check(self, worker: Worker, view: TargetView, source: SourceView) -> Role:
        worker.deep = True
        role = super()._check(worker, view, source)
        return Role.JOINING if worker.beside else role

    def _sending(self, source: SourceView, view: TargetView) -> str:
        return consent.tell_sending(source, replace(view, tree=None), self._sizes(source))

    def _sizes(self, source: SourceView) -> dict[str, int]:
        names = [source.tree.full(name) for name in source.tree.datasets]
        return observe.read_sizes(self.side, names, "referenced")

    def _replace(self, worker: Worker, source: SourceView, view: TargetView) -> None:
        judge.check_state_owner(view, self.who)
        whole = self._check_replaceable(worker, source)
        if self.in_place:
            self._clear(worker, source, whole)
        else:
            self._go_beside(worker, source, view)

    def _check_replaceable(self, worker: Worker, source: SourceView) -> TargetView:
        """Return all that is at dst, also what is none of the resource: all of it would go."""
        view = self._observe_whole(worker, source, self.dst, recursive=True)
        if view.tree is not None:
            tree = observe.deepen(worker.source_side, source.tree, list(source.tree.datasets))
            known = replace(source, tree=tree)
            keep_gone = not (self.resource.recursive and self.resource.on_child_gone == "follow")
            consent.check_replaceable(
                known, view, self.who, in_place=self.in_place, keep_gone=keep_gone
            )
        return view

    def _clear(self, worker: Worker, source: SourceView, view: TargetView) -> None:
        """Destroy what is there, for which the person gave the consent. Cut, it is done again."""
        assert view.tree is not None  # noqa: S101 - the caller saw it
        full = [view.tree.full(name) for name in view.tree.datasets]
        sizes = observe.read_sizes(worker.side, full, "referenced")
        lines = [f"{view.node}: destroyed before anything is sent, for good:"]
        lines += [f"{view.node}:   {name}: {sizes.get(name, 0)} bytes" for name in full]
        self._say([*lines, self._sending(source, view)])
        why = f"destroying {view.dst}: syncfull --in-place"
        step = zfs.destroy_dataset(view.dst, why)
        if self.settings.dry_run:
            self._do_or_show(worker.side, step)
            worker.view = replace(view, tree=None, mark=None)
            return
        self._start_anew(worker)
        change(self.context, worker.side, step)
        self._observe(worker, source)

    def _go_beside(self, worker: Worker, source: SourceView, view: TargetView) -> None:
        """From here on the target's view is that of the new copy."""
        dst = consent.beside_name(view.dst)
        beside = self._observe_whole(worker, source, dst, recursive=True)
        goal = self.names.tosend_for(worker.node)
        if stale := consent.check_beside(source, beside, self.who, goal):
            self._do_or_show(worker.side, stale)
        recursive = self.resource.recursive
        beside = self._observe_whole(worker, source, dst, recursive=recursive)
        sizes = self._sizes(source)
        if beside.tree is None:
            parent = dst.rpartition("/")[0]
            available = observe.read_sizes(worker.side, [parent], "available").get(parent, 0)
            consent.check_room(view, sum(sizes.values()), available, self.who)
        lines = [self._sending(source, view)] if beside.tree is None else []
        self._say(
            [
                *lines,
                f"{view.node}: sent to {dst}; when it is proven it takes the place of {view.dst},"
                " which is destroyed last",
            ]
        )
        worker.view, worker.beside = beside, True

    def _observe_whole(
        self, worker: Worker, source: SourceView, dst: str, *, recursive: bool
    ) -> TargetView:
        """Return a tree of the target with all its snapshots."""
        return observe.observe_target(
            worker.side, worker.node, dst, self.names, source, recursive=recursive, deep=True
        )

    def _land(self, worker: Worker) -> None:
        """The new copy is proven: it takes the place of the old one, if that is still no more."""
        if not worker.beside:
            return
        assert worker.branch is not None  # noqa: S101 - it was just brought to its goal
        source = worker.branch.source
        self._check_replaceable(worker, source)
        self._remember(worker)  # from here on a dst that is missing is no new target
        swap = Swap(self.context, worker.side, source, worker.node, self.dst)
        swap.begin()
        worker.beside = False
        self._observe(worker, source)
        view = worker.view
        assert view is not None  # noqa: S101 - it was just made
        if view.swap is not None:
            swap.drop_old(view.swap)
        worker.branch.view = view


class InPlaceRun(FullRun):
    """The same, without a second copy: what is there is destroyed first."""

    in_place = True
