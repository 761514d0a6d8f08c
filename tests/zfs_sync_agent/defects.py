"""Defects that the model proof has to catch: each a small change of the real agent.

Each stands for a mistake that a tool of this kind could make, and most of them for one that some
tool did make. They prove that the proof can fail; nothing here is ever part of the agent.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from check_zfs_sync.statefile import Snapshot as StateSnapshot
from zfs_sync_agent import branch, execute, judge, observe, pairing, plan, record, rotating, zfs
from zfs_sync_agent.branch import Branch
from zfs_sync_agent.errors import CommandFailed, NoAnswer, SyncError
from zfs_sync_agent.execute import Run, Worker
from zfs_sync_agent.model import (
    ROOT,
    Dataset,
    Names,
    Snapshot,
    SourceView,
    TargetView,
    Tree,
)
from zfs_sync_agent.record import Lock
from zfs_sync_agent.rotating import Knowledge
from zfs_sync_agent.transport import Answer

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Defect:
    """A defect: what is wrong, how the agent is changed, and the law and the case that catch it."""

    name: str
    apply: Callable[[Patch], None]
    law: str
    case: tuple[str, str]


DEFECTS: list[Defect] = []


def defect(
    name: str, law: str, situation: str, fault: str = "undisturbed"
) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Enter a function that changes the agent into the table."""

    def enter(apply: Callable[[Patch], None]) -> Callable[[Patch], None]:
        DEFECTS.append(Defect(name, apply, law, (situation, fault)))
        return apply

    return enter


# --- names instead of guids ---------------------------------------------------------------------


@defect("datasets are paired by name", "I5", "a renamed child")
def _(patch: Patch) -> None:
    patch.setattr(
        pairing, "pair", lambda here, there: {n: n for n in here.datasets if n in there.datasets}
    )


@defect("a base is found by the name @sent", "I5", "B left, target has B")
def _(patch: Patch) -> None:
    def common(dataset: Any, twin: Any) -> Any:
        held = twin.snapshots if twin else {}
        return next(
            (dataset.snapshots[n] for n in ("sent",) if n in dataset.snapshots and n in held), None
        )

    patch.setattr(pairing, "newest_common", common)


@defect("the target is rotated by name", "I1", "B left, target rotated")
def _(patch: Patch) -> None:
    def rotate(_source: Tree, target: TargetView, goal: str, *_: Any) -> rotating.Rotation:
        assert target.tree is not None
        changes = []
        if "sent" in target.tree.datasets[ROOT].snapshots:
            changes.append(zfs.destroy_snapshot(target.dst, "sent", recursive=True))
        if goal in target.tree.datasets[ROOT].snapshots:
            changes.append(zfs.rename_snapshot(target.dst, goal, "sent", recursive=True))
        return rotating.Rotation((), tuple(changes))

    patch.setattr(rotating, "rotate_target", rotate)


@defect("B that an earlier run left is taken anew", "I2", "B left, target has B")
def _(patch: Patch) -> None:
    take = Run._take_snapshots

    def again(
        self: Run, source: SourceView, abreast: Any, joining: Any, *, leftover: bool
    ) -> SourceView:
        if leftover and abreast:
            for step in rotating.Listing(source.tree, recursive=True).destroy(
                "tosend", set(source.tree.guids("tosend"))
            ):
                branch.change(self.context, self.side, step)
        return take(self, source, abreast, joining, leftover=False)

    patch.setattr(Run, "_take_snapshots", again)


@defect("a dataset is received by its name below the pool", "I5", "in sync")
def _(patch: Patch) -> None:
    patch.setattr(plan, "_pool_for", lambda _source, target: target.dst.split("/")[0])


# --- what is believed ---------------------------------------------------------------------------


@defect("the target is not listed after a receive", "I3", "in sync", "misled")
def _(patch: Patch) -> None:
    patch.setattr(pairing, "unproven", lambda *_: [])


