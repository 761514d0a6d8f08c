"""Removes what a resource, or one of its targets, has left behind that is no longer configured.

It never touches data: of snapshots only the bases that were kept for somebody go, and of files only
state files of this source. What is still configured is never forgotten.
"""

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from check_zfs_sync.service import Service, SyncResource
from check_zfs_sync.statefile import State, StateFileError, parse_state, read_state, state_path
from zfs_sync_agent import observe, record, zfs
from zfs_sync_agent.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE, NoAnswer, SyncError, UsageError
from zfs_sync_agent.model import RETAINED, RID, TARGETS, format_nodes, parse_nodes
from zfs_sync_agent.observe import Side
from zfs_sync_agent.record import Record
from zfs_sync_agent.transport import Shell, quote

_WORDS = (2, 3)


@dataclass
class _Task:
    """What is forgotten; `node` None: the whole resource."""

    state: State
    resource: SyncResource | None
    node: str | None
    dry_run: bool
    nodename: str

    @property
    def label(self) -> str:
        """Return <service>/<rid>."""
        return f"{self.state.service}/{self.state.rid}"

    def do(self, side: Side, argv: Sequence[str]) -> None:
        """Run one command that changes something, and show it first."""
        print(side.shown(argv))
        if self.dry_run:
            return
        answer = side.run(argv)
        if answer.status != 0:
            last = answer.stderr.strip().splitlines()[:1] or ["no message"]
            raise SyncError(f"{side.shown(argv)}: exit {answer.status}: {last[0]}")


def run(args: argparse.Namespace, services: Sequence[Service], *, doubtful: bool) -> int:
    """Forget what the words name; return the exit status. `doubtful`: not all files were read."""
    try:
        task = _task(args, services, doubtful=doubtful)
    except UsageError as error:
        print(f"zfs_sync_agent: forget: {error}", file=sys.stderr)
        return EXIT_USAGE
    rec = Record(args.state_dir, task.state)
    lock = record.acquire(rec.lock_path())
    if isinstance(lock, int):
        print(f"forget: a run of {task.label} is under way; try again later", file=sys.stderr)
        return EXIT_FAILED
    try:
        return _forget(task, rec)
    finally:
        lock.close()


def _task(args: argparse.Namespace, services: Sequence[Service], *, doubtful: bool) -> _Task:
    """Return what is to be forgotten. Raises UsageError."""
    if len(args.words) not in _WORDS:
        raise UsageError(("say SERVICE RID, or SERVICE RID NODE",))
    if args.service or args.rid or args.node:  # -s would hide the services that were not read
        raise UsageError(("it takes no -s, --rid or --node: say SERVICE RID, or SERVICE RID NODE",))
    if doubtful:
        raise UsageError(("mend the service files first: they say what is configured",))
    service, rid, *nodes = args.words
    node = nodes[0] if nodes else None
    found = [r for s in services for r in s.resources if (r.service, r.rid) == (service, rid)]
    resource = found[0] if found else None
    if resource is not None and (node is None or _is_target(resource, node)):
        what = f"{node} as a target of {service}/{rid}" if node else f"{service}/{rid}"
        raise UsageError((f"{resource.file} has {what}: take it out there first",))
    try:
        state = read_state(state_path(args.state_dir, service, rid))
    except (StateFileError, ValueError) as error:
        raise UsageError((str(error),)) from error
    if state is None:
        raise UsageError((f"there is no state file of {service}/{rid} in {args.state_dir}",))
    if node is not None and node not in state.targets:
        listed = ", ".join(sorted(state.targets)) or "none"
        raise UsageError((f"{node} is no target of {service}/{rid}; it has: {listed}",))
    return _Task(state, resource, node, args.dry_run, args.nodename)


def _is_target(resource: SyncResource, node: str) -> bool:
    return any(target.node == node for target in resource.targets)


def _forget(task: _Task, rec: Record) -> int:
    code = EXIT_OK
    if task.state.source == task.nodename:
        try:
            with rec.exclusive():
                _forget_bases(task)
        except SyncError as error:
            print(f"forget: {error.reason}", file=sys.stderr)
            return EXIT_FAILED
        for node in [task.node] if task.node else sorted(task.state.targets):
            if node != task.nodename and not _forget_copy(task, node, rec.path):
                code = EXIT_FAILED
    if task.node is None:
        print(quote(("rm", "-f", rec.path)))
    else:
        print(f"take {task.node} out of {rec.path}")
    if not task.dry_run:
        _forget_here(task, rec)
    return code


