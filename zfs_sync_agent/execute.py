"""Carries out one run of one sync resource: observe, plan, branches in parallel, finish, record.

It never decides what to write; plan does. It never holds up one target for another: a new or
lagging one joins with a snapshot and a lock of its own.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from check_zfs_sync.service import Target
from check_zfs_sync.statefile import KeptBase, Success, TargetState, digest
from check_zfs_sync.statefile import Snapshot as StateSnapshot
from zfs_sync_agent import handover, judge, observe, pairing, pipe, plan, record, rotating, zfs
from zfs_sync_agent.branch import (
    Branch,
    Context,
    apply_rotation,
    change,
    set_retained,
    shown_pipe,
)
from zfs_sync_agent.errors import UNTOUCHED, CommandFailed, NoAnswer, Refused, StandbyFor, SyncError
from zfs_sync_agent.judge import Role
from zfs_sync_agent.model import (
    RETAINED,
    ROOT,
    TARGETS,
    Dataset,
    SourceView,
    TargetView,
    Tree,
    format_nodes,
    parse_nodes,
)
from zfs_sync_agent.observe import Side
from zfs_sync_agent.record import Lock, Record
from zfs_sync_agent.repair import Swap, find_aside
from zfs_sync_agent.transport import Shell, quote


@dataclass(frozen=True)
class Settings:
    """What one invocation asks of every resource."""

    nodename: str
    consent: bool  # syncfull: a vanished target may be filled again
    dry_run: bool
    show: Callable[[str], None]  # the dry run's printer


@dataclass(frozen=True)
class Outcome:
    """What became of one target; `error` None: in sync, joined, or left alone for a good reason."""

    node: str
    dst: str
    error: SyncError | None


def _keeping(kept: tuple[KeptBase, ...], entry: TargetState) -> TargetState:
    return entry._replace(kept_bases=kept)


class Worker:
    """One target in one run: its lock, its sides, what was seen of it, what became of it.

    `view` is the last listing, None while nothing is known. `joins`: it has a snapshot of its own,
    and a thread that may outlive the run's other work.
    """

    def __init__(self, target: Target, lock: Lock, side: Side, source_side: Side) -> None:
        self.target, self.node, self.lock = target, target.node, lock
        self.side, self.source_side = side, source_side
        self.view: TargetView | None = None
        self.branch: Branch | None = None
        self.error: SyncError | None = None
        self.begun = record.now()
        self.deep = False
        self.swapped = False  # a syncfull that was cut came to its end in this run
        self.recorded = False
        self.joins = False
        self.written: frozenset[str] | None = None  # what was written to there since @sent
        self.beside = False  # what is sent goes beside dst, and then takes its place
        self.thread: threading.Thread | None = None
        self._settled = threading.Event()

    @property
    def knowledge(self) -> rotating.Knowledge:
        """Return what a run knows of the target at its end; a join's end is not waited for."""
        if self.joins:
            return rotating.NOTHING_KNOWN
        branch = self.branch
        if branch is None:
            return rotating.Knowledge(proven=False, listing=self.view, may_hold_goal=False)
        listing = None if branch.may_hold_goal else branch.view
        return rotating.Knowledge(branch.proven, listing, branch.may_hold_goal)

    def start(self, act: Callable[["Worker"], None]) -> None:
        """Run one step of this target in a thread of its own; a failure stays with the target."""

        def guarded() -> None:
            try:
                act(self)
            except SyncError as error:
                self.error = self.error or error
            except Exception as error:
                what = f"internal failure: {type(error).__name__}"
                self.error = self.error or CommandFailed(what, detail=str(error))
            finally:
                self.settle()

        self._settled.clear()
        self.thread = threading.Thread(target=guarded)
        self.thread.start()

    def settle(self) -> None:
        """Tell that what is left of the step is the copy of the state alone."""
        self._settled.set()

    def wait_until_settled(self) -> None:
        """Wait for as much of the step as the others have to know of."""
        if self.thread is not None:
            self._settled.wait()

    def wait(self) -> None:
        """Wait for the step."""
        if self.thread is not None:
            self.thread.join()