@defect("exit status 0 is taken for the truth", "I3", "in sync", "misled")
def _(patch: Patch) -> None:
    attempt, missing = Branch._attempt, Branch._missing

    def trusting(self: Branch, wanted: plan.Branch) -> SyncError | None:
        failure = attempt(self, wanted)
        self.trusted = failure is None  # type: ignore[attr-defined]
        return failure

    patch.setattr(Branch, "_attempt", trusting)
    patch.setattr(Branch, "_missing", lambda self, one: [] if self.trusted else missing(self, one))


@defect("no answer is read as absent", "why", "in sync", "misled")
def _(patch: Patch) -> None:
    look = observe.look

    def blind(*args: Any, **words: Any) -> Any:
        try:
            return look(*args, **words)
        except NoAnswer:
            return None, {}, [Answer(0, "0", ""), Answer(1, "", "")]

    patch.setattr(observe, "look", blind)


@defect("a snapshot that cannot be read is absent", "I3", "in sync", "misled")
def _(patch: Patch) -> None:
    patch.setattr(zfs, "check_absent_only", lambda *_: None)


@defect("a pool that is not there is a dataset that is absent", "why", "in sync", "misled")
def _(patch: Patch) -> None:
    patch.setattr(zfs, "list_pool_argv", lambda _dataset: ("list", "-H", "-o", "name,mountpoint"))


@defect("a received mark is believed", "I5", "first sync of another's replica", "killed")
def _(patch: Patch) -> None:
    def parse(output: str) -> dict[str, str]:
        rows = [line.split("\t") for line in output.splitlines()]
        return {row[0]: row[1] for row in rows if row[2] in ("local", "received")}

    patch.setattr(zfs, "parse_root", parse)


@defect("the state is written before the listing", "I3", "in sync")
def _(patch: Patch) -> None:
    act = Run._branch

    def early(self: Run, worker: Worker, source: SourceView, goal: str) -> None:
        assert worker.view is not None
        one = Branch(self.context, worker.source_side, worker.side, source, worker.view, deep=False)
        self._record_success(worker, one, goal)
        act(self, worker, source, goal)

    patch.setattr(Run, "_branch", early)


@defect("the lag is that of the run, not of the snapshot", "I4", "in sync")
def _(patch: Patch) -> None:
    def held(guid: str, _creation: int, datasets: int, text: str) -> StateSnapshot:
        return StateSnapshot(guid, record.now(), datasets, text)

    patch.setattr(execute, "StateSnapshot", held)


# --- what may still be needed -------------------------------------------------------------------


@defect("the source rotates though no target has B", "I2", "lagging")
def _(patch: Patch) -> None:
    knowledge = Knowledge(proven=True, listing=None, may_hold_goal=False)
    patch.setattr(Worker, "knowledge", property(lambda _self: knowledge))
    patch.setattr(
        Branch, "reached", property(lambda _self: True, lambda _self, _value: None), raising=False
    )


@defect("a target that was not proven holds nothing", "I2", "lagging")
def _(patch: Patch) -> None:
    patch.setattr(rotating, "_assumed_names", lambda *_: set())


@defect("what a listing shows is not kept", "I2", "A half destroyed, one lags")
def _(patch: Patch) -> None:
    patch.setattr(rotating, "_held_names", lambda *_: set())


@defect("B is not kept for a target that may hold it", "I2", "both in sync", "killed")
def _(patch: Patch) -> None:
    needs = rotating.needs

    def less(source: Any, names: Any, known: Mapping[str, Knowledge], **words: bool) -> Any:
        known = {n: replace(k, may_hold_goal=False) for n, k in known.items()}
        return needs(source, names, known, **{**words, "leftover": False})

    patch.setattr(rotating, "needs", less)


@defect(
    "a child that lost the snapshot that is sent is forgotten",
    "I3",
    "lagging, a child lost the joining snapshot",
)
def _(patch: Patch) -> None:
    patch.setattr(pairing, "left_behind", lambda *_: [])


@defect(
    "a run that rotates nothing forgets who may hold A",
    "I2",
    "cut before A was kept, one may hold it",
    "misled",
)
def _(patch: Patch) -> None:
    needs = rotating.needs

    def forgetful(source: Any, names: Names, *args: Any, rotate: bool, **words: Any) -> Any:
        found = needs(source, names, *args, rotate=rotate, **words)
        return {name: nodes for name, nodes in found.items() if rotate or name != names.sent}

    patch.setattr(rotating, "needs", forgetful)


