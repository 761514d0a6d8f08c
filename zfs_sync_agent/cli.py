"""Turns the command line into runs, and their outcomes into an exit status and what cron mails.

It never decides about data. The one broad catch of the agent is in `main`.
"""

import argparse
import gc
import logging
import logging.handlers
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from check_zfs_sync import __version__
from check_zfs_sync.service import Service, SyncResource, Target, load_services, metrics_file
from check_zfs_sync.statefile import State, TargetState
from zfs_sync_agent import forget, init, metrics, progress, record, status, transport
from zfs_sync_agent.branch import Context
from zfs_sync_agent.errors import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_USAGE,
    BrokenChain,
    Interrupted,
    Misconfigured,
    SyncError,
    worst_exit,
)
from zfs_sync_agent.execute import Outcome, Run, Settings
from zfs_sync_agent.mend import DiscardRun, FullRun, InPlaceRun, ResyncRun
from zfs_sync_agent.model import Identity, Names
from zfs_sync_agent.record import Record

CONFIG_DIR = "/etc/zfs_sync"
STATE_DIR = "/var/lib/zfs_sync"
SYSLOG = "/dev/log"

ALERT = 60
LOG = logging.getLogger("zfs_sync_agent")

# Which groups of targets an action reaches.
GROUPS = {
    "syncnodes": frozenset({"nodes", "local", "named"}),
    "syncdrp": frozenset({"drpnodes"}),
    "syncupdate": frozenset({"nodes", "local", "named", "drpnodes"}),
}
RUNS = {
    ("syncresync", False): ResyncRun,
    ("syncresync", True): DiscardRun,
    ("syncfull", False): FullRun,
    ("syncfull", True): InPlaceRun,
}
ACTIONS = {
    "syncnodes": "synchronize the targets of `nodes`, local and named ones",
    "syncdrp": "synchronize the targets of `drpnodes`",
    "syncupdate": "synchronize all targets",
    "syncresync": "roll a target back to the last common snapshots, and keep the rest beside it",
    "syncfull": "send everything to a target anew, and replace what is there",
    "takeover": "make this node the source",
    "forget": "SERVICE RID [NODE]: remove the traces of what is no longer configured",
    "status": "show every resource and target, from the state files of this node",
    "validate": "check the service files and say what is ignored; --deep: ask the nodes too",
    "init": "[KEY=VALUE]...: try the nodes and write a new service file; asks what is missing",
}
# A person asks for these: what a sync passes over in silence is told.
ASKED = ("syncresync", "syncfull", "takeover", "forget")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line; everything else about it is derived from this."""
    parser = argparse.ArgumentParser(
        prog="zfs_sync_agent",
        description="Replicate ZFS datasets to other nodes with snapshots, send and receive.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="actions:\n"
        + "\n".join(f"  {name:<11} {text}" for name, text in ACTIONS.items())
        + "\n\nWhere standard error is a terminal, transfers show their progress there."
        "\n\nexit status: 0 in sync, 1 a target failed (the next run retries), 2 usage or"
        "\nconfiguration, 3 a broken chain or a refusal: a person must act. See zfs_sync_agent(8).",
    )
    add = parser.add_argument
    add("action", choices=list(ACTIONS), metavar="ACTION", help="see below")
    add("words", nargs="*", metavar="WORD", help="forget: SERVICE RID [NODE]; init: KEY=VALUE")
    add("-s", "--service", action="append", default=[], help="only this service (repeatable)")
    add("--rid", action="append", default=[], help="only this sync resource (repeatable)")
    add("--node", action="append", default=[], help="only this target (repeatable)")
    add("-n", "--dry-run", action="store_true", help="print the plan, change nothing")
    add("-v", "--verbose", action="store_true", help="log to stderr too")
    add("--discard", action="store_true", help="syncresync: keep nothing of what is rolled back")
    add("--in-place", action="store_true", help="syncfull: destroy what is there first")
    add("--json", action="store_true", help="status as a list of JSON objects")
    add("--deep", action="store_true", help="validate: try ssh, zfs and the rest on each node")
    add("--config-dir", metavar="DIR", default=CONFIG_DIR, help=f"service files ({CONFIG_DIR})")
    add("--state-dir", metavar="DIR", default=STATE_DIR, help=f"state files ({STATE_DIR})")
    add("--nodename", metavar="NAME", default=os.uname().nodename, help="this node's name")
    add("-V", "--version", action="version", version=f"zfs_sync_agent {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the agent and exit."""
    # What was imported stays: to look through it for garbage at the end is a tenth of the start.
    gc.freeze()
    args = build_parser().parse_intermixed_args(argv)
    try:
        _handle_signals()
        args.progress = progress.on(sys.stderr)
        _log_to(args.verbose, args.progress)
        transport.extend_path()
        code = run(args)
    except Interrupted as interrupted:
        print(f"zfs_sync_agent: ended by signal {interrupted.signum}", file=sys.stderr)
        code = 128 + interrupted.signum
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = EXIT_FAILED
    except Exception as error:
        LOG.exception("internal failure")
        print(f"zfs_sync_agent: internal failure: {error!r}; please report it", file=sys.stderr)
        code = EXIT_FAILED
    sys.exit(code)


