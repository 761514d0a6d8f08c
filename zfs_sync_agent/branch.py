"""Brings one target to the goal: send, list, rotate; the listing is the verdict.

It never decides what to write (plan does) and never takes an exit status for the truth. It changes
nothing on the source.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from check_zfs_sync.service import SyncResource
from zfs_sync_agent import observe, plan, zfs
from zfs_sync_agent.errors import BrokenChain, CommandFailed, NoAnswer, SyncError
from zfs_sync_agent.model import (
    MARK,
    RETAINED,
    Names,
    Snapshot,
    SourceView,
    TargetView,
    Tree,
    parse_nodes,
)
from zfs_sync_agent.observe import Side
from zfs_sync_agent.transport import SSH_FAILED, Transfer, quote, transfer

_MODIFIED = re.compile(r"destination (?P<name>.+?) has been\s+modified", re.DOTALL)

# How many streams share one data connection: their commands are one argument, 128 KiB at most.
STREAMS_AT_ONCE = 100

Log = Callable[[str], None]


@dataclass(frozen=True)
class Context:
    """What every step of a run needs: who sends what, and where its lines go."""

    resource: SyncResource
    who: plan.Identity
    names: Names
    info: Log
    warn: Log


def change(context: Context, side: Side, step: zfs.Change) -> None:
    """Run one command that changes something; log it as it can be pasted. Raises CommandFailed."""
    if step.why:
        context.warn(step.why)
    context.info(side.shown(step.argv))
    answer = side.run(step.argv)
    if answer.status != 0:
        raise _command_failed(side, step.argv, answer.status, answer.stderr)


def set_retained(
    context: Context, side: Side, root: str, value: Mapping[str, frozenset[str]]
) -> None:
    """Write this resource's entries of zfs_sync:retained; another resource's stay as they are."""
    now = parse_nodes(observe.read_root(side, root).get(RETAINED))
    change(context, side, plan.retain(root, context.names, value, now))


def _command_failed(side: Side, argv: Sequence[str], status: int, stderr: str) -> CommandFailed:
    last = stderr.strip().splitlines()[-2:] or ["no message"]
    return CommandFailed(
        f"zfs {argv[0]} failed on {side.shell.node}",
        command=side.shown(argv),
        detail=f"exit {status}: {' '.join(last)}",
        untouched="what would have come after this command",
        hint="mend what the answer says; the next run goes on from here",
    )


def apply_rotation(
    context: Context,
    side: Side,
    tree: Tree,
    steps: Sequence[zfs.Change],
    retained: Mapping[str, frozenset[str]],
) -> dict[str, frozenset[str]]:
    """Run the steps of a rotation; return the names of what a clone or a hold did not let go.

    Such a snapshot is renamed to a kept name, which works where destroy does not, so that the
    rotation goes on; later runs try again. `retained` is the property's value now: it names the
    kept snapshot before it is renamed, so that a kill loses sight of none.
    """
    busy: dict[str, frozenset[str]] = {}
    for step in steps:
        try:
            change(context, side, step)
        except CommandFailed as error:
            if step.verb != "destroy" or "@" not in step.argv[-1]:
                raise
            kept = _keep_instead(context, side, tree, step, {**retained, **busy})
            busy |= {name: frozenset() for name in kept}
            context.warn(f"{error.reason}; kept as @{', @'.join(kept)}, later runs try again")
    return busy


def _keep_instead(
    context: Context,
    side: Side,
    tree: Tree,
    step: zfs.Change,
    retained: Mapping[str, frozenset[str]],
) -> list[str]:
    dataset, _, name = step.argv[-1].partition("@")
    if context.names.is_kept(name):
        return [name]
    recursive = "-r" in step.argv
    datasets = [tree.full(one) for one in tree.datasets] if recursive else [dataset]
    # destroy -r is not atomic on every ZFS: what is left has to be looked up.
    found = observe.read_names(side, [f"{one}@{name}" for one in datasets])
    holders = [one for one in datasets if f"{one}@{name}" in found]
    if not holders:
        return []
    first = found[f"{holders[0]}@{name}"]
    kept = context.names.kept(Snapshot(name, first["guid"], int(first["creation"])))
    set_retained(context, side, tree.root, {**retained, kept: frozenset()})
    whole = recursive and holders[0] == tree.root
    for one in holders[:1] if whole else holders:
        change(context, side, zfs.rename_snapshot(one, name, kept, recursive=whole))
    return [kept]


class Branch:
    """One target's way to one goal, from its last observation to its proof."""

    def __init__(
        self,
        context: Context,
        source_side: Side,
        side: Side,
        source: SourceView,
        view: TargetView,
        *,
        deep: bool,
    ) -> None:
        self.deep = deep
        self.context = context
        self.source_side, self.side = source_side, side
        self.source, self.view = source, view
        self.size_bytes = 0
        self.mode = "none"
        self.may_hold_goal = False  # a send began and no listing came after it
        self.proven = False

    def bring_to(self, goal: str) -> None:
        """Send what lacks, prove it, rotate. Raises SyncError; what was reached stays in self."""
        first = self._plan(goal, one_by_one=False)
        self.mode = first.mode
        missing = self._send_until_proven(first)
        if missing:
            count = len(self.source.tree.guids(goal))
            raise CommandFailed(
                f"{len(missing)} of {count} datasets did not arrive on {self.view.node}, first"
                f" {self.source.tree.full(missing[0])}",
                untouched="nothing was rotated",
                hint="the next run sends what is missing",
            )
        self.proven = not first.broken
        self._rotate(goal)
        if first.broken:
            listed = ", ".join(self.source.tree.full(name) for name in first.broken)
            raise BrokenChain(
                f"chain broken: no common snapshot on {self.view.node} for {listed}",
                untouched="these datasets; the others of the tree are in sync",
                hint=f"on {self.view.node} rename each of them away; the next run sends it in full",
            )

    def _plan(self, goal: str, *, one_by_one: bool) -> plan.Branch:
        context = self.context
        self.source, self.view = observe.clear_up(
            self.source_side,
            self.side,
            self.source,
            self.view,
            context.who,
            deep=self.deep,
        )
        return plan.plan_branch(
            self.source, self.view, context.resource, context.who, goal, one_by_one=one_by_one
        )

    def _send_until_proven(self, branch: plan.Branch) -> list[str]:
        """Return what a listing does not show on the target in the end.

        After a failure the listing is planned from again, a stream per dataset: that needs no
        knowledge of how each ZFS replays the stream of a tree. What the receiver calls modified is
        rolled back first, if it may be; each dataset once.
        """
        rolled_back: set[str] = set()
        one_by_one = False
        while True:
            failure = self._attempt(branch)
            missing = [
                name
                for name in plan.unproven(self.source.tree, self.view.tree, branch.goal)
                if name not in branch.broken
            ]
            if failure is None:
                return missing
            if not missing:
                self.context.warn(f"{failure.reason}; the listing shows that all of it arrived")
                return missing
            if isinstance(failure, NoAnswer):
                raise failure
            rollback = self._rollback_of_modified(branch.goal, failure)
            if rollback is not None and rollback.argv[-1] not in rolled_back:
                rolled_back.add(rollback.argv[-1])
                change(self.context, self.side, rollback)
            elif one_by_one:
                raise failure
            else:
                one_by_one = True
            branch = self._plan(branch.goal, one_by_one=one_by_one)

    def _attempt(self, branch: plan.Branch) -> SyncError | None:
        """Do what the plan says, then list the target; return the transfer's failure, if any."""
        for text in branch.warnings:
            self.context.warn(text)
        for step in branch.before:
            change(self.context, self.side, step)
        failure = None
        for start in range(0, len(branch.streams), STREAMS_AT_ONCE):
            failure = failure or self._send(branch.streams[start : start + STREAMS_AT_ONCE])
        if branch.before or branch.streams:
            self._relist()
        return failure

    def _send(self, streams: Sequence[zfs.Stream]) -> SyncError | None:
        context, resource = self.context, self.context.resource
        send = [
            self.source_side.words(one.send_argv(self.source.tree, resource.send_options))
            for one in streams
        ]
        receive = [
            self.side.words(one.receive_argv(self.side.can, resource.receive_options))
            for one in streams
        ]
        for out, into in zip(send, receive, strict=True):
            context.info(f"{quote(out)} | {self.side.shell.shown(into)}")
        words = self.side.shell.data_words(receive)
        self.may_hold_goal = True
        try:
            done = transfer(
                send, words, self.side.shell.fds, resource.stall_timeout, lambda _: None
            )
        except SyncError as error:
            return error
        self.size_bytes += done.size_bytes
        return _transfer_failure(done, self.view.node) if done.failed else None

    def _relist(self) -> None:
        recursive = self.context.resource.recursive
        self.view = observe.relist(
            self.side, self.view, self.source, self.context.names, recursive=recursive
        )
        self.may_hold_goal = False

    def _rollback_of_modified(self, goal: str, failure: SyncError) -> zfs.Change | None:
        """Return the rollback of the dataset that the receiver called modified.

        ZFS that knows the property `written` does not come here: there it was planned beforehand.
        """
        match = _MODIFIED.search(failure.detail)
        if match is None or self.view.tree is None:
            return None
        named = " ".join(match["name"].split(" "))
        for stand in plan.stands(self.source.tree, self.view.tree, goal):
            if stand.target is None or stand.has_goal:
                continue
            if self.view.tree.full(stand.target) == named:
                return plan.discard(self.view, self.context.resource, stand, "changed")
        return None

    def _rotate(self, goal: str) -> None:
        """The mark first: without it nothing on the target may be renamed or destroyed."""
        context, view = self.context, self.view
        tree = view.tree
        assert tree is not None  # noqa: S101 - the goal was proven in it
        if view.mark is None:
            change(context, self.side, zfs.set_property(view.dst, MARK, context.who.mark))
            if context.resource.replica_readonly:
                change(context, self.side, zfs.set_readonly(view.dst))
            self.view = view = replace(view, mark=context.who.mark)
        rotation = plan.rotate_target(self.source.tree, view, goal, context.resource, context.who)
        if rotation.marks:
            self._mark_snapshots(rotation.marks)
        busy = apply_rotation(context, self.side, tree, rotation.changes, view.retained)
        if set(busy) != set(view.retained):
            set_retained(context, self.side, view.dst, busy)

    def _mark_snapshots(self, names: Sequence[str]) -> None:
        argv = zfs.mark_snapshots_argv(self.context.who.rid_value)
        self.context.info(f"{self.side.shown(argv)} ({len(names)} snapshots, first {names[0]})")
        answer = self.side.run(argv, names)
        if answer.status != 0:
            raise _command_failed(self.side, argv, answer.status, answer.stderr)


def _transfer_failure(done: Transfer, node: str) -> SyncError:
    """Name every stage that failed, the receiver first: a dead receiver breaks the sender too."""
    rows = []
    for stage in done.failed:
        last = " ".join(stage.stderr.splitlines()[-3:]) or "no message"
        rows.append(f"{stage.command}: exit {stage.status}: {last}")
    receiver = done.stages[-1]
    kind = NoAnswer if receiver.status == SSH_FAILED else CommandFailed
    return kind(
        f"the transfer to {node} failed",
        command=" | ".join(stage.command for stage in (done.stages[0], receiver)),
        detail="\n".join(rows),
        untouched="nothing was rotated",
        hint="mend what the answer says; the next run sends what is missing",
    )