@defect("zfs_sync:retained is not written", "I5", "A kept on the source, B not renamed")
def _(patch: Patch) -> None:
    patch.setattr(execute, "set_retained", lambda *_: None)


@defect("A is renamed before the property names it", "I2", "one is ahead of B", "killed")
def _(patch: Patch) -> None:
    finish = rotating.finish_source

    def late(source: SourceView, *args: Any, **words: Any) -> rotating.Finish:
        done = finish(source, *args, **words)
        return replace(done, retained=dict(source.retained))

    patch.setattr(rotating, "finish_source", late)


@defect("@sent is destroyed on the target before B is sent", "I1", "in sync")
def _(patch: Patch) -> None:
    make = plan.plan_branch

    def early(source: SourceView, target: TargetView, *args: Any, **words: Any) -> plan.Branch:
        planned = make(source, target, *args, **words)
        if target.tree is None or not planned.streams or planned.again:
            return planned
        held = set(target.tree.guids("sent"))
        steps = rotating.Listing(target.tree, recursive=True).destroy("sent", held)
        return replace(planned, before=(*planned.before, *steps))

    patch.setattr(plan, "plan_branch", early)


@defect("debris is destroyed before B is proven", "I1", "B left, target has B")
def _(patch: Patch) -> None:
    make = plan.plan_branch

    def early(source: SourceView, target: TargetView, *args: Any, **words: Any) -> plan.Branch:
        planned = make(source, target, *args, **words)
        if target.tree is None or planned.again:
            return planned
        listing = rotating.Listing(target.tree, recursive=True)
        held = set(target.tree.guids("tosend"))
        return (
            replace(planned, before=(*listing.destroy("tosend", held), *planned.before))
            if held
            else planned
        )

    patch.setattr(plan, "plan_branch", early)


@defect("a half-rotated source begins anew", "I2", "A destroyed on the source")
def _(patch: Patch) -> None:
    def anew(self: Run, source: SourceView) -> SourceView:
        root = source.tree.datasets[ROOT].snapshots
        if "sent" not in root and "tosend" in root:
            held = set(source.tree.guids("tosend"))
            for step in rotating.Listing(source.tree, recursive=True).destroy("tosend", held):
                branch.change(self.context, self.side, step)
        return self._observe_source()

    patch.setattr(Run, "_finish_half_rotated", anew)


@defect(
    "a first sync that was cut is taken for a half-rotated source", "why", "first sync", "killed"
)
def _(patch: Patch) -> None:
    def half(source: SourceView, _targets: Any, names: Names) -> bool:
        root = source.tree.datasets[ROOT].snapshots
        return names.sent not in root and names.tosend in root

    patch.setattr(judge, "is_half_rotated", half)


@defect("a target's rotation that was cut is not finished", "I5", "both in sync", "lost")
def _(patch: Patch) -> None:
    patch.setattr(rotating, "half_rotated", lambda *_: ())


@defect("after a failure only own names are listed", "I5", "joined", "lost")
def _(patch: Patch) -> None:
    patch.setattr(
        Worker, "deep", property(lambda _self: False, lambda _self, _value: None), raising=False
    )


@defect("a join is sent as @tosend, which others rename", "I5", "B left, one has it")
def _(patch: Patch) -> None:
    patch.setattr(Names, "tosend_for", lambda self, _node: self.tosend)


@defect("a join that was overtaken is sent again", "I5", "a join was overtaken")
def _(patch: Patch) -> None:
    patch.setattr(judge, "is_stale_join", lambda *_: False)


@defect("an older B is sent to a target that is ahead of it", "I5", "one lags", "killed")
def _(patch: Patch) -> None:
    role = judge.role

    def behind(*args: Any) -> judge.Role:
        found = role(*args)
        return judge.Role.ABREAST if found is judge.Role.AHEAD else found

    patch.setattr(judge, "role", behind)