def run(args: argparse.Namespace) -> int:
    """Do what the command line says; return the exit status."""
    if complaint := _misplaced_option(args):
        print(f"zfs_sync_agent: {complaint}", file=sys.stderr)
        return EXIT_USAGE
    if args.action == "init":
        return init.run(args, _folders(args))
    services, problems = load_services(
        args.config_dir, nodename=args.nodename, names=tuple(args.service)
    )
    for problem in problems:
        print(problem, file=sys.stderr)
    if args.action == "forget":
        code = forget.run(args, services, doubtful=bool(problems))
        _Metrics(args).write()
        return code
    codes = {EXIT_USAGE} if problems else {EXIT_OK}
    resources = [one for service in services for one in service.resources]
    if complaint := _unknown_names(args, resources, problems=bool(problems)):
        print(f"zfs_sync_agent: {complaint}", file=sys.stderr)
        return EXIT_USAGE
    if args.rid:
        resources = [one for one in resources if one.rid in args.rid]
    if args.action == "validate":
        _validate(services)
        if args.deep and not init.is_fit(resources, args.state_dir, args.node):
            codes.add(EXIT_USAGE)
    elif args.action == "status":
        status.show(resources, args.state_dir, args.node, as_json=args.json)
    else:
        codes |= _run_resources(args, [one for one in resources if one.src is not None])
    return worst_exit(codes)


def _folders(args: argparse.Namespace) -> list[str]:
    """Return the options for folders that are not the usual ones, for another command line."""
    config = ["--config-dir", args.config_dir] if args.config_dir != CONFIG_DIR else []
    return config + (["--state-dir", args.state_dir] if args.state_dir != STATE_DIR else [])


def _misplaced_option(args: argparse.Namespace) -> str | None:
    """Return which option says nothing to this action, None if none."""
    for option, given, action in (
        ("--discard", args.discard, "syncresync"),
        ("--in-place", args.in_place, "syncfull"),
        ("--json", args.json, "status"),
        ("--deep", args.deep, "validate"),
    ):
        if given and args.action != action:
            return f"{option} belongs to {action}"
    return None


def _run_resources(args: argparse.Namespace, resources: list[SyncResource]) -> set[int]:
    """Run one after the other; each one's news is in the metrics before the next one begins."""
    codes, metrics_of_node = set(), _Metrics(args)
    for one in resources:
        codes.add(_run_resource(args, one))
        metrics_of_node.write()
    if not resources:  # a target alone: what was copied here
        metrics_of_node.write()
    return codes


def _unknown_names(
    args: argparse.Namespace, resources: list[SyncResource], *, problems: bool
) -> str | None:
    """Return what is wrong with the command line as a whole, None if nothing is."""
    if args.words:
        return f"{args.action} takes no words: {' '.join(args.words)}"
    rids = {one.rid for one in resources}
    nodes = {target.node for one in resources for target in one.targets}
    for option, given, known in (("--rid", args.rid, rids), ("--node", args.node, nodes)):
        if unknown := [name for name in given if name not in known]:
            listed = ", ".join(sorted(known)) or "none"
            return f"{option} {unknown[0]}: unknown; the service files have: {listed}"
    if complaint := _wrong_node(args, resources):
        return complaint
    if not resources and not problems and args.action != "validate":
        return f"no zfs sync resource in {args.config_dir}; see zfs_sync.conf(5)"
    return None


def _wrong_node(args: argparse.Namespace, resources: list[SyncResource]) -> str | None:
    if args.action in ("syncresync", "syncfull") and not args.node:
        return f"{args.action}: say which target with --node: it replaces what is there"
    chosen = [one for one in resources if not args.rid or one.rid in args.rid]
    hit = [one for one in chosen if {target.node for target in one.targets} & set(args.node)]
    if args.action in ("syncresync", "syncfull") and len(hit) > 1:
        listed = ", ".join(f"{one.service}/{one.rid}" for one in hit)
        return f"{args.action}: say which one with -s and --rid: {listed}"
    if args.action == "takeover" and args.node:
        return "takeover takes no --node: it is this node that becomes the source"
    return None