def _forget_here(task: _Task, rec: Record) -> None:
    if task.node is not None:
        rec.forget_nodes(frozenset(task.state.targets) - {task.node})
        return
    path = Path(rec.path)
    path.unlink(missing_ok=True)
    for file in path.parent.glob(f".{path.name}.*lock"):
        file.unlink(missing_ok=True)


def _forget_bases(task: _Task) -> None:
    """Destroy the bases that nobody is left to need; until then the property names them."""
    src, resource = task.state.src, task.resource
    words = resource.zfs.get(task.nodename, ("zfs",)) if resource else ("zfs",)
    sudo = resource.sudo.get(task.nodename, False) if resource else False
    side = Side(Shell(task.nodename, ()), words, sudo=sudo)
    try:
        datasets, marks, _ = observe.look(side, src, recursive=True)
        if not datasets:
            return  # what was kept went with it
        rid = task.label
        _forget_targets(task, side, marks, rid)
        retained = parse_nodes(marks.get(RETAINED))
        ours = _ours(side, datasets, sorted(retained), rid)
        left = dict(retained)
        for name, holders in ours.items():
            nodes = retained[name] - {task.node} if task.node else frozenset()
            if nodes:
                left[name] = nodes
                continue
            # @sent is named for who lags behind it, and is what all others hold. The prefix of a
            # service without a file is not known; what ends so is none of the kept names.
            for full in () if name.endswith(("sent", "tosend")) else holders:
                task.do(side, zfs.destroy_snapshot(full, name, recursive=False).argv)
            del left[name]
        if left != retained:
            task.do(side, zfs.set_property(src, RETAINED, format_nodes(left)).argv)
        if task.node is None:
            _tell_what_stays(side, src, datasets, rid)
    finally:
        side.shell.close()


def _forget_targets(task: _Task, side: Side, marks: Mapping[str, str], rid: str) -> None:
    known = parse_nodes(marks.get(TARGETS))
    if rid not in known:
        return
    nodes = known[rid] - {task.node} if task.node else frozenset()
    if nodes == known[rid]:
        return
    others = {name: value for name, value in known.items() if name != rid}
    value = format_nodes({**others, rid: nodes} if nodes else others)
    task.do(side, zfs.set_property(task.state.src, TARGETS, value).argv)


def _ours(
    side: Side, datasets: Sequence[str], names: Sequence[str], rid: str
) -> dict[str, list[str]]:
    """Return snapshot name -> the datasets that hold it with this resource's mark."""
    found: dict[str, list[str]] = {}
    if not names:
        return found
    wanted = [f"{full}@{name}" for full in datasets for name in names]
    for full, values in observe.read_names(side, wanted).items():
        dataset, _, name = full.partition("@")
        if values.get(RID) == rid:
            found.setdefault(name, []).append(dataset)
    return found


def _tell_what_stays(side: Side, src: str, datasets: Sequence[str], rid: str) -> None:
    """@sent is the only base that both sides hold: with it the service may come back."""
    tree = observe.deepen(
        side, observe.read_tree(side, src, datasets, (), {}), _relative(src, datasets)
    )
    names = {s.name for d in tree.datasets.values() for s in d.snapshots.values() if s.rid == rid}
    for name in sorted(names):
        print(
            f"# it stays, for good: {src}@{name}; if nobody needs it: zfs destroy -r {src}@{name}"
        )


def _relative(src: str, datasets: Sequence[str]) -> list[str]:
    return ["" if full == src else zfs.relative_to(src, full) for full in datasets]


def _forget_copy(task: _Task, node: str, path: str) -> bool:
    """Remove the state file of this source on a node; tell whether it is gone."""
    ssh = task.resource.ssh if task.resource else ("ssh",)
    shell = Shell(node, ssh)
    remove = ("rm", "-f", path)
    try:
        answer = shell.run(("cat", path))
        text = answer.stdout if answer.status == 0 else ""
        with contextlib.suppress(StateFileError):
            if text and parse_state(text, path).source == task.state.source:
                print(shell.shown(remove))
                if not task.dry_run:
                    return shell.run(remove).status == 0
    except NoAnswer as error:
        print(f"forget: {node}: {error.reason}: {path} stays there", file=sys.stderr)
        return False
    finally:
        shell.close()
    return True