@defect("a snapshot that is held ends the rotation", "I5", "A is held on the source")
def _(patch: Patch) -> None:
    def strict(
        context: Any, side: Any, _tree: Any, steps: Any, _retained: Any
    ) -> dict[str, frozenset[str]]:
        for step in steps:
            branch.change(context, side, step)
        return {}

    patch.setattr(branch, "apply_rotation", strict)
    patch.setattr(execute, "apply_rotation", strict)


@defect("a transfer that goes on is not waited for", "I5", "in sync", "orphaned")
def _(patch: Patch) -> None:
    patch.setattr(Run, "_worker", _worker_without_lock)


def _worker_without_lock(self: Run, target: Any) -> Worker:
    lock = Lock(Path(os.devnull).open("a+"))  # noqa: SIM115 - the lock closes it
    return execute.Worker(target, lock, self._side(target.node, self.resource.ssh, lock), self.side)


# --- what is not ours ---------------------------------------------------------------------------


@defect("the mark of a replica is ignored", "I7", "another source's replica")
def _(patch: Patch) -> None:
    patch.setattr(judge, "_check_mark", lambda *_: None)


@defect("on_divergence = refuse is ignored", "I7", "written to, and to be asked")
def _(patch: Patch) -> None:
    ask = plan.discard
    patch.setattr(
        plan,
        "discard",
        lambda target, resource, *rest: ask(
            target, resource._replace(on_divergence="discard"), *rest
        ),
    )


@defect("-r hits what is not in the tree", "I7", "a foreign child")
def _(patch: Patch) -> None:
    patch.setattr(
        rotating.Listing,
        "_is_whole",
        lambda self, _name, datasets: self.recursive and ROOT in datasets,
    )


@defect("-r is given to the pool", "I6", "in sync")
def _(patch: Patch) -> None:
    destroy = zfs.destroy_snapshot
    patch.setattr(
        zfs,
        "destroy_snapshot",
        lambda dataset, name, *, recursive: destroy(
            dataset.split("/")[0] if recursive else dataset, name, recursive=recursive
        ),
    )


@defect("an own name is enough, without zfs_sync:rid", "I7", "someone's @tosend on the source")
def _(patch: Patch) -> None:
    patch.setattr(judge, "check_source", lambda *_: None)


@defect("on the target, too, an own name is enough", "I7", "a foreign child")
def _(patch: Patch) -> None:
    build = zfs.build_datasets

    def believing(*args: Any, **words: Any) -> Iterator[Dataset]:
        for one in build(*args, **words):
            snaps = {n: s._replace(rid=s.rid or "z3/sync#1") for n, s in one.snapshots.items()}
            yield one._replace(snapshots=snaps)

    patch.setattr(zfs, "build_datasets", believing)


@defect("a gone child is destroyed at once", "I7", "a gone child")
def _(patch: Patch) -> None:
    of = plan._Gone.of.__func__  # type: ignore[attr-defined]

    def hasty(cls: Any, *args: Any) -> Any:
        found = of(cls, *args)
        return replace(found, seen=found.ours)

    patch.setattr(plan._Gone, "of", classmethod(hasty))


@defect(
    "names that a receive gave pass for those of an earlier run",
    "I7",
    "a gone child where a join was cut",
)
def _(patch: Patch) -> None:
    of = plan._Gone.of.__func__  # type: ignore[attr-defined]

    def believing(cls: Any, source: Any, target: Any, resource: Any, who: Any) -> Any:
        found = of(cls, source, target, resource, who)
        datasets = target.tree.datasets if target.tree else {}
        seen = [
            name
            for name in found.ours
            if all(found.names.is_kept(s.name) for s in datasets[name].snapshots.values())
        ]
        return replace(found, seen=tuple(seen))

    patch.setattr(plan._Gone, "of", classmethod(believing))


@defect("a gone child is destroyed in the second cycle of a run", "I7", "a gone child beside B")
def _(patch: Patch) -> None:
    look = Run._look_again

    def forgetful(self: Run) -> SourceView:
        context, resource = self.context, self.resource
        source = look(self)
        self.context, self.resource = context, resource
        return source

    patch.setattr(Run, "_look_again", forgetful)