def _validate(services: Sequence[Service]) -> None:
    for service in services:
        for text in service.ignored:
            print(f"{service.file}: ignored: {text}")
        for one in service.resources:
            targets = ", ".join(target.node for target in one.targets) or "none from this node"
            print(f"{service.file}: {one.rid}: {one.src or 'no src here'} to {targets}: valid")


# --- one resource -----------------------------------------------------------------------------


def _run_resource(args: argparse.Namespace, resource: SyncResource) -> int:
    """Run one resource; return its exit status."""
    assert resource.src is not None  # noqa: S101 - the caller asks sources only
    empty = State(
        service=resource.service,
        rid=resource.rid,
        source=resource.nodename,
        here=resource.nodename,
        src=resource.src,
        sync_max_delay=resource.sync_max_delay,
        agent=__version__,
        targets={},
    )
    rec = Record(args.state_dir, empty)
    label = f"{resource.service}/{resource.rid}"
    try:
        if not _wants_to_run(resource, told=args.action in ASKED):
            return EXIT_FAILED if args.action in ASKED else EXIT_OK
        lock = record.acquire(rec.lock_path())
        if isinstance(lock, int):
            return _locked(label, resource, lock, told=args.action in ASKED)
        outcomes = _run(args, resource, rec, lock)
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"{label}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except SyncError as error:
        return _tell(label, resource, rec, [Outcome("", "", error)])
    except Exception as error:  # the other resources still run
        LOG.exception("%s: internal failure", label)
        print(f"{label}: internal failure: {error!r}; please report it", file=sys.stderr)
        return EXIT_FAILED
    told = args.dry_run or args.action in ASKED
    return _tell(label, resource, rec, outcomes, news_only=not told)


def _wants_to_run(resource: SyncResource, *, told: bool) -> bool:
    """Tell what only_if says, to the person too if it is to be `told`.

    Raises Misconfigured where there is no such command.
    """
    if resource.only_if is None:
        return True
    code = transport.run_user_command(resource.only_if)
    if code in (126, 127):
        raise Misconfigured(
            f"only_if = {resource.only_if} cannot be run: exit {code}",
            untouched="everything",
            hint=f"name a command that exists and is executable ({resource.file})",
        )
    if code and told:
        label = f"{resource.service}/{resource.rid}"
        print(f"{label}: not done: only_if = {resource.only_if} exits {code}", file=sys.stderr)
    return code == 0


def _locked(label: str, resource: SyncResource, since: int, *, told: bool) -> int:
    """A second run is no failure, unless the first one is late itself."""
    held = record.now() - since
    text = f"another run has held the lock for {held} s, since {record.utc(since)}"
    LOG.info("%s - INFO - %s", label.upper().replace("/", "."), text)
    late = held > resource.sync_max_delay
    if not late and not told:
        return EXIT_OK
    why = f": longer than sync_max_delay ({resource.sync_max_delay} s)" if late else ""
    print(
        f"{label}: {text}{why}\n"
        "  untouched: everything\n  next:      look at what it does: ps -ef | grep zfs",
        file=sys.stderr,
    )
    return EXIT_FAILED


def _run(
    args: argparse.Namespace, resource: SyncResource, rec: Record, lock: record.Lock
) -> list[Outcome]:
    prefix = f"{resource.service}.{resource.rid}".upper()
    peers = frozenset(resource.sources) | {target.node for target in resource.targets}
    context = Context(
        resource,
        Identity(resource.nodename, resource.service, resource.rid, peers),
        Names(resource.snap_prefix),
        info=lambda text: LOG.info("%s - INFO - %s", prefix, text),
        warn=lambda text: LOG.warning("%s - WARNING - %s", prefix, text),
        progress=args.progress,
    )
    settings = Settings(
        nodename=resource.nodename,
        consent=args.action == "syncfull",
        dry_run=args.dry_run,
        show=print,
    )
    if args.action == "takeover":
        Run(context, settings, rec, lock, ()).take_over()
        return []
    targets = [target for target in resource.targets if _is_wanted(args, target)]
    if not targets:
        lock.close()
        return []
    kind = RUNS.get((args.action, args.discard or args.in_place), Run)
    return kind(context, settings, rec, lock, targets).go()


def _is_wanted(args: argparse.Namespace, target: Target) -> bool:
    in_group = args.action in ASKED or target.group in GROUPS[args.action]
    return in_group and (not args.node or target.node in args.node)


# --- what is told -----------------------------------------------------------------------------