class Run:
    """One run of one resource under its lock."""

    asked = False  # a person asked for it: what an ordinary run passes over in silence is told

    def __init__(
        self,
        context: Context,
        settings: Settings,
        rec: Record,
        lock: Lock,
        targets: Sequence[Target],
    ) -> None:
        resource = context.resource
        assert resource.src is not None  # noqa: S101 - only sources are run
        assert resource.dst is not None  # noqa: S101
        self.context, self.settings, self.record, self.lock = context, settings, rec, lock
        self.resource, self.names, self.who = resource, context.names, context.who
        self.src, self.dst = resource.src, resource.dst
        on_way = [pipe.programs(resource, one.node).source for one in targets]
        self.side = self._side(settings.nodename, (), lock, *on_way)
        self.consent = settings.consent
        self.looked_at = 0
        self.workers = [worker for one in targets if (worker := self._worker(one))]

    def _side(
        self, node: str, ssh: Sequence[str], lock: Lock, *programs: Mapping[str, str]
    ) -> Side:
        """Return a node; `programs` are, by key, those that it has to have besides zfs."""
        words, sudo = self.resource.zfs.get(node, ("zfs",)), self.resource.sudo.get(node, False)
        names = sorted({name for one in programs for name in one.values()})
        return Side(Shell(node, ssh, (lock.fd,)), words, sudo=sudo, programs=names)

    def _worker(self, target: Target) -> Worker | None:
        """Lock the target; None where another run's join, or its orphan, still works on it.

        The lock comes before the first look: a listing of a moment in between would mislead. What
        is started for the target holds this lock alone, so a join does not hold up the others.
        """
        lock = record.acquire(self.record.lock_path(target.node))
        if not isinstance(lock, Lock):
            what = f"{target.node} is being worked on since {record.utc(lock)}"
            if self.asked:
                raise CommandFailed(what, untouched=UNTOUCHED, hint="try again later")
            self.context.info(f"{what}; left to it")
            return None
        ssh = () if target.group == "local" else self.resource.ssh
        programs = pipe.programs(self.resource, target.node)
        side = self._side(target.node, ssh, lock, programs.target)
        worker = Worker(target, lock, side, self.side)
        worker.deep = self.resource.intermediary  # with -I any name may be in the way
        return worker

    def go(self) -> list[Outcome]:
        """Do it all. Raises SyncError for what concerns the source, and so every target."""
        try:
            self._go()
        finally:
            here = [worker for worker in self.workers if not worker.joins]
            for worker in here:
                worker.wait()
                worker.side.shell.leave()  # all at once: it is a round trip each
            self.side.shell.close()
            for worker in here:
                worker.side.shell.close()
                worker.lock.close()
            self.lock.close()
        for worker in self.workers:
            worker.wait()
        return [Outcome(worker.node, self.dst, worker.error) for worker in self.workers]

    def _go(self) -> None:
        # The handshakes go on while the source is read.
        self._connect(lambda shell: shell.open())
        try:
            source = self._observe_source()
        except SyncError as error:
            if not self.record.is_mine():  # it is the copy that the source pushed here
                raise
            self._fail_all(error)
            return
        if judge.is_standby(source, self.who):
            if not self.resource.only_if:
                self._stand_by(source)
                return
            self.context.warn("only_if passes on a standby: this node becomes the source")
            self._take_over(source)
            source = self._observe_source()
        may_skip = self.resource.skip_unchanged and self.side.can.written
        if not (self.settings.dry_run or may_skip):
            # What will be sent does not have to wait for it.
            self._connect(lambda shell: shell.open_data())
        try:
            self._each(self.workers, lambda worker: self._observe(worker, source))
            for worker in self.workers:
                if worker.view is not None:
                    handover.check_no_later_source(source, worker.view, self.who)
            judge.check_source(source, self.names, self.who)
            self._synchronize(source)
        except SyncError as error:
            self._fail_all(error)
        else:
            self._record_failures()

    def _connect(self, begin: Callable[[Shell], None]) -> None:
        """Begin to connect to every target; the first command tells of one that does not answer."""
        for worker in self.workers:
            with contextlib.suppress(NoAnswer):
                begin(worker.side.shell)

    def _synchronize(self, source: SourceView) -> None:
        prepared = self._prepare(source)
        if prepared is None:
            return
        if self.settings.dry_run:
            self._show_plan(prepared)
        elif self._cycle(self._finish_half_rotated(prepared)):
            self._cycle(self._look_again())
        if not self.settings.dry_run:
            self._record_kept_bases(prepared)

    def _fail_all(self, error: SyncError) -> None:
        """Record a failure of the source's side: it is the same for every target."""
        for worker in self.workers:
            worker.error = worker.error or error
        self._record_failures()

    def _record_failures(self) -> None:
        for worker in self.workers if not self.settings.dry_run else []:
            if worker.error is not None and not worker.recorded and not worker.joins:
                try:
                    self._record_failure(worker, worker.error)
                except SyncError as error:  # the failure itself is what is told
                    self.context.warn(error.reason)

    def _stand_by(self, source: SourceView) -> None:
        what = f"{self.src} is the replica of {source.replica_of}"
        if self.asked:
            raise Refused(
                f"{self.settings.nodename} stands by: {what}",
                untouched=UNTOUCHED,
                hint="run it on the source; or, if this node is to be the source: takeover",
            )
        self.context.info(f"standby: {what}; nothing to send")

    def take_over(self) -> None:
        """Make this node the source: the whole of a run that a person asked for."""
        try:
            source = self._observe_source()
            self._take_over(source)
            for line in handover.tell_takeover(source, self.names, record.utc):
                self.settings.show(line)
        finally:
            self.side.shell.close()
            self.lock.close()

    def _take_over(self, source: SourceView) -> None:
        """Make this node the source: its src is no replica any more, and may be written to.

        Every target counts as holding what this node was sent last, until a listing shows more; but
        for a local one, which only this node fills.
        """
        handover.check_takeover(source, self.who)
        everyone = frozenset(one.node for one in self.resource.targets if one.group != "local")
        readonly = observe.is_set_here(self.side, self.src, "readonly", "on")
        steps = handover.takeover(self.src, readonly=readonly, now=record.now())
        with self.record.exclusive():
            if not self.settings.dry_run:
                self._set_targets(self.side, lambda known: known | everyone)
            for step in steps:
                self._do_or_show(self.side, step)

    def _do_or_show(self, side: Side, step: zfs.Change) -> None:
        if self.settings.dry_run:
            self._show_step(side, step)
        else:
            change(self.context, side, step)

    def _prepare(self, source: SourceView) -> SourceView | None:
        """Do what comes before the cycle; None: that was all."""
        return source

    def _land(self, worker: Worker) -> None:
        """Do what comes between the proof of the goal and its record."""

    def _each(self, workers: Iterable[Worker], act: Callable[[Worker], None]) -> None:
        """Take one step of all targets at once; wait for all."""
        for worker in self._begin(workers, act):
            worker.wait()

    @staticmethod
    def _begin(workers: Iterable[Worker], act: Callable[[Worker], None]) -> list[Worker]:
        """Begin one step of all targets at once; return those of which it has begun."""
        busy = [worker for worker in workers if worker.error is None and not worker.joins]
        for worker in busy:
            worker.start(act)
        return busy

    # --- observe ------------------------------------------------------------------------------

    def _observe_source(self) -> SourceView:
        # What is created or written from here on may be seen or not: a claim is older than that.
        self.looked_at = record.now()
        return observe.observe_source(
            self.side,
            self.src,
            self.names,
            self.who.rid_value,
            recursive=self.resource.recursive,
            deep=self.resource.intermediary,
        )

    def _observe(self, worker: Worker, source: SourceView) -> None:
        worker.view = observe.observe_target(
            worker.side,
            worker.node,
            self.dst,
            self.names,
            source,
            recursive=self.resource.recursive,
            state_path=None if worker.target.group == "local" else self.record.path,
        )

    def _look_again(self) -> SourceView:
        """An earlier run's B was finished: take a new one too, so that the lag stays honest.

        What failed is not looked at again: what it may hold stands in the property by now.
        """
        source = self._observe_source()
        self.consent = False
        if self.resource.on_child_gone == "follow":
            # Seen to be gone in the first cycle is not yet "one run later".
            self.resource = self.resource._replace(on_child_gone="keep")
            self.context = replace(self.context, resource=self.resource)
        for worker in self.workers:
            if not worker.joins:
                worker.branch = worker.view = None
        self._each(self.workers, lambda worker: self._observe(worker, source))
        return source

    # --- one cycle ----------------------------------------------------------------------------

    def _cycle(self, source: SourceView) -> bool:
        """Take B, bring the targets to it, rotate; return whether it was an earlier run's B."""
        leftover = self.names.tosend in source.tree.datasets[ROOT].snapshots
        roles = self._roles(source)
        abreast, joining = roles[Role.ABREAST], roles[Role.JOINING]
        as_of = self.looked_at
        changed = self._look_for_changes(source, abreast)
        if self._is_unchanged(changed):
            self._each(abreast, lambda worker: self._record_unchanged(worker, source, as_of))
            return False
        few = self._few(source, changed)
        goal: SourceView | None
        if few and self._take_few(source, few):
            taken = self._observe_source()
            goal = self._stand_in(source, taken, few)
        else:
            for worker in (*abreast, *joining):
                self._start_anew(worker)
            goal = taken = self._take_snapshots(source, abreast, joining, leftover=leftover)
        for worker in joining:
            self._start_join(worker, taken)
        wanted = goal or taken
        busy = self._begin(abreast, lambda one: self._branch(one, wanted, self.names.tosend))
        for worker in busy:
            worker.wait_until_settled()
        # Whoever holds a newer base waits for no one: B is rotated, and kept where it is needed.
        overtaken = leftover and bool(roles[Role.AHEAD])
        try:
            rotated = self._finish(taken, leftover=leftover, overtaken=overtaken)
            return rotated and (leftover or goal is None)
        finally:
            for worker in busy:
                worker.wait()

    def _look_for_changes(self, source: SourceView, abreast: list[Worker]) -> frozenset[str] | None:
        """Return what was written to on any side since @sent; None: that is not known, or asked.

        It is known where both sides hold @sent, and the last run left nothing to do.
        """
        resource, all_here = self.resource, bool(abreast) and len(abreast) == len(self.workers)
        wanted = self.side.can.written and (resource.skip_unchanged or resource.send_changed)
        if not wanted or self.asked or not all_here:
            return None
        for worker in abreast:
            assert worker.view is not None  # noqa: S101 - _roles looked
            entry = self.record.entry(worker.node, self.dst)
            if not judge.is_settled(
                source, worker.view, entry, self.resource, names=self.names, who=self.who
            ):
                return None
        changed = self._written(source.tree)
        if changed is None or (changed and not resource.send_changed):
            return None

        def look(worker: Worker) -> None:
            assert worker.view is not None  # noqa: S101
            assert worker.view.tree is not None  # noqa: S101 - it is settled
            worker.written = observe.read_written(worker.side, worker.view.tree, self.names.sent)

        for worker in abreast:
            worker.written = None
        self._each(abreast, look)
        for worker in abreast:
            if worker.written is None:  # it did not answer
                return None
            changed |= worker.written
        return changed

    def _written(self, tree: Tree) -> frozenset[str] | None:
        """Return what was written to on the source since @sent; None where that is not known."""
        if not self.side.sync_pool(self.src):
            self.context.info("zpool sync failed: what was written is not known, all is sent")
            return None
        return observe.read_written(self.side, tree, self.names.sent)

    def _is_unchanged(self, changed: frozenset[str] | None) -> bool:
        return self.resource.skip_unchanged and changed is not None and not changed

    def _few(self, source: SourceView, changed: frozenset[str] | None) -> frozenset[str] | None:
        """Return what is sent alone, None for the whole tree."""
        if changed is None or not self.resource.send_changed:
            return None
        if source.retained.get(self.names.sent):
            # Who lags needs it of what stays, and a kept base of the few, one more in each such
            # run: of a whole tree's @sent he needs one.
            return None
        return judge.few(source, changed, self.resource, self.names, record.now())

    def _take_few(self, source: SourceView, few: frozenset[str]) -> bool:
        """Take B of these alone; False: none was taken, one of them went meanwhile."""
        try:
            change(self.context, self.side, self._snapshot_few(source, few))
        except CommandFailed as error:
            self.context.info(f"{error.reason}: {error.detail}; the whole tree is sent")
            return False
        return True

    def _snapshot_few(self, source: SourceView, few: frozenset[str]) -> zfs.Change:
        full = [source.tree.full(name) for name in sorted(few)]
        return zfs.snapshot_some(full, self.names.tosend, self.who.rid_value)

    def _stand_in(
        self, before: SourceView, taken: SourceView, few: frozenset[str]
    ) -> SourceView | None:
        """Return the view in which the @sent of the others stands for B, too.

        None if something was written there before this look, which came after B: then the few are
        brought to B like one that an earlier run left, and a new B is taken of all.
        """
        tree, sent = taken.tree, self.names.sent
        others = {name: one for name, one in tree.datasets.items() if name not in few}
        same = tree.guids(sent) == before.tree.guids(sent)
        same = same and tree.datasets.keys() == before.tree.datasets.keys()
        if not same or self._written(Tree(tree.root, others)) != frozenset():
            self.context.info("more was written meanwhile: the whole tree is sent after this")
            return None
        goal = pairing.with_unchanged(tree, self.names.tosend, sent, others)
        return replace(taken, tree=goal)

    def _roles(self, source: SourceView) -> dict[Role, list[Worker]]:
        """Return the targets by role; a refused one has none."""
        roles: dict[Role, list[Worker]] = {one: [] for one in Role}
        for worker in self.workers:
            if worker.error is not None or worker.view is None or worker.joins:
                continue
            try:
                roles[self._check(worker, worker.view, source)].append(worker)
            except StandbyFor as standby:
                self.context.info(f"standby: {standby.what}")
                if self.asked:
                    worker.error = Refused(standby.what, untouched=UNTOUCHED)
            except SyncError as error:
                worker.error = error
        return roles

    def _check(self, worker: Worker, view: TargetView, source: SourceView) -> Role:
        entry = self.record.entry(worker.node, self.dst)
        known = worker.node in source.targets or entry.last_success is not None
        view = self._finish_swap(worker, view, source, known=known)
        # After a run that did not come to its end, own snapshots may be there under names that
        # only a full listing shows. What a former source has must be seen wholly, too.
        worker.deep |= entry.last_attempt is not None and entry.last_attempt.result != "ok"
        view = replace(view, follows=handover.follows(source, view, self.who))
        worker.deep |= view.follows
        cleared, view = observe.clear_up(
            self.side, worker.side, source, view, self.who, deep=worker.deep
        )
        worker.view = view
        if view.follows and handover.was_source(view):
            recursive = self.resource.recursive
            handover.check_nothing_unsent(cleared, view, self.who, recursive=recursive)
        judge.check_options(cleared, view, self.resource, self.who)
        needed = pipe.programs(self.resource, worker.node)
        judge.check_programs(needed.source, self.side.paths, self.who.source)
        judge.check_programs(needed.target, worker.side.paths, worker.node)
        self._judge(worker, cleared, view, known=known)
        return judge.role(cleared, worker.view, self.names)

    def _judge(self, worker: Worker, source: SourceView, view: TargetView, *, known: bool) -> None:
        """Raise SyncError where the target must not be written to."""
        gone = view.tree is None and known and not self.consent
        if gone and find_aside(worker.side, self.dst, self.who):
            raise judge.cut_resync(view, self.who)
        judge.check_target(source, view, self.who, self.names, known=known, consent=self.consent)
        if view.tree is not None:
            entry = self.record.entry(worker.node, self.dst)
            judge.check_flags(entry, self.resource, view, self.who)
            return
        carried, used = observe.mountpoints(self.side, worker.side, source)
        judge.check_mounts(carried, used, view, self.resource)
        if not self.consent:
            needed = observe.read_needed(self.side, source, history=self.resource.intermediary)
            judge.check_first_room(
                needed, observe.read_available(worker.side, view), view, self.who
            )

    def _finish_swap(
        self, worker: Worker, view: TargetView, source: SourceView, *, known: bool
    ) -> TargetView:
        """Let a syncfull that was cut come to its end; it costs nothing where there was none."""
        if self.settings.dry_run or (view.tree is not None and view.swap is None):
            return view
        swap = Swap(self.context, worker.side, source, worker.node, self.dst)
        if view.tree is None and known and swap.finish_renaming():
            self._observe(worker, source)
            assert worker.view is not None  # noqa: S101 - it was just made
            view, worker.swapped = worker.view, True
        if view.swap is not None and view.mark == self.who.mark:
            swap.drop_old(view.swap)
            worker.swapped = True
        return view

    def _start_anew(self, worker: Worker) -> None:
        """The consent is given: from here on the target is a new one, for cut runs too."""
        if self.consent and not worker.beside and not self.settings.dry_run:
            self._set_targets(self.side, lambda known: known - {worker.node})
            self.record.update(worker.node, self.dst, lambda _: record.never(self.dst))

    def _take_snapshots(
        self, source: SourceView, abreast: list[Worker], joining: list[Worker], *, leftover: bool
    ) -> SourceView:
        """Make the intent durable before anything is sent; an earlier one is not taken again."""
        # One whose root was destroyed by hand is no intent, and in the way of a new one.
        stale = [
            worker
            for worker in joining
            if pairing.is_headless(source.tree, self.names.tosend_for(worker.node))
            or (worker.view and judge.is_stale_join(source, worker.view, self.names))
        ]
        for worker in stale:
            with self.record.exclusive():
                self._keep_join(self.side, worker.node, drop_others=False)
        held = source.tree.datasets[ROOT].snapshots
        new = [
            worker
            for worker in joining
            if worker in stale or self.names.tosend_for(worker.node) not in held
        ]
        if new:
            # The property comes first: it is how the next run finds a snapshot that a kill left.
            with self.record.exclusive():
                retained = self._retained_now()
                for worker in new:
                    name = self.names.tosend_for(worker.node)
                    retained[name] = frozenset({worker.node})
                set_retained(self.context, self.side, self.src, retained)
        take = [self.names.tosend] if abreast and not leftover else []
        take += [self.names.tosend_for(worker.node) for worker in new]
        for name in take:
            step = zfs.snapshot(
                self.src, name, self.who.rid_value, recursive=self.resource.recursive
            )
            change(self.context, self.side, step)
        return self._observe_source() if take else source

    def _retained_now(self) -> dict[str, frozenset[str]]:
        return self.names.own(parse_nodes(observe.read_root(self.side, self.src).get(RETAINED)))

    # --- one target ---------------------------------------------------------------------------

    def _branch(self, worker: Worker, source: SourceView, goal: str) -> None:
        """Bring one target to the goal and record it; a refusal is recorded and pushed too."""
        assert worker.view is not None  # noqa: S101 - _roles looked
        worker.begun = record.now()
        worker.branch = Branch(
            self.context,
            worker.source_side,
            worker.side,
            source,
            worker.view,
            deep=worker.deep,
        )
        # A copy beside the replica says nothing of the replica's chain until it takes its place.
        first = worker.view.tree is None and not worker.beside

        def begin(entry: TargetState) -> TargetState:
            entry = record.started(entry, worker.begun)
            # Known from the first stream on: what comes after it has to be of the same format.
            return entry._replace(flags=self.resource.send_options) if first else entry

        self.record.update(worker.node, self.dst, begin)
        try:
            worker.branch.bring_to(goal)
            self._land(worker)
        except SyncError as error:
            worker.error = error
            worker.view = worker.branch.view
            self._record_failure(worker, error)
        else:
            self._record_success(worker, worker.branch, goal)

    def _start_join(self, worker: Worker, source: SourceView) -> None:
        """Let the target catch up in a thread that outlives the run's own shells."""
        worker.joins = True
        programs = pipe.programs(self.resource, worker.node)
        worker.source_side = self._side(self.settings.nodename, (), worker.lock, programs.source)
        worker.start(lambda one: self._join(one, source))

    def _join(self, worker: Worker, source: SourceView) -> None:
        goal = self.names.tosend_for(worker.node)
        try:
            worker.source_side.find_zfs()
            try:
                self._branch(worker, source, goal)
            finally:  # a state file that cannot be pushed must not leave the join open
                branch = worker.branch
                if branch is not None and branch.reached and not worker.beside:
                    self._finish_join(worker, branch)
        finally:
            worker.source_side.shell.close()
            worker.side.shell.close()
            worker.lock.close()

    def _finish_join(self, worker: Worker, branch: Branch) -> None:
        """Make the join's snapshot the base that is kept for the node.

        It is the only one, unless a dataset did not get it: then an older base is the one that both
        sides still hold of that.
        """
        lacking = pairing.left_behind(branch.source.tree, self.names.tosend_for(worker.node))
        with self.record.exclusive():
            self._set_targets(worker.source_side, lambda known: known | {worker.node})
            whole = branch.proven and not lacking
            self._keep_join(worker.source_side, worker.node, drop_others=whole)

    def _keep_join(self, side: Side, node: str, *, drop_others: bool) -> None:
        """Rename the join's snapshot to a kept name; both stand in the property meanwhile."""
        goal = self.names.tosend_for(node)
        recursive = self.resource.recursive
        source = observe.observe_source(
            side, self.src, self.names, self.who.rid_value, recursive=recursive
        )
        guids = source.tree.guids(goal)
        if not guids:
            return
        kept = rotating.kept_name(source.tree, self.names, guids, goal)
        dropped = {node} if drop_others else set()
        retained = {name: nodes - dropped for name, nodes in source.retained.items()}
        retained[goal] = retained[kept] = frozenset({node})
        set_retained(self.context, side, self.src, retained)
        for step in rotating.rename_own(source.tree, goal, kept, recursive=recursive):
            change(self.context, side, step)
        del retained[goal]
        set_retained(self.context, side, self.src, retained)

    def _set_targets(
        self, side: Side, change_to: Callable[[frozenset[str]], frozenset[str]]
    ) -> None:
        """Remember who was shown to hold a snapshot: if its replica is gone, it is no new one."""
        everyone = parse_nodes(observe.read_root(side, self.src).get(TARGETS))
        known = everyone.get(self.who.rid_value, frozenset())
        new = change_to(known) & {target.node for target in self.resource.targets}
        if new != known:
            others = {name: nodes for name, nodes in everyone.items() if name != self.who.rid_value}
            text = format_nodes({**others, self.who.rid_value: new} if new else others)
            change(self.context, side, zfs.set_property(self.src, TARGETS, text))

    # --- the source's rotation ----------------------------------------------------------------

    def _finish_half_rotated(self, source: SourceView) -> SourceView:
        views = [worker.view for worker in self.workers if worker.view is not None]
        if not judge.is_half_rotated(source, views, self.names):
            return source
        self.context.warn("an earlier run was cut while it rotated the source; going on from there")
        with self.record.exclusive():
            needs = self._needs(source, leftover=True, rotate=True)
            self._rotate_source(source, needs, rotate=True)
        source = self._observe_source()
        self._each(self.workers, lambda worker: self._observe(worker, source))
        return source

    def _finish(self, source: SourceView, *, leftover: bool, overtaken: bool) -> bool:
        """Rotate the source if B reached a target; return whether it did."""
        done = [one for one in self.workers if one.branch and not one.joins]
        proven = {one.node for one in done if one.branch and one.branch.proven}
        rotate = overtaken or any(one.branch and one.branch.reached for one in done)
        with self.record.exclusive():
            marks = observe.read_root(self.side, self.src)
            if self.names.own(parse_nodes(marks.get(RETAINED))) != source.retained:
                source = self._observe_source()  # a join ended meanwhile
            if not proven <= source.targets:
                self._set_targets(self.side, lambda known: known | proven)
            needs = self._needs(source, leftover=leftover, rotate=rotate)
            if rotate or needs != source.retained:
                self._rotate_source(source, needs, rotate=rotate)
        return rotate

    def _needs(
        self, source: SourceView, *, leftover: bool, rotate: bool
    ) -> dict[str, frozenset[str]]:
        by_node = {worker.node: worker.knowledge for worker in self.workers}
        known = {
            one.node: by_node.get(one.node, rotating.NOTHING_KNOWN) for one in self.resource.targets
        }
        for node in {one for nodes in source.retained.values() for one in nodes} - set(known):
            self.context.warn(f"{node} is no longer a target: the base kept for it is dropped")
        return rotating.needs(source, self.names, known, leftover=leftover, rotate=rotate)

    def _rotate_source(
        self, source: SourceView, needs: dict[str, frozenset[str]], *, rotate: bool
    ) -> None:
        recursive = self.resource.recursive
        finish = rotating.finish_source(
            source, self.names, needs, recursive=recursive, rotate=rotate
        )
        value = dict(source.retained)
        if finish.retained != value:
            set_retained(self.context, self.side, self.src, finish.retained)
            value = dict(finish.retained)
        steps = (*finish.changes, *finish.dropped)
        busy = apply_rotation(self.context, self.side, source.tree, steps, finish.retained)
        cleaned = {**finish.cleaned, **busy}
        # A snapshot that could not be destroyed put its own name into the property.
        if busy or cleaned != value:
            set_retained(self.context, self.side, self.src, cleaned)

    # --- record -------------------------------------------------------------------------------

    def _record_success(self, worker: Worker, branch: Branch, goal: str) -> None:
        tree = branch.source.tree
        guids = tree.guids(goal)
        root = tree.datasets[ROOT].snapshots[goal]
        held = StateSnapshot(root.guid, root.creation, len(guids), digest(guids.items()))
        success = Success(worker.begun, record.now(), branch.size_bytes, branch.mode)
        lacking = pairing.left_behind(tree, goal)
        self.context.info(
            f"update state file with snap uuid {root.guid} ({record.utc(root.creation)})"
        )
        self.record.update(
            worker.node,
            self.dst,
            lambda entry: record.succeeded(entry, success)._replace(
                snapshot=entry.snapshot if lacking else held,  # the lag is that of the oldest
                clock_offset=branch.view.clock_offset,
                flags=self.resource.send_options,
            ),
        )
        worker.recorded = True
        seconds = success.finished - success.started
        self.context.info(
            f"{worker.node}: {self.src}@{goal} guid {root.guid} is {branch.view.dst}@"
            f"{self.names.sent}: {success.mode}, {len(guids)} datasets, {success.bytes} bytes"
            f"{branch.compressed}, {seconds} s"
        )
        self._push(worker)

    def _record_unchanged(self, worker: Worker, source: SourceView, as_of: int) -> None:
        root = source.tree.datasets[ROOT].snapshots[self.names.sent]
        text = f"{worker.node}: nothing was written since {self.src}@{root.name} guid {root.guid}"
        if self.settings.dry_run:
            self.settings.show(f"# {text}")
            return
        self.context.info(f"{text}; nothing to send")
        assert worker.view is not None  # noqa: S101 - it is settled
        offset = worker.view.clock_offset
        success = Success(worker.begun, record.now(), 0, "none")
        self.record.update(
            worker.node,
            self.dst,
            lambda entry: record.succeeded(entry, success)._replace(
                equal_as_of=as_of, clock_offset=offset
            ),
        )
        worker.recorded = True
        self._push(worker)

    def _record_failure(self, worker: Worker, error: SyncError) -> None:
        offset = worker.view.clock_offset if worker.view else None
        self.record.update(
            worker.node,
            self.dst,
            lambda entry: record.failed(entry, error, worker.begun, record.now())._replace(
                clock_offset=entry.clock_offset if offset is None else offset
            ),
        )
        worker.recorded = True
        owner = judge.state_owner(worker.view) if worker.view is not None else None
        if worker.view is not None and (owner is None or owner.source == self.who.source):
            with contextlib.suppress(SyncError):  # the failure itself is what is told
                self._push(worker)

    def _record_kept_bases(self, source: SourceView) -> None:
        """Say in the state what the source keeps for whom, and how much it costs there."""
        retained = self._retained_now()
        full = [source.tree.full(name) for name in source.tree.datasets]
        sizes = observe.read_kept(self.side, full, retained) if retained else {}
        for target in self.resource.targets:
            kept = tuple(
                KeptBase(name, *sizes[name])
                for name in sorted(sizes)
                if target.node in retained[name]
            )
            if kept != self.record.entry(target.node, self.dst).kept_bases:
                self.record.update(target.node, self.dst, partial(_keeping, kept))

    def _push(self, worker: Worker) -> None:
        if worker.target.group == "local":
            return
        self.context.info(
            f"copy {quote((self.record.path,))} to {quote((f'{worker.node}:{self.record.path}',))}"
        )
        worker.settle()  # the source is rotated meanwhile
        self.record.push(worker.side, worker.node)

    # --- dry run ------------------------------------------------------------------------------

    def _show_plan(self, source: SourceView) -> None:
        """Print what a run would do now, command by command."""
        show = self.settings.show
        leftover = self.names.tosend in source.tree.datasets[ROOT].snapshots
        roles = self._roles(source)
        abreast, joining = roles[Role.ABREAST], roles[Role.JOINING]
        as_of = self.looked_at
        changed = self._look_for_changes(source, abreast)
        if self._is_unchanged(changed):
            self._each(abreast, lambda worker: self._record_unchanged(worker, source, as_of))
            return
        few = self._few(source, changed)
        pending = [(worker, self.names.tosend) for worker in abreast]
        pending += [(worker, self.names.tosend_for(worker.node)) for worker in joining]
        held = source.tree.datasets[ROOT].snapshots
        recursive = self.resource.recursive
        for goal in dict.fromkeys(goal for _, goal in pending):
            if few:
                show(self.side.shown(self._snapshot_few(source, few).argv))
            elif goal not in held:
                step = zfs.snapshot(self.src, goal, self.who.rid_value, recursive=recursive)
                show(self.side.shown(step.argv))
        for worker, goal in pending:
            try:
                self._show_branch(worker, source, goal, few)
            except SyncError as error:
                worker.error = error
        if abreast and (leftover or not pending or self.names.tosend not in held):
            show(f"then rotate {self.src}@{self.names.tosend} to @{self.names.sent} on both sides")

    def _show_branch(
        self, worker: Worker, source: SourceView, goal: str, few: frozenset[str] | None
    ) -> None:
        assert worker.view is not None  # noqa: S101 - _roles looked
        source, view = observe.clear_up(
            self.side, worker.side, source, worker.view, self.who, deep=worker.deep
        )
        for dataset in view.tree.datasets.values() if view.tree else ():
            if dataset.partial is not None:
                self._show_partial(worker, source, view, dataset)
                return
        branch = plan.plan_branch(
            source, view, self.resource, self.who, goal, one_by_one=few is not None
        )
        if few:
            alone = tuple(one for one in branch.streams if one.relative in few)
            branch = replace(branch, streams=alone)
        for text in branch.warnings:
            self.settings.show(f"# {text}")
        for step in branch.before:
            self._show_step(worker.side, step)
        if branch.streams:
            self._show_size(worker, source, branch)
        for stream in branch.streams:
            self._show_stream(worker, source, stream)

    def _show_stream(self, worker: Worker, source: SourceView, stream: zfs.Stream) -> None:
        send = stream.send_argv(source.tree, self.resource.send_options)
        into = stream.receive_argv(
            worker.side.can, self.resource.receive_options, resumes=self.side.can.resumes
        )
        programs = pipe.programs(self.resource, worker.node)
        way = pipe.pipe(programs, self.side.paths, worker.side.paths)
        self.settings.show(shown_pipe(self.side.words(send), way, worker.side, into))

    def _show_size(self, worker: Worker, source: SourceView, branch: plan.Branch) -> None:
        if branch.goal in source.tree.datasets[ROOT].snapshots:
            options = self.resource.send_options
            sends = [stream.send_argv(source.tree, options) for stream in branch.streams]
            size = observe.estimate(self.side, sends)
        else:
            size = observe.foretell(self.side, source.tree, branch.streams)
        amount = "an unknown number of" if size is None else f"about {size}"
        self.settings.show(f"# {worker.node}: {amount} bytes to send")

    def _show_partial(
        self, worker: Worker, source: SourceView, view: TargetView, dataset: Dataset
    ) -> None:
        """What comes after it is planned from what it leads to."""
        assert view.tree is not None  # noqa: S101 - the dataset is in it
        assert dataset.partial is not None  # noqa: S101 - the caller saw it
        full, show = view.tree.full(dataset.name), self.settings.show
        if wanted := pairing.resumable(source.tree, dataset):
            show(f"# going on with the transfer of {dataset.partial.snapshot}, then with the rest")
            self._show_stream(worker, source, zfs.rest(dataset.partial.token, *wanted, full))
        else:
            what = f"a part of {dataset.partial.snapshot}"
            show(f"# {full} holds {what}, which is given up if this agent sent it")

    def _show_step(self, side: Side, step: zfs.Change) -> None:
        if step.why:
            self.settings.show(f"# {step.why}")
        self.settings.show(side.shown(step.argv))