@defect(
    "a gone child is destroyed with what others have in it",
    "I7",
    "a gone child with a foreign snapshot",
)
def _(patch: Patch) -> None:
    of = plan._Gone.of.__func__  # type: ignore[attr-defined]

    def careless(cls: Any, source: Any, target: Any, resource: Any, who: Any) -> Any:
        found = of(cls, source, target, resource, who)
        datasets = target.tree.datasets if target.tree else {}
        seen = [
            name
            for name in found.ours
            if all(found.names.is_kept(s.name) for s in datasets[name].snapshots.values() if s.rid)
        ]
        return replace(found, seen=tuple(seen))

    patch.setattr(plan._Gone, "of", classmethod(careless))


@defect("a standby sends", "I7", "this node stands by")
def _(patch: Patch) -> None:
    patch.setattr(judge, "is_standby", lambda *_: False)


@defect("a target that is a source itself is written to", "I7", "the target is the source")
def _(patch: Patch) -> None:
    patch.setattr(judge, "_check_is_no_source", lambda *_: None)


@defect("a replica that is gone is a new target", "I7", "the replica is gone")
def _(patch: Patch) -> None:
    check = judge.check_target
    patch.setattr(
        judge,
        "check_target",
        lambda *args, **words: check(*args, **{**words, "known": False}),
    )


@defect("a broken chain is mended by a full stream", "I7", "no common snapshot")
def _(patch: Patch) -> None:
    check = judge.check_target
    make = plan.plan_branch

    def careless(source: SourceView, target: TargetView, *args: Any, **words: Any) -> None:
        if target.tree is None or target.mark is None:
            check(source, target, *args, **words)

    def full(
        source: SourceView, target: TargetView, resource: Any, who: Any, goal: str, **words: Any
    ) -> plan.Branch:
        if (
            target.tree is not None
            and pairing.newest_common(source.tree.datasets[ROOT], target.tree.datasets[ROOT])
            is None
        ):
            step = zfs.destroy_dataset(target.dst, "chain broken")
            new = make(source, replace(target, tree=None), resource, who, goal, **words)
            return replace(new, before=(step, *new.before))
        return make(source, target, resource, who, goal, **words)

    patch.setattr(judge, "check_target", careless)
    patch.setattr(plan, "plan_branch", full)


@defect("a source that was rolled back is followed", "I7", "the source was rolled back")
def _(patch: Patch) -> None:
    patch.setattr(pairing, "lost_on_source", lambda *_: None)


@defect("a dataset that is being received is taken for somebody's", "why", "first sync", "killed")
def _(patch: Patch) -> None:
    patch.setattr(judge, "check_not_in_flight", lambda *_: None)


# --- receives that were cut -----------------------------------------------------------------------


@defect(
    "a token is followed without a look at its guid",
    "I7",
    "somebody's cut stream from the source, resumable",
)
def _(patch: Patch) -> None:
    def any_of(source: Tree, dataset: Dataset) -> tuple[str, Snapshot] | None:
        newest = max(source.datasets[ROOT].snapshots.values(), key=lambda snap: snap.order)
        return (ROOT, newest) if dataset.partial else None

    patch.setattr(pairing, "resumable", any_of)


@defect("somebody's cut receive is given up", "I7", "somebody's cut stream, resumable")
def _(patch: Patch) -> None:
    patch.setattr(plan, "is_sent", lambda *_: True)


@defect("a cut receive is left as it is", "I5", "B left, target at A, resumable", "killed")
def _(patch: Patch) -> None:
    patch.setattr(Branch, "_settle_partials", lambda _self: None)


@defect(
    "a cut receive is given up and sent again", "I5", "B left, target at A, resumable", "killed"
)
def _(patch: Patch) -> None:
    patch.setattr(pairing, "resumable", lambda *_: None)


@defect(
    "the rest of a cut stream is received where a name is in the way",
    "I5",
    "a cut stream of what is @sent by now, resumable",
)
def _(patch: Patch) -> None:
    patch.setattr(plan, "free_name", lambda *_: [])


