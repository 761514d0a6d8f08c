"""Brings one target to the goal: send, list, rotate; the listing is the verdict.

It never decides what to write (plan does) and never takes an exit status for the truth. It changes
nothing on the source.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from check_zfs_sync.service import SyncResource
from zfs_sync_agent import judge, observe, pairing, pipe, plan, rotating, zfs
from zfs_sync_agent.errors import (
    UNTOUCHED,
    BrokenChain,
    CommandFailed,
    NoAnswer,
    Refused,
    SyncError,
)
from zfs_sync_agent.model import (
    MARK,
    RETAINED,
    ROOT,
    Dataset,
    Identity,
    Names,
    Snapshot,
    SourceView,
    TargetView,
    Tree,
    parse_nodes,
)
from zfs_sync_agent.observe import Side
from zfs_sync_agent.progress import Progress
from zfs_sync_agent.transport import SSH_FAILED, Passage, Transfer, quote, transfer

_MODIFIED = re.compile(r"destination (?P<name>.+?) has been\s+modified", re.DOTALL)
_NO_ROOM = re.compile("out of space|quota exceeded")
_NEWER = re.compile(r"most recent snapshot of (?P<name>.+?) does not\s+match", re.DOTALL)

# How many streams share one data connection: their commands are one argument, 128 KiB at most.
STREAMS_AT_ONCE = 100

Log = Callable[[str], None]


@dataclass(frozen=True)
class Context:
    """What every step of a run needs: who sends what, and where its lines go."""

    resource: SyncResource
    who: Identity
    names: Names
    info: Log
    warn: Log
    progress: Progress = field(default_factory=Progress)


def shown_pipe(send: Sequence[str], way: pipe.Pipe, side: Side, into: Sequence[str]) -> str:
    """Return a transfer as it can be pasted: the words of a send, the argv of a receive."""
    here = [quote(words) for words in (send, way.compress) if words]
    return f"{' | '.join(here)} | {side.shell.shown(*way.feeders, side.words(into))}"


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
    change(context, side, rotating.retain(root, context.names, value, now))


def _command_failed(side: Side, argv: Sequence[str], status: int, stderr: str) -> CommandFailed:
    first = stderr.strip().splitlines()[:2] or ["no message"]  # ZFS gives its reason first
    return CommandFailed(
        f"zfs {argv[0]} failed on {side.shell.node}",
        command=side.shown(argv),
        detail=f"exit {status}: {' '.join(first)}",
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
        self.programs = pipe.programs(context.resource, view.node)
        self.context = context
        self.source_side, self.side = source_side, side
        self.source, self.view = source, view
        self.size_bytes = self.link_bytes = 0
        self.mode = "none"
        self.resumed = False
        self.may_hold_goal = False  # a send began and no listing came after it
        self.proven = False
        self.reached = False  # rotated, but perhaps for broken children

    def bring_to(self, goal: str) -> None:
        """Send what lacks, prove it, rotate. Raises SyncError; what was reached stays in self."""
        self._settle_partials()
        last, failure = self._send_until_proven(goal)
        missing = self._missing(last)
        if missing and not failure:
            count = len(self.source.tree.guids(goal))
            failure = CommandFailed(
                f"{len(missing)} of {count} datasets did not arrive on {self.view.node}, first"
                f" {self.source.tree.full(missing[0])}",
                untouched="nothing was rotated",
                hint="the next run sends what is missing",
            )
        if missing and failure:
            raise failure
        self._rotate(goal)
        self.reached = True
        self.proven = not last.broken
        if last.broken:
            full = [self.source.tree.full(name) for name in last.broken]
            who = self.context.who
            raise BrokenChain(
                f"chain broken: no common snapshot on {self.view.node} for {', '.join(full)}",
                untouched="these datasets; the others of the tree are in sync",
                hint=f"zfs_sync_agent -s {who.service} --rid {who.rid} --node {self.view.node}"
                " syncresync; it keeps what is there beside dst, and sends them anew",
            )

    @property
    def compressed(self) -> str:
        """Return what became of size_bytes on the way, as the closing line tells it."""
        name = self.programs.source.get("compress")
        return f" ({self.link_bytes} by {name})" if name else ""

    def _missing(self, branch: plan.Branch) -> list[str]:
        """Return what the last listing does not show, but for what is broken anyway."""
        missing = pairing.unproven(self.source.tree, self.view.tree, branch.goal)
        return [name for name in missing if name not in branch.broken]

    def _plan(
        self, goal: str, *, one_by_one: bool = False, skip: frozenset[str] = frozenset()
    ) -> plan.Branch:
        context = self.context
        self.source, self.view = observe.clear_up(
            self.source_side,
            self.side,
            self.source,
            self.view,
            context.who,
            deep=self.deep,
        )
        # Without a goal there would be nothing to prove, and all of it would be proven.
        if goal not in self.source.tree.datasets[ROOT].snapshots:
            full = f"{self.source.tree.root}@{goal}"
            raise NoAnswer(
                f"{self.source_side.shell.node} does not show {full}, which was there before",
                untouched="nothing was sent or rotated",
                hint=f"see whether it is there: zfs list -t snapshot {full}; the next run tries"
                " again",
            )
        return plan.plan_branch(
            self.source,
            self.view,
            context.resource,
            context.who,
            goal,
            one_by_one=one_by_one,
            skip=skip,
        )

    def _plan_again(self, goal: str, *, one_by_one: bool, skip: frozenset[str]) -> plan.Branch:
        """Return the plan after a failure: while a node joins others rotate the source."""
        if goal != self.context.names.tosend:
            self._observe_source()
        return self._plan(goal, one_by_one=one_by_one, skip=skip)

    def _send_until_proven(self, goal: str) -> tuple[plan.Branch, SyncError | None]:
        """Return the last plan and the first failure; a listing was made after each attempt.

        After a failure the listing is planned from again, a stream per dataset: that needs no
        knowledge of how each ZFS replays the stream of a tree. What the receiver calls modified is
        rolled back first, if it may be, each dataset once. A dataset that fails by itself is left
        out of the next attempt, so that it does not hold up those behind it.
        """
        branch = self._plan(goal)
        if branch.again:  # a rotation that was cut: finish it, then look again
            view = self.view
            assert view.tree is not None  # noqa: S101 - it was found in there
            apply_rotation(self.context, self.side, view.tree, branch.before, view.retained)
            self._relist(branch.before)
            branch = self._plan(goal)
        self.mode = "resume" if self.resumed else branch.mode
        first: SyncError | None = None
        rolled_back: set[str] = set()
        skip: set[str] = set()
        one_by_one = False
        while True:
            failure = self._attempt(branch)
            missing = self._missing(branch)
            if failure is None:
                return branch, first
            first = first or failure
            if not missing:
                self.context.warn(f"{failure.reason}; the listing shows that all of it arrived")
                return branch, None
            if isinstance(failure, NoAnswer):
                raise failure
            rollback = self._rollback_of_modified(goal, failure)
            if rollback is not None and rollback.argv[-1] not in rolled_back:
                rolled_back.add(rollback.argv[-1])
                self._roll_back(rollback)
            elif one_by_one:
                first = self._refusal_of_newer(goal, failure) or first
                left = [name for name in missing if name not in skip]
                if not left:  # this one arrived, whatever its exit status
                    return branch, first
                skip.add(left[0])
            else:
                self.context.warn(f"{failure.reason}; sending again, a stream per dataset")
                one_by_one = True
            branch = self._plan_again(goal, one_by_one=one_by_one, skip=frozenset(skip))
            if not branch.streams:
                return branch, first

    def _settle_partials(self) -> None:
        """Let receives that were cut go on, or give them up: nothing else can be received there.

        One goes on if the source still has the snapshot that was on its way. It is given up if its
        snapshot was ours and is gone, or if it cannot go on. Somebody else's is left to him.
        """
        context, tree = self.context, self.view.tree
        settled = False
        for dataset in tree.datasets.values() if tree else ():
            if dataset.partial is None:
                continue
            assert tree is not None  # noqa: S101 - the dataset is in it
            full, name = tree.full(dataset.name), dataset.partial.snapshot
            failure: SyncError | None = None
            if wanted := pairing.resumable(self.source.tree, dataset):
                context.warn(f"{full} on {self.view.node}: going on with the transfer of {name}")
                full = self._place_of_rest(dataset, *wanted)
                failure = self._send_rest(full, dataset, *wanted)
                settled = True
                if failure is None:
                    continue
            elif not plan.is_sent(name, self.source.tree.root, context.resource):
                raise Refused(
                    f"{full} on {self.view.node} holds a part of {name or 'another stream'}, which"
                    f" {context.who.source} did not send",
                    untouched=UNTOUCHED,
                    hint=f"once nobody goes on with it: zfs receive -A {full}",
                )
            why = failure.detail if failure else "it is gone on the source"
            why = f"{full} on {self.view.node}: what was received of {name} is given up: {why}"
            change(context, self.side, zfs.drop_partial(full, why))
            settled = True
        if settled:
            self._observe_source()  # it may have taken long
            self._relist(())

    def _observe_source(self) -> None:
        """Look again at the source, whose names may be others by now."""
        context = self.context
        self.source = observe.observe_source(
            self.source_side,
            self.source.tree.root,
            context.names,
            context.who.rid_value,
            recursive=context.resource.recursive,
            deep=context.resource.intermediary,
        )

    def _send_rest(
        self, full: str, dataset: Dataset, relative: str, snap: Snapshot
    ) -> SyncError | None:
        """Let a receive go on; return why it cannot. Raises SyncError where it was cut again.

        What the listing shows decides, whatever the commands said.
        """
        assert dataset.partial is not None  # noqa: S101 - the caller saw it
        context, token = self.context, dataset.partial.token
        for step in plan.free_name(self.view, dataset, snap, context.who, context.names):
            change(context, self.side, step)
        failure = self._send([zfs.rest(token, relative, snap, full)])
        if isinstance(failure, NoAnswer):
            raise failure
        self._relist(())
        tree = self.view.tree
        now = tree.datasets.get(zfs.relative_to(tree.root, full)) if tree else None
        if now is None or now.partial is None:
            self.resumed = True
            return None
        if failure is None:
            raise CommandFailed(
                f"the rest of {snap.name} did not arrive in {full} on {self.view.node}",
                untouched="nothing was rotated",
                hint="the next run goes on with it",
            )
        if now.partial.token != token or _NO_ROOM.search(failure.detail):
            raise failure
        return failure

    def _place_of_rest(self, dataset: Dataset, relative: str, snap: Snapshot) -> str:
        """Return where the rest of a cut stream is received.

        It will carry no mark, by which it could be paired with what was renamed on the source
        meanwhile; so the name has to tell.
        """
        assert self.view.tree is not None  # noqa: S101 - the dataset is in it
        full, suffix = self.view.tree.full(dataset.name), pairing.place_suffix(snap.guid)
        if dataset.snapshots or dataset.name == relative or full.endswith(suffix):
            return full
        why = f"{full} on {self.view.node} was renamed on the source since its stream was cut"
        change(self.context, self.side, zfs.rename_dataset(full, full + suffix, why))
        return full + suffix

    def _attempt(self, branch: plan.Branch) -> SyncError | None:
        """Do what the plan says, then list the target; return the transfer's failure, if any."""
        for text in branch.warnings:
            self.context.warn(text)
        for step in branch.before:
            self._prepare(step)
        failure = None
        for start in range(0, len(branch.streams), STREAMS_AT_ONCE):
            failure = failure or self._send(branch.streams[start : start + STREAMS_AT_ONCE])
        if branch.before or branch.streams:
            try:
                self._relist(branch.before)
            except NoAnswer as lost:
                if failure is not None:  # of a link that is gone the transfer says more
                    raise failure from lost
                raise
        return failure

    def _prepare(self, step: zfs.Change) -> None:
        """What is gone on the source holds up nothing, if it cannot be destroyed."""
        if step.verb == "rollback":
            self._roll_back(step)
            return
        try:
            change(self.context, self.side, step)
        except CommandFailed as error:
            if step.verb != "destroy" or "@" in step.argv[-1]:
                raise
            self.context.warn(f"{error.reason}; it is kept, later runs try again")

    def _roll_back(self, step: zfs.Change) -> None:
        """A rollback without -r fails where somebody's snapshot is newer: that is a person's."""
        try:
            change(self.context, self.side, step)
        except CommandFailed as error:
            raise self._not_rolled_back(step.argv[-1].split("@")[0], error) from error

    def _not_rolled_back(self, full: str, error: SyncError) -> Refused:
        return Refused(
            f"{full} on {self.view.node} was written to, and cannot be rolled back",
            command=error.command,
            detail=error.detail,
            untouched="it and its newer snapshots",
            hint=f"see which snapshots are newer: zfs list -t snapshot -d 1 {full}; roll back"
            " by hand once nobody needs them",
        )

    def _send(self, streams: Sequence[zfs.Stream]) -> SyncError | None:
        context, resource = self.context, self.context.resource
        sends = [one.send_argv(self.source.tree, resource.send_options) for one in streams]
        send = [self.source_side.words(argv) for argv in sends]
        can = self.source_side.can.resumes
        into = [
            one.receive_argv(self.side.can, resource.receive_options, resumes=can)
            for one in streams
        ]
        node = self.view.node
        way = pipe.pipe(self.programs, self.source_side.paths, self.side.paths)
        for words, argv in zip(send, into, strict=True):
            context.info(shown_pipe(words, way, self.side, argv))
        if (size := observe.estimate(self.source_side, sends)) is not None:
            context.info(f"{node}: about {size} bytes to send")
        receive = self.side.shell.data_words([self.side.words(argv) for argv in into], way.feeders)
        self.may_hold_goal = True
        label = f"{context.who.service}/{context.who.rid} to {node}"
        try:
            with context.progress.stream(label, size) as tell:
                passage = Passage(
                    resource.stall_timeout,
                    way.compress,
                    resource.rate_limit,
                    tell,
                    self.side.shell.take_data(),
                )
                done = transfer(send, receive, self.side.shell.fds, passage)
        except SyncError as error:
            return error
        self.size_bytes += done.size_bytes
        self.link_bytes += done.link_bytes
        return _transfer_failure(done, self.view.node) if done.failed else None

    def _relist(self, before: Sequence[zfs.Change]) -> None:
        renamed = {step.argv[-1].partition("@")[2] for step in before if step.verb == "rename"}
        seen = self.view
        self.view = observe.relist(
            self.side,
            self.view,
            self.source,
            self.context.names,
            recursive=self.context.resource.recursive,
            renamed=renamed - {""},
        )
        self.may_hold_goal = False
        judge.check_same_standing(seen, self.view, self.context.who)

    def _rollback_of_modified(self, goal: str, failure: SyncError) -> zfs.Change | None:
        """Return the rollback of the dataset that the receiver called modified.

        Where ZFS knows the property `written` it was planned beforehand.
        """
        stand = self._named(goal, failure, _MODIFIED)
        if stand is None:
            return None
        return plan.discard(self.view, self.context.resource, stand, "changed")

    def _refusal_of_newer(self, goal: str, failure: SyncError) -> Refused | None:
        """Return the refusal where somebody's newer snapshots hold what was written there.

        Of a stream of one dataset, from a base that the target holds, the receiver's complaint
        means nothing else.
        """
        stand = self._named(goal, failure, _NEWER)
        if stand is None or stand.common is None or self.view.tree is None:
            return None
        return self._not_rolled_back(self.view.tree.full(stand.target or ""), failure)

    def _named(
        self, goal: str, failure: SyncError, complaint: re.Pattern[str]
    ) -> pairing.Stand | None:
        """Return the dataset without the goal that the receiver complained of by name."""
        match = complaint.search(failure.detail)
        tree = self.view.tree
        if match is None or tree is None:
            return None
        for stand in pairing.stands(self.source.tree, tree, goal):
            named = stand.target is not None and tree.full(stand.target) == match["name"]
            if named and not stand.has_goal:
                return stand
        return None

    def _rotate(self, goal: str) -> None:
        """The mark first: without it nothing on the target may be renamed or destroyed."""
        context, view = self.context, self.view
        tree = view.tree
        assert tree is not None  # noqa: S101 - the goal was proven in it
        if view.mark != context.who.mark:
            change(context, self.side, zfs.set_property(view.dst, MARK, context.who.mark))
            if context.resource.replica_readonly:
                change(context, self.side, zfs.set_readonly(view.dst))
            self.view = view = replace(view, mark=context.who.mark)
        rotation = rotating.rotate_target(
            self.source.tree, view, goal, context.resource, context.who
        )
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


def _last_words(stderr: str) -> str:
    """Return what a program said at its end; the usage that follows a complaint says nothing."""
    said = stderr.partition("\nusage:")[0]
    return " ".join(said.splitlines()[-3:]) or "no message"


def _transfer_failure(done: Transfer, node: str) -> SyncError:
    """Name every stage that failed, the receiver first: a dead receiver breaks the sender too."""
    rows = []
    for stage in done.failed:
        rows.append(f"{stage.command}: exit {stage.status}: {_last_words(stage.stderr)}")
    receiver = done.stages[-1]
    kind = NoAnswer if receiver.status == SSH_FAILED else CommandFailed
    return kind(
        f"the transfer to {node} failed",
        command=" | ".join(stage.command for stage in done.stages),
        detail="\n".join(rows),
        untouched="nothing was rotated",
        hint="mend what the answer says; the next run sends what is missing",
    )