def _tell(
    label: str,
    resource: SyncResource,
    rec: Record,
    outcomes: Sequence[Outcome],
    *,
    news_only: bool = True,
) -> int:
    """Log every failure; print the block of those that are news. Return the exit status."""
    codes = {EXIT_OK}
    prefix = f"{resource.service}.{resource.rid}".upper()
    for error in dict.fromkeys(outcome.error for outcome in outcomes if outcome.error):
        about = [outcome for outcome in outcomes if outcome.error is error]
        nodes = ", ".join(outcome.node for outcome in about)
        who = f"{label} to {nodes}" if nodes else label
        codes.add(error.exit_code)
        level = ALERT if isinstance(error, BrokenChain) else logging.ERROR
        name = logging.getLevelName(level)
        LOG.log(level, "%s - %s - %s", prefix, name, f"{who}: {error.reason}")
        if not news_only or _is_news(about, rec, resource):
            print(error.block(who), file=sys.stderr)
    return worst_exit(codes)


def _is_news(outcomes: Sequence[Outcome], rec: Record, resource: SyncResource) -> bool:
    """A block comes at the first failure, when its reason changes, once per sync_max_delay."""
    now = record.now()
    news = False
    for outcome in outcomes:
        reason = _gist(outcome.error.reason if outcome.error else "")
        if not outcome.node:
            return True
        entry = rec.entry(outcome.node, outcome.dst)
        recent = entry.alerted is not None and now - entry.alerted < resource.sync_max_delay
        if recent and entry.alert_reason == reason:
            continue
        news = True
        try:
            rec.update(outcome.node, outcome.dst, _alerted(now, reason))
        except SyncError:  # nowhere to remember it: told again at the next run
            LOG.warning("the state file cannot be written; this alert will be repeated")
    return news


def _alerted(now: int, reason: str) -> Callable[[TargetState], TargetState]:
    return lambda entry: entry._replace(alerted=now, alert_reason=reason)


def _gist(reason: str) -> str:
    """Return a reason without its numbers: bytes and process ids differ at every run."""
    return re.sub(r"\d+", "#", reason)


class _Metrics:
    """The metrics file of this node, if node.conf has one; failing to write it fails no run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._state_dir = args.state_dir
        self._path = metrics_file(args.config_dir, nodename=args.nodename)
        if args.dry_run:
            self._path = None
        if self._path is not None:  # all services, whatever -s selects: it is one file
            services, problems = load_services(args.config_dir, nodename=args.nodename)
            self._resources = [one for service in services for one in service.resources]
            self._wrong = len({problem.file for problem in problems})

    def write(self) -> None:
        """Write it anew; a failure is logged, once."""
        if self._path is None:
            return
        try:
            record.write_metrics(self._path, self._state_dir, self._text)
        except OSError as error:
            LOG.warning("WARNING - metrics_file %s is not written: %s", self._path, error)
            self._path = None

    def _text(self, states: list[State], torn: int) -> str:
        replicas = metrics.replicas_of(states, self._resources)
        return metrics.format_metrics(replicas, unusable=torn + self._wrong)


# --- the process ------------------------------------------------------------------------------


def _handle_signals() -> None:
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def end(signum: int, _: FrameType | None) -> None:
        for one in signals:  # the end is under way; a second signal must not cut it
            signal.signal(one, signal.SIG_IGN)
        transport.children.interrupt(signum)

    for one in signals:
        signal.signal(one, end)


class _Syslog(logging.handlers.SysLogHandler):
    """A broken chain is logged at syslog's level alert, which logging does not have."""

    priority_map = {**logging.handlers.SysLogHandler.priority_map, "ALERT": "alert"}  # noqa: RUF012 - as in the class above it


def _log_to(verbose: bool, below: progress.Progress | None = None) -> None:
    """Send the log to syslog; with -v to stderr too, above what is shown there of transfers."""
    logging.addLevelName(ALERT, "ALERT")
    logging.raiseExceptions = False  # a syslog that is down is no traceback in cron's mail
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    if Path(SYSLOG).exists():
        try:
            syslog = _Syslog(SYSLOG, _Syslog.LOG_DAEMON)
        except OSError:
            pass  # a socket that nobody reads: stderr and the exit status remain
        else:
            syslog.ident = f"zfs_sync_agent[{os.getpid()}]: "
            LOG.addHandler(syslog)
    if verbose:
        shown = (
            logging.StreamHandler(below)
            if isinstance(below, progress.OnTerminal)
            else logging.StreamHandler()
        )
        shown.setFormatter(logging.Formatter("* %(message)s"))
        LOG.addHandler(shown)
    if not LOG.handlers:
        LOG.addHandler(logging.NullHandler())