@defect(
    "the rest of a cut stream has come because the commands say so",
    "I2",
    "a cut stream of a child that was renamed, resumable",
    "misled",
)
def _(patch: Patch) -> None:
    rest = Branch._send_rest

    def trusting(self: Branch, *args: Any) -> SyncError | None:
        with contextlib.suppress(CommandFailed):
            return rest(self, *args)
        return None

    patch.setattr(Branch, "_send_rest", trusting)


# --- runs that send nothing -----------------------------------------------------------------------


@defect("nothing was written because the trees are alike", "I4", "a child was written to")
def _(patch: Patch) -> None:
    patch.setattr(observe, "read_written", lambda *_: frozenset())


@defect("what was written is asked before it is counted", "I4", "a child was written to just now")
def _(patch: Patch) -> None:
    patch.setattr(observe.Side, "sync_pool", lambda *_: True)


@defect(
    "nothing was written since the last snapshot, whosever it is",
    "I4",
    "a child was written to before somebody's snapshot",
)
def _(patch: Patch) -> None:
    def written(_side: observe.Side, tree: Tree, _base: str) -> frozenset[str]:
        return frozenset(name for name, one in tree.datasets.items() if one.written)

    patch.setattr(observe, "read_written", written)


@defect(
    "whether the replica was written to is not asked",
    "I4",
    "nothing was written but to the replica",
)
def _(patch: Patch) -> None:
    asked = observe.read_written

    def at_the_source(side: observe.Side, tree: Tree, base: str) -> frozenset[str]:
        return asked(side, tree, base) if side.shell.node == "osol1" else frozenset()

    patch.setattr(observe, "read_written", at_the_source)


@defect("only the datasets of the replica are asked for", "I4", "only a child is new")
def _(patch: Patch) -> None:
    patch.setattr(judge, "is_settled", lambda *_, **__: True)
    patch.setattr(observe, "read_written", lambda *_: frozenset())


# --- runs that send some datasets alone -----------------------------------------------------------


@defect(
    "what is written to while B is taken is left out",
    "I3",
    "one of eight was written to",
    "worked",
)
def _(patch: Patch) -> None:
    written = Run._written

    def once(self: Run, tree: Tree) -> frozenset[str] | None:
        return written(self, tree) if ROOT in tree.datasets else frozenset()

    patch.setattr(Run, "_written", once)


@defect("A is dropped where no B takes its place", "I2", "one of eight was written to")
def _(patch: Patch) -> None:
    retire = rotating._retire

    def everywhere(listing: Any, names: Names, old: set[str], _new: Any, retained: Any) -> Any:
        return retire(listing, names, old, old, retained)

    patch.setattr(rotating, "_retire", everywhere)


@defect("what an earlier run took no B of counts as unchanged", "I3", "B of some left, target at A")
def _(patch: Patch) -> None:
    take = Run._take_snapshots

    def standing_in(self: Run, source: SourceView, *args: Any, **words: Any) -> SourceView:
        taken = take(self, source, *args, **words)
        tree = taken.tree
        rest = tree.datasets.keys() - tree.guids("tosend").keys()
        return replace(taken, tree=pairing.with_unchanged(tree, "tosend", "sent", rest))

    patch.setattr(Run, "_take_snapshots", standing_in)


@defect("the target is rotated where nothing was sent", "I1", "one of eight was written to")
def _(patch: Patch) -> None:
    patch.setattr(rotating.Listing, "_is_whole", lambda self, *_: self.recursive)


# --- runs for one of several targets --------------------------------------------------------------


@defect("the targets that a run is not for need no base", "I2", "both in sync", "narrowed")
def _(patch: Patch) -> None:
    needs = rotating.needs

    def of_the_run(source: SourceView, names: Names, known: Any, **words: bool) -> Any:
        asked = {node: one for node, one in known.items() if one != rotating.NOTHING_KNOWN}
        return needs(source, names, asked, **words)

    patch.setattr(rotating, "needs", of_the_run)
