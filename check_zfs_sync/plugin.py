"""Decides whether the replicas of a node's sync resources are young enough, and tells Nagios.

It never writes, never needs root, never prints to stderr, never imports the agent, and starts no
process unless --verify asks for one. Text from state files is data: no line of it is believed, and
no character of it can forge a line, a state or performance data.

In the order of nagiosplugin's roles: a Resource acquires, a Context judges, a Summary phrases. The
judgement itself, `judge`, is a function of values, the clock among them.
"""

import argparse
import gc
import io
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from functools import lru_cache
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple, NoReturn, TextIO

from check_zfs_sync import __version__
from check_zfs_sync.service import (
    SUFFIXES,
    Problem,
    ServiceError,
    SyncResource,
    duration_seconds,
    load_services,
)
from check_zfs_sync.statefile import SUFFIX as STATE_SUFFIX
from check_zfs_sync.statefile import State, StateFileError, TargetState, digest, read_state

if TYPE_CHECKING:
    from check_zfs_sync.formats import Item

NAME = "ZFS_SYNC"
EXIT_UNKNOWN = 3

try:
    import nagiosplugin
except Exception as missing:  # a broken library is as good as none, and exit 1 would say WARNING
    _head, _status = f"{NAME} UNKNOWN -", EXIT_UNKNOWN
    if "--checkmk" in sys.argv:  # see format_answer
        _head, _status = '3 "ZFS sync" -', 0
    _why = " ".join(str(missing).split())
    with suppress(OSError):  # unbuffered: a full stdout must not end in the status of a last flush
        os.write(1, f"{_head} the library nagiosplugin is missing: {_why}\n".encode())
    raise SystemExit(_status) from None

STATE_DIR = "/var/lib/zfs_sync"
CONFIG_DIR = "/etc/zfs_sync"
# check_nrpe waits 10 seconds by default, and then says CRITICAL itself.
TIMEOUT_SECONDS = 8.0
GRACE_SECONDS = 1.0
DEFAULT_LIMIT_SECONDS = 1500 * 60
CLOCK_SLACK_SECONDS = 60
FIRST_LINE_LENGTH = 160
ITEM_LENGTH = 120
# Below the 128 KiB that Linux gives one argument, far below what it gives all of them.
ARGUMENTS_LENGTH = 100_000
# Cron's and NRPE's PATH may lack them, and zfs is there.
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_NAMES_OF_DATASETS = ("-t", "filesystem,volume", "-o", "name")
# Depth 1: the root's own ones. A tree may hold a million snapshots that are not ours.
_NAMES_OF_SNAPSHOTS = ("-d", "1", "-t", "snapshot", "-o", "name")


class Level(IntEnum):
    """A state in order of severity: what cannot be judged must not hide what is known to be bad."""

    OK = 0
    UNKNOWN = 1
    WARNING = 2
    CRITICAL = 3


OUTPUTS = {
    "checkmk": "the lines of a local check for checkmk; then 0 is the exit status",
    "json": "one JSON object, for programs",
}

_SERVICE_STATES = {
    Level.OK: nagiosplugin.Ok,
    Level.UNKNOWN: nagiosplugin.Unknown,
    Level.WARNING: nagiosplugin.Warn,
    Level.CRITICAL: nagiosplugin.Critical,
}


# --- what is judged ----------------------------------------------------------------------------


class Replica(NamedTuple):
    """One target of one sync resource; `entry` is None if the state file does not know it."""

    service: str
    rid: str
    target: str
    limit_seconds: int
    state: State | None
    entry: TargetState | None
    resource: SyncResource | None

    @property
    def name(self) -> str:
        """The replica's name in performance data and messages."""
        return f"{self.service}/{self.rid}/{self.target}"


class Unjudged(NamedTuple):
    """Something that keeps the check from judging: a torn file, a wrong service file, no match."""

    service: str
    rid: str
    kind: str
    text: str

    @property
    def name(self) -> str:
        """A name for the library; it is never printed."""
        return f"{self.kind}: {self.text}"


Subject = Replica | Unjudged


class Threshold(NamedTuple):
    """A range of seconds outside which there is an alert, and the words for it."""

    start: float
    end: float
    inverted: bool
    text: str

    def alerts(self, lag: int) -> bool:
        """Whether a lag of so many seconds alerts; the ends of the range are inside."""
        return (self.start <= lag <= self.end) is self.inverted

    @property
    def is_limit(self) -> bool:
        """Whether it is a plain upper limit."""
        return not self.inverted and self.start <= 0

    @property
    def plain(self) -> str:
        """The number for performance data; Icinga 2 drops one that is written as a range."""
        return "" if self.inverted or self.end == float("inf") else str(int(self.end))


class Evidence(NamedTuple):
    """What --verify saw of one replica's snapshots."""

    level: Level
    text: str


class Verdict(NamedTuple):
    """The judgement on one subject; `kind` is the word under which it is counted."""

    level: Level
    kind: str
    subject: Subject
    lag: int | None
    words: str


# --- the command line --------------------------------------------------------------------------


class Options(NamedTuple):
    """The command line, checked."""

    services: tuple[str, ...]
    rids: tuple[str, ...]
    targets: tuple[str, ...]
    warning: Threshold | None
    critical: Threshold | None
    failed_level: Level
    state_dir: str
    config_dir: str
    verify: bool
    output: str
    timeout: float
    verbosity: int

    def selects(self, service: str, rid: str) -> bool:
        """Whether -s and -r leave this sync resource in."""
        return (not self.services or service in self.services) and (
            not self.rids or rid in self.rids
        )

    def selects_target(self, node: str) -> bool:
        """Whether --target leaves this node in, by its full or its short name."""
        return not self.targets or node in self.targets or short_name(node) in self.targets


class _Reply(Exception):
    """What is to be printed instead of a check result."""


class _BadArguments(Exception):
    """What is wrong with the command line."""


class _Parser(argparse.ArgumentParser):
    """argparse with the manners of a plugin: its own exit 2 would read as CRITICAL, on stderr."""

    def error(self, message: str) -> NoReturn:
        raise _BadArguments(f"bad arguments: {message}; see --help")


class _Help(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _Reply(parser.format_help())


class _Version(argparse.Action):
    def __call__(self, *_: object, **__: object) -> None:
        raise _Reply(f"check_zfs_sync {__version__}\n")


def parse_arguments(argv: Sequence[str]) -> Options:
    """Returns the options; raises _Reply for --help and --version, _BadArguments for mistakes."""
    values = _parser().parse_args(argv)
    return Options(
        services=tuple(values.service),
        rids=tuple(values.rid),
        targets=tuple(values.target),
        warning=values.warning,
        critical=values.critical,
        failed_level=Level.WARNING if values.failed == "warning" else Level.OK,
        state_dir=values.state_dir,
        config_dir=values.config_dir,
        verify=values.verify,
        output=values.output,
        timeout=values.timeout,
        verbosity=values.verbose,
    )


def _parser() -> _Parser:
    parser = _Parser(
        prog="check_zfs_sync",
        add_help=False,
        allow_abbrev=False,
        description="Checks how old the replicas of ZFS sync resources are. Needs no argument.",
        epilog="RANGE is a Nagios range; a bare number means minutes: 1500, 26h, 10:1d2h, @0:5m.",
    )
    add = parser.add_argument
    add("-s", "--service", action="append", default=[], help="only this service (repeatable)")
    add("-r", "--rid", action="append", default=[], help="only this sync resource, as sync#1")
    add("--target", action="append", default=[], metavar="NODE", help="only this target node")
    add("-w", "--warning", metavar="RANGE", type=parse_threshold, help="instead of sync_max_delay")
    add("-c", "--critical", metavar="RANGE", type=parse_threshold, help="none unless given")
    add("--failed", choices=("ok", "warning"), default="ok", help="state of a failed last attempt")
    add("--state-dir", metavar="DIR", default=STATE_DIR, help=f"default {STATE_DIR}")
    add("--config-dir", metavar="DIR", default=CONFIG_DIR, help=f"default {CONFIG_DIR}")
    add("--verify", action="store_true", help="ask the local zfs for the recorded snapshots")
    form = parser.add_mutually_exclusive_group()
    for name, text in OUTPUTS.items():
        option = f"--{name}"
        form.add_argument(
            option, dest="output", action="store_const", const=name, default="", help=text
        )
    add(
        "-t",
        "--timeout",
        metavar="SECONDS",
        type=_parse_timeout,
        default=TIMEOUT_SECONDS,
        help=f"then UNKNOWN; default {TIMEOUT_SECONDS:g}",
    )
    add("-v", "--verbose", action="count", default=0, help="a line per replica; -vv also the paths")
    add("-V", "--version", action=_Version, nargs=0, help="print the version, exit 3")
    add("-h", "--help", action=_Help, nargs=0, help="print this text, exit 3")
    return parser


def parse_threshold(text: str) -> Threshold:
    """Returns the threshold that a Nagios range names; bare numbers are minutes.

    Raises argparse.ArgumentTypeError.

    >>> parse_threshold("26h")
    Threshold(start=0, end=93600, inverted=False, text='26h')
    """
    try:
        # The library parses what it documents; only the durations are translated for it.
        seconds = nagiosplugin.Range(_range_of_seconds(text))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no range; write 1500 (minutes), 26h, 10:26h, ~:90m or @0:5m"
        ) from None
    limit = Threshold(seconds.start, seconds.end, seconds.invert, text)
    if limit.is_limit and limit.plain:
        return limit._replace(text=human_duration(int(limit.end)))
    return limit


def _range_of_seconds(text: str) -> str:
    bounds = text.removeprefix("@")
    start, colon, end = bounds.rpartition(":")
    if not bounds:
        raise ValueError("the library would take nothing, and a lone @, for a range")
    if start not in ("", "~"):
        start = str(duration_seconds(start))
    if end:
        end = str(duration_seconds(end))
    return f"{text[: len(text) - len(bounds)]}{start}{colon}{end}"


def _parse_timeout(text: str) -> float:
    # Zero would mean no timer at all, and the library rounds 0.5 down to it: hence an own one.
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= 86400:  # noqa: PLR2004 - a day; NaN is in no interval
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 86400 seconds")
    return seconds


# --- words -------------------------------------------------------------------------------------


@lru_cache  # of a thousand replicas most have the same limit
def human_duration(seconds: int) -> str:
    """Returns the two largest units of a duration; days only from the second on.

    >>> human_duration(45), human_duration(11400), human_duration(90000), human_duration(187200)
    ('45s', '3h10m', '25h', '2d4h')
    """
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days > 1:
        large, small = (days, "d"), (hour, "h")
    elif hours:
        large, small = (hours, "h"), (minute, "m")
    elif minutes:
        large, small = (minutes, "m"), (second, "s")
    else:
        return f"{second}s"
    return "".join(f"{number}{unit}" for number, unit in (large, small) if number)


def human_bytes(size: int) -> str:
    """Returns a size in binary units, one decimal from 1 KiB on."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:  # noqa: PLR2004 - the step of binary units
            break
        value, unit = value / 1024, larger
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def utc(epoch: int) -> str:
    """Returns an epoch as an ISO date, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))


def clean(text: str) -> str:
    """Returns the text on one line, without control characters and without `|`.

    A newline would forge a line, `|` would open performance data, a surrogate cannot be encoded.
    """
    if not text.isprintable():
        text = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(text.replace("|", " ").split())


def shorten(text: str, length: int) -> str:
    """Returns the text, cut to so many characters."""
    return text if len(text) <= length else text[: length - 3].rstrip() + "..."


def short_name(node: str) -> str:
    """Returns the first label of a host name; an address stays whole."""
    label = node.partition(".")[0]
    return node if not label or label.isdigit() else label


def status_line(level: Level, text: str) -> str:
    """Returns a complete answer of one line."""
    return f"{NAME} {level.name} - {clean(text)}\n"


# --- acquiring: service files and state files --------------------------------------------------


class Configuration(NamedTuple):
    """What the service files say on this node, and what could not be read of them."""

    resources: Mapping[tuple[str, str], SyncResource]
    unjudged: tuple[Unjudged, ...]
    words: str


def gather(options: Options, nodename: str) -> tuple[list[Subject], list[str]]:
    """Returns everything to be judged, and notes for -v; -vv adds the paths to them."""
    configuration = read_configuration(options, nodename)
    states = read_states(options)
    subjects: list[Subject] = [*configuration.unjudged]
    notes: list[str] = []
    if isinstance(states, Unjudged):
        # Without the directory nothing is known; "never synchronized" would be a guess.
        return [*subjects, states], notes
    for key in sorted({*configuration.resources, *states}):
        resource, state = configuration.resources.get(key), states.get(key)
        if isinstance(state, Unjudged):
            subjects.append(state)
            continue
        found, remarks = subjects_of(key, state, resource)
        subjects += [
            it for it in found if isinstance(it, Unjudged) or options.selects_target(it.target)
        ]
        notes += remarks
    subjects += unmatched(options, subjects)
    if options.verbosity > 1:
        notes.append(f"config: {configuration.words}")
        notes.append(f"state: {options.state_dir} ({len(states)} files read)")
        notes.append(f"node: {nodename}")
    return subjects, notes


def read_configuration(options: Options, nodename: str) -> Configuration:
    """Returns the service files' sync resources that -s and -r select.

    A folder that is not there is an answer: a node that only receives needs no service file.
    """
    folder = options.config_dir
    try:
        entries = set(os.listdir(folder))  # noqa: PTH208 - no pathlib: start-up
        # Of a service without a file the state file may know: no error of the configuration.
        names = [
            it for it in options.services if not entries.isdisjoint({it + s for s in SUFFIXES})
        ]
        if options.services and not names:
            return Configuration({}, (), f"{folder} (nothing selected)")
        services, problems = load_services(folder, nodename=nodename, names=names)
    except FileNotFoundError:
        return Configuration({}, (), f"{folder} (absent)")
    except (OSError, ValueError, ServiceError) as error:
        unreadable = Unjudged("", "", "unreadable", f"{folder}: {reason(error)}")
        return Configuration({}, (unreadable,), f"{folder} (unreadable)")
    resources = {
        (it.service, it.rid): it
        for service in services
        for it in service.resources
        if options.selects(it.service, it.rid)
    }
    words = f"{folder} ({len(services)} services, {len(resources)} sync resources)"
    return Configuration(resources, misconfigured(problems), words)


def misconfigured(problems: Iterable[Problem]) -> tuple[Unjudged, ...]:
    """Returns one subject per service file with problems, whatever section -r selects.

    One wrong section costs the whole file, so of the right ones nobody knows what must exist.
    """
    by_file: dict[str, list[Problem]] = {}
    for problem in problems:
        by_file.setdefault(problem.file, []).append(problem)
    return tuple(
        Unjudged("", "", "misconfigured", f"{found[0]}{_and_more(len(found) - 1)}")
        for found in by_file.values()
    )


def _and_more(count: int) -> str:
    return f" (and {count} more)" if count else ""


def read_states(options: Options) -> dict[tuple[str, str], State | Unjudged] | Unjudged:
    """Returns the state files that -s and -r select, by service and rid.

    An Unjudged in place of a state stands for a file that cannot be believed, in place of all for
    a folder that cannot be read.
    """
    try:
        names = sorted(os.listdir(options.state_dir))  # noqa: PTH208 - no pathlib: start-up
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        return Unjudged("", "", "unreadable", f"{options.state_dir}: {reason(error)}")
    states: dict[tuple[str, str], State | Unjudged] = {}
    for name in names:
        # A leading dot is a file that the agent is about to rename.
        if not name.endswith(STATE_SUFFIX) or name.startswith("."):
            continue
        key = names_in(name)
        if not options.selects(*key):
            continue
        path = os.path.join(options.state_dir, name)  # noqa: PTH118 - no pathlib: start-up
        try:
            state = read_state(path)
        except StateFileError as error:
            states[key] = Unjudged(*key, "unreadable", str(error))
            continue
        if state is None:
            continue  # removed since the listing
        if (state.service, state.rid) != key:
            # A copy made by hand would be judged twice, or for another resource.
            text = f"{path}: is the state of {state.service}/{state.rid}, by its content"
            states[key] = Unjudged(*key, "unreadable", text)
            continue
        states[key] = state
    return states


def names_in(name: str) -> tuple[str, str]:
    """Returns service and rid from a state file's name.

    >>> names_in("z3.opensvc.com_sync#1_zfs_state")
    ('z3.opensvc.com', 'sync#1')
    """
    service, separator, rest = name.removesuffix(STATE_SUFFIX).rpartition("_sync#")
    return (service, f"sync#{rest}") if separator else (rest, "")


def subjects_of(
    key: tuple[str, str], state: State | None, resource: SyncResource | None
) -> tuple[list[Subject], list[str]]:
    """Returns what is to be judged of one sync resource, and notes.

    On the source every configured target, on a target its own entry: another target's may be old
    there, since the source pushes the file only to whom it reaches.
    """
    service, rid = key
    configured = resource is not None and resource.src is not None
    notes: list[str] = []
    nodes: Iterable[str] = ()
    if state is not None and state.here != state.source:
        if state.here not in state.targets:
            text = f"the state file of {service}/{rid} has no entry for its own node {state.here}"
            return [Unjudged(service, rid, "unreadable", text)], notes
        nodes = (state.here,)
        if configured:
            notes.append(f"{service}/{rid}: standby, {state.source} is the source")
    elif resource is not None and configured:
        nodes = dict.fromkeys(target.node for target in resource.targets)
        notes += [
            f"{service}/{rid} to {node} is in the state file, but not configured: not judged"
            for node in sorted(state.targets if state else ())
            if node not in nodes
        ]
    elif state is not None:
        nodes = sorted(state.targets)
        if not nodes:
            text = f"the state file of {service}/{rid} names no target"
            return [Unjudged(service, rid, "unreadable", text)], notes
    if resource is not None:
        limit = resource.sync_max_delay
    else:
        limit = DEFAULT_LIMIT_SECONDS if state is None else state.sync_max_delay
    entries = {} if state is None else state.targets
    found: list[Subject] = [
        Replica(service, rid, node, limit, state, entries.get(node), resource) for node in nodes
    ]
    return found, notes


def unmatched(options: Options, subjects: Sequence[Subject]) -> list[Unjudged]:
    """Returns a subject for filters that match nothing: silence would read as a healthy replica."""
    asked = [
        *(("-s", name, {it.service for it in subjects}) for name in options.services),
        *(("-r", name, {it.rid for it in subjects}) for name in options.rids),
        *(
            (
                "--target",
                name,
                {
                    alias
                    for it in subjects
                    if isinstance(it, Replica)
                    for alias in (it.target, short_name(it.target))
                },
            )
            for name in options.targets
        ),
    ]
    # A file that cannot be read may well be the one that was asked for: one UNKNOWN is enough.
    if any(isinstance(it, Unjudged) for it in subjects):
        return []
    missed = [f"{option} {name}" for option, name, known in asked if name not in known]
    if not missed:
        return []
    return [Unjudged("", "", "without a match", f"nothing matches {' '.join(missed)}")]


def reason(error: Exception) -> str:
    """Returns the text of an error without the number and the path that str() would add."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


# --- judging -----------------------------------------------------------------------------------


class Reason(NamedTuple):
    """One thing to be said of a replica: its level, its word in the counts and its two phrases."""

    level: Level
    kind: str
    head: str = ""
    tail: str = ""


def signed_lag(replica: Replica, now: int) -> int | None:
    """Returns the lag in seconds; negative: the snapshot is in the future. None: no snapshot.

    Creation and `equal_as_of` are read from the source's clock. On a target, `now` is not.
    """
    entry, state = replica.entry, replica.state
    if entry is None or state is None or entry.snapshot is None or entry.status == "never":
        return None
    now = sources_clock(state, entry, now)
    return now - max(entry.snapshot.creation, entry.equal_as_of or 0)


def sources_clock(state: State, entry: TargetState, now: int) -> int:
    """Returns what the source's clock says, by what the last run saw of both."""
    # A target may be the source itself (`target = local`): then there is but one clock.
    return now - (entry.clock_offset or 0) if state.here != state.source else now


def run_ahead(replica: Replica, now: int) -> int:
    """Returns how far in the future the last run ended: if it did, a clock was set back since.

    Then every lag is longer than it seems.
    """
    entry, state = replica.entry, replica.state
    if entry is None or state is None or entry.last_attempt is None:
        return 0
    return max(0, entry.last_attempt.finished - sources_clock(state, entry, now))


def known_lag(signed: int | None) -> int | None:
    """Returns the lag to be judged: a future within the slack is now, beyond it says nothing."""
    if signed is None or signed < -CLOCK_SLACK_SECONDS:
        return None
    return max(signed, 0)


def judge(replica: Replica, now: int, options: Options, evidence: Evidence | None) -> Verdict:
    """Returns the verdict on one replica; it decides by design, not by the order of the reasons."""
    signed = signed_lag(replica, now)
    lag = known_lag(signed)
    limit = warning_of(replica, options)
    reasons = [
        *_recorded(replica.entry),
        *_evident(evidence),
        *_aged(lag, limit, options.critical),
        *_clocked(replica.entry, signed, run_ahead(replica, now)),
    ]
    failure = failure_of(replica.entry)
    if failure is not None:
        reasons.append(Reason(options.failed_level, "failed"))
    worst = max(reasons, key=lambda it: it.level, default=Reason(Level.OK, "ok"))
    heads = [it.head for it in reasons if it.head]
    if lag is not None:
        critical = options.critical
        shown = critical if critical is not None and critical.alerts(lag) else limit
        heads.append(f"{human_duration(lag)} (limit {shown.text})")
    words = ", ".join(heads)
    if failure is not None:
        words += f" (last attempt failed: {failure})"
    elif worst.kind == "late":
        words += _idle(replica.entry, now)
    tails = [it.tail for it in reasons if it.tail]
    if tails:
        words += f": {'; '.join(tails)}"
    return Verdict(worst.level, worst.kind, replica, lag, clean(words))


def warning_of(replica: Replica, options: Options) -> Threshold:
    """Returns the warning threshold: -w, else the resource's own limit."""
    if options.warning is not None:
        return options.warning
    seconds = replica.limit_seconds
    return Threshold(0, seconds, inverted=False, text=human_duration(seconds))


def _recorded(entry: TargetState | None) -> Iterator[Reason]:
    if entry is not None and entry.status in ("broken", "refused"):
        error = entry.last_attempt.error if entry.last_attempt else None
        yield Reason(Level.CRITICAL, entry.status, entry.status, error or "no reason recorded")
    elif entry is None or entry.snapshot is None or entry.status == "never":
        yield Reason(Level.WARNING, "never synchronized", "never synchronized")


def _evident(evidence: Evidence | None) -> Iterator[Reason]:
    if evidence is not None and evidence.level is not Level.OK:
        kind = "missing" if evidence.level is Level.CRITICAL else "unverified"
        yield Reason(evidence.level, kind, kind, evidence.text)


def _aged(lag: int | None, limit: Threshold, critical: Threshold | None) -> Iterator[Reason]:
    if lag is None:
        return
    for level, threshold in ((Level.CRITICAL, critical), (Level.WARNING, limit)):
        if threshold is not None and threshold.alerts(lag):
            yield Reason(level, "late" if threshold.is_limit else "out of range")


def _clocked(entry: TargetState | None, signed: int | None, ahead: int) -> Iterator[Reason]:
    offset = entry.clock_offset if entry is not None else None
    if offset is not None and abs(offset) > CLOCK_SLACK_SECONDS:
        side = "ahead of" if offset > 0 else "behind"
        text = f"clock: the target's is {human_duration(abs(offset))} {side} the source's"
        yield Reason(Level.WARNING, "clock skew", text)
    if signed is not None and signed < -CLOCK_SLACK_SECONDS:
        text = f"clock: the last snapshot is {human_duration(-signed)} in the future"
        yield Reason(Level.WARNING, "clock skew", text)
    elif ahead > CLOCK_SLACK_SECONDS:
        text = f"clock: the last run ended {human_duration(ahead)} in the future"
        yield Reason(Level.WARNING, "clock skew", text)


def failure_of(entry: TargetState | None) -> str | None:
    """Returns why the last attempt failed, None if it did not; broken and refused say it anyway."""
    if entry is None or entry.status in ("broken", "refused"):
        return None
    attempt = entry.last_attempt
    if entry.status != "failed" and (attempt is None or attempt.result == "ok"):
        return None
    return (attempt and attempt.error) or "no reason recorded"


def _idle(entry: TargetState | None, now: int) -> str:
    """Returns when the last run was: late without a failure mostly means that cron is dead."""
    if entry is None or entry.last_attempt is None:
        return ""
    idle = now - entry.last_attempt.finished
    return f" (last run {human_duration(idle)} ago)" if idle > CLOCK_SLACK_SECONDS else ""


# --- --verify ----------------------------------------------------------------------------------


class _NoAnswer(Exception):
    """zfs could not be run, or did not end in time, or said something else than an answer."""


class LocalZfs:
    """This node's zfs, asked for the snapshots of dataset trees, within a deadline.

    It only lists. Once zfs has hung it is not asked again: a suspended pool answers nobody, and the
    other replicas' verdicts must still get out in time.
    """

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._hung = False
        self._sets: dict[tuple[str, bool], dict[str, tuple[int, set[str]]] | None] = {}

    def verify(self, replica: Replica) -> Evidence | None:
        """Returns whether this node holds the snapshots that the state file records.

        On the target that is the replica, on the source the src: without it the replica cannot be
        continued. None: there is nothing recorded.
        """
        state, entry = replica.state, replica.entry
        if state is None or entry is None or entry.snapshot is None:
            return None
        tree = entry.dst if replica.target == state.here else state.src
        resource = replica.resource
        words = ("zfs",) if resource is None else resource.zfs[resource.nodename]
        try:
            found = self._snapshot_sets(words, tree, recursive=entry.snapshot.datasets > 1)
        except _NoAnswer as error:
            return Evidence(Level.UNKNOWN, str(error))
        if found is None:
            return Evidence(Level.CRITICAL, f"the dataset {tree} does not exist here")
        is_own = own_names(None if resource is None else resource.snap_prefix)
        own = {name: it for name, it in found.items() if is_own.fullmatch(name)}
        if any(entry.snapshot.digest in it[1] for it in own.values()):
            return Evidence(Level.OK, "")
        if any(it[0] > entry.snapshot.creation for it in own.values()):
            # Proven to be newer than the state says: then the recorded lag is an upper bound.
            return Evidence(Level.OK, "the state is behind: a newer snapshot is there")
        return Evidence(Level.CRITICAL, f"{tree} holds no own snapshot with the recorded guids")

    def _snapshot_sets(
        self, words: Sequence[str], tree: str, *, recursive: bool
    ) -> dict[str, tuple[int, set[str]]] | None:
        """Returns (creation, digests) by name of all that may be own; None: the tree is absent."""
        key = (tree, recursive)
        if key in self._sets:
            return self._sets[key]
        depth = ("-r",) if recursive else ()
        listed = self._run(words, "list", "-H", *depth, *_NAMES_OF_DATASETS, tree)
        snapshots = self._run(words, "list", "-H", *_NAMES_OF_SNAPSHOTS, tree)
        found: dict[str, tuple[int, set[str]]] | None = None
        if listed is not None and snapshots is not None:
            pattern = own_names(None)
            names = [line.partition("@")[2] for line in snapshots]
            own = [name for name in names if pattern.fullmatch(name)]
            own = sorted({*own, *map(_sent_beside, own)})
            asked = [f"{dataset}@{name}" for name in own for dataset in listed]
            found = snapshot_sets(tree, self._properties(words, asked))
        self._sets[key] = found
        return found

    def _properties(self, words: Sequence[str], snapshots: Sequence[str]) -> list[list[str]]:
        """Returns (snapshot, property, value) of those snapshots that exist."""
        rows: list[list[str]] = []
        while snapshots:
            count, length = 0, 0
            while count < len(snapshots) and length < ARGUMENTS_LENGTH:
                length += len(snapshots[count]) + 1
                count += 1
            wanted = ("get", "-Hp", "-o", "name,property,value", "guid,creation,zfs_sync:rid")
            # A child that was born later lacks the snapshot: zfs prints the rest and exits 1.
            lines = self._run(words, *wanted, *snapshots[:count], partial=True)
            rows += [line.split("\t") for line in lines or ()]
            snapshots = snapshots[count:]
        return [row for row in rows if len(row) == 3]  # noqa: PLR2004 - the three columns

    def _run(
        self, words: Sequence[str], *arguments: str, partial: bool = False
    ) -> list[str] | None:
        """Returns the lines of one zfs command; None: what it was asked for does not exist."""
        import subprocess  # noqa: PLC0415 - 9 ms that only --verify has to pay

        said = f"{' '.join(words)} {arguments[0]}"
        path = os.pathsep.join((os.environ.get("PATH", os.defpath), _SBIN))
        if self._hung:
            raise _NoAnswer(f"{said}: no answer in time")
        process = None
        try:
            with _signals_held():
                # A session of its own, so that sudo's or a wrapper's children end with it.
                process = subprocess.Popen(
                    [*words, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="surrogateescape",
                    env={**os.environ, "LC_ALL": "C", "PATH": path},
                    start_new_session=True,
                )
            output, errors = process.communicate(timeout=self._deadline - time.monotonic())
        except subprocess.TimeoutExpired as error:
            self._hung = True
            raise _NoAnswer(f"{said}: no answer in time") from error
        except (OSError, ValueError) as error:
            raise _NoAnswer(f"{said}: {reason(error)}") from error
        finally:
            # Not waited for: what hangs in the kernel does not even end when it is killed.
            if process is not None and process.returncode is None:
                with suppress(OSError):  # gone by now, or started by sudo and not ours to kill
                    os.killpg(process.pid, signal.SIGKILL)
        if process.returncode == 0 or (partial and output):
            return output.splitlines()
        if "does not exist" in errors or "no such pool" in errors:
            return None
        last = errors.strip().splitlines() or [f"exit {process.returncode}"]
        raise _NoAnswer(f"{said}: {last[-1]}")


@contextmanager
def _signals_held() -> Iterator[None]:
    """Holds back what would end the check, so that no process is started without being known."""
    arrived: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    before = {number: signal.signal(number, hold) for number in (signal.SIGALRM, *_ENDING)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for each in arrived:
            signal.raise_signal(each)


def snapshot_sets(tree: str, rows: Iterable[Sequence[str]]) -> dict[str, tuple[int, set[str]]]:
    """Returns the root's creation and the tree's digests of each snapshot name.

    A dataset whose snapshot bears another mark than the root's is not part of the tree: someone
    else's child may well have a snapshot of the same name. One that has no snapshot of the name may
    hold the same as its @sent, if the file says so (send_changed): that gives a second digest.
    """
    trees: dict[str, dict[str, dict[str, str]]] = {}
    for snapshot, key, value in rows:
        dataset, _, name = snapshot.partition("@")
        trees.setdefault(name, {}).setdefault(dataset, {})[key] = value
    found: dict[str, tuple[int, set[str]]] = {}
    for name, datasets in trees.items():
        root = datasets.get(tree, {})
        if not root.get("creation", "").isdecimal():
            continue
        rid = root.get("zfs_sync:rid")
        pairs = _guids(tree, datasets, rid)
        beside = _guids(tree, trees.get(_sent_beside(name), {}), rid)
        found[name] = (
            int(root["creation"]),
            {digest(it.items()) for it in (pairs, beside | pairs)},
        )
    return found


def _sent_beside(name: str) -> str:
    """Returns the name of the @sent that goes with an own name: it has the same prefix."""
    match = own_names(None).fullmatch(name)
    return f"{match[1]}sent" if match else name


def _guids(tree: str, datasets: Mapping[str, Mapping[str, str]], rid: str | None) -> dict[str, str]:
    return {
        dataset[len(tree) + 1 :]: values["guid"]
        for dataset, values in datasets.items()
        if "guid" in values and values.get("zfs_sync:rid") == rid
    }


def own_names(prefix: str | None) -> re.Pattern[str]:
    """Returns the pattern of the agent's snapshot names: with a prefix, or (None) with any."""
    start = r"(?:.*[^A-Za-z0-9])?" if prefix is None else re.escape(prefix)
    return re.compile(f"({start})" + r"(?:sent|tosend)(?:\..+)?")


# --- phrasing ----------------------------------------------------------------------------------


def ranked(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Returns the worst first, then the oldest."""
    return sorted(
        verdicts, key=lambda it: (-it.level, -(it.lag or 0), it.kind, it.subject.name, it.words)
    )


def first_line(verdicts: Sequence[Verdict]) -> str:
    """Returns counts, then the worst by name, cut to about what a list view shows."""
    names = names_of_nodes(verdicts)
    ordered = ranked(verdicts)
    total = len(ordered)
    bad = [it for it in ordered if it.level is not Level.OK]
    if total == 1 and isinstance(ordered[0].subject, Unjudged):
        return _item(ordered[0], names, FIRST_LINE_LENGTH)
    if bad:
        counts = [f"{number} {kind}" for kind, number in Counter(it.kind for it in bad).items()]
        counts[0] = counts[0].replace(" ", f" of {total} ", 1)
        head, shown = f"{', '.join(counts)}: ", bad
    else:
        oldest = ordered[0]
        head = "1 replica: " if total == 1 else f"{total} replicas, oldest "
        head += _item(oldest, names, FIRST_LINE_LENGTH)
        shown = [it for it in ordered if it.kind == "failed" and it is not oldest]
        if shown:
            head += f"; {len(shown)} more failed: "
    length = FIRST_LINE_LENGTH if len(shown) == 1 else ITEM_LENGTH
    items = [_item(it, names, length) for it in shown]
    return head + _capped(items, FIRST_LINE_LENGTH - len(head))


def _capped(items: Sequence[str], length: int) -> str:
    """Returns the items joined; at least one, and the number of those left out."""
    if not items:
        return ""
    text = items[0]
    for count, item in enumerate(items[1:], start=1):
        if len(text) + len(item) > length:
            return f"{text}, ... and {len(items) - count} more"
        text += f", {item}"
    return text


def _item(verdict: Verdict, names: Mapping[str, str], length: int) -> str:
    subject = verdict.subject
    if isinstance(subject, Unjudged):
        return shorten(verdict.words, length)
    target = names.get(subject.target, subject.target)
    return shorten(f"{subject.service}/{subject.rid} to {target} {verdict.words}", length)


def names_of_nodes(verdicts: Iterable[Verdict]) -> dict[str, str]:
    """Returns the short name of each target where no other target has the same one."""
    nodes = {it.subject.target for it in verdicts if isinstance(it.subject, Replica)}
    count = Counter(short_name(node) for node in nodes)
    return {node: short_name(node) for node in nodes if count[short_name(node)] == 1}


def detail_line(verdict: Verdict, verbosity: int) -> str:
    """Returns the -v line of one subject, with nothing cut off."""
    subject = verdict.subject
    if isinstance(subject, Unjudged):
        return f"{verdict.level.name}: {verdict.words}"
    parts = [f"{subject.service}/{subject.rid} to {subject.target} {verdict.words}"]
    state, entry = subject.state, subject.entry
    if state is not None and entry is not None:
        parts.append(f"from {state.source}, {state.src} to {entry.dst}")
        if entry.snapshot is not None:
            moment = utc(entry.snapshot.creation)
            parts.append(f"snapshot of {moment}, datasets: {entry.snapshot.datasets}")
        if entry.last_success is not None:
            success = entry.last_success
            took = human_duration(max(success.finished - success.started, 0))
            parts.append(f"last success: {success.mode}, {human_bytes(success.bytes)} in {took}")
        parts += [
            f"base @{base.snapshot} is kept for it on the source since {utc(base.creation)},"
            f" {human_bytes(base.bytes)}"
            for base in entry.kept_bases
        ]
        if entry.snapshot is not None and verbosity > 1:
            parts.append(f"guid {entry.snapshot.guid}")
        if entry.flags and verbosity > 1:
            parts.append(f"flags {' '.join(entry.flags)}")
    if verbosity > 1:
        origin = "the state file" if subject.resource is None else subject.resource.file
        parts.append(f"limit {human_duration(subject.limit_seconds)} from {origin}")
    return f"{verdict.level.name}: {'; '.join(parts)}"


# --- nagiosplugin's roles ----------------------------------------------------------------------


class Subjects(nagiosplugin.Resource):  # type: ignore[misc]  # the library has no types
    """Acquires: one subject with its lag and, if asked, evidence."""

    def __init__(self, subject: Subject, now: int, zfs: LocalZfs | None) -> None:
        self.subject = subject
        self.evidence: Evidence | None = None
        self._now = now
        self._zfs = zfs

    def probe(self) -> object:
        """Returns the lag, None where it is unknown."""
        subject = self.subject
        if isinstance(subject, Unjudged):
            return nagiosplugin.Metric(subject.name, None, context="replica")
        if self._zfs is not None:
            self.evidence = self._zfs.verify(subject)
        # The library refuses a label with ' or =, and one refusal would end the whole check.
        label = clean(subject.name).replace("'", "_").replace("=", "_")
        lag = known_lag(signed_lag(subject, self._now))
        return nagiosplugin.Metric(label, lag, "s", context="replica")


class Judgement(nagiosplugin.Context):  # type: ignore[misc]  # the library has no types
    """Judges: a lag and what is known beside it become a verdict and performance data."""

    def __init__(self, options: Options, now: int) -> None:
        super().__init__("replica")
        self._options = options
        self._now = now

    def evaluate(self, metric: object, resource: Subjects) -> object:
        """Returns the library's result, with the verdict as its hint."""
        subject = resource.subject
        if isinstance(subject, Unjudged):
            verdict = Verdict(Level.UNKNOWN, subject.kind, subject, None, clean(subject.text))
        else:
            verdict = judge(subject, self._now, self._options, resource.evidence)
        return nagiosplugin.Result(_SERVICE_STATES[verdict.level], verdict, metric)

    def performance(self, metric: nagiosplugin.Metric, resource: Subjects) -> str:
        """Returns what the last success moved, and the lag with its thresholds where it is known.

        Figures that nobody judges are no metrics: the library would judge each of them.
        """
        subject, critical = resource.subject, self._options.critical
        if isinstance(subject, Unjudged):
            return ""
        figures = []
        success = subject.entry.last_success if subject.entry is not None else None
        if success is not None:
            figures.append(
                nagiosplugin.Performance(f"{metric.name}_bytes", success.bytes, "B", min=0)
            )
            took = success.finished - success.started
            if took >= 0:  # a clock that was set back in between measures nothing
                figures.append(
                    nagiosplugin.Performance(f"{metric.name}_duration", took, "s", min=0)
                )
        if metric.value is not None:
            figures.append(
                nagiosplugin.Performance(
                    f"{metric.name}_lag",
                    metric.value,
                    metric.uom,
                    warning_of(subject, self._options).plain,
                    critical.plain if critical is not None else "",
                    0,
                )
            )
        return " ".join(str(figure) for figure in figures)


class Severity(nagiosplugin.Results):  # type: ignore[misc]  # the library has no types
    """Ranks UNKNOWN below WARNING: one torn file must not hide a replica that is late."""

    @property
    def most_significant_state(self) -> object:
        """The worst state; ValueError if there is none, as the library expects."""
        seen = {level for level, state in _SERVICE_STATES.items() if state in self.by_state}
        return _SERVICE_STATES[max(seen)]

    def verdicts(self) -> list[Verdict]:
        """Every verdict."""
        return [it.hint for it in self.results]


class Phrases(nagiosplugin.Summary):  # type: ignore[misc]  # the library has no types
    """Phrases: every problem by name, where the library's own would show the first only."""

    def __init__(self, options: Options, notes: Sequence[str]) -> None:
        self._options = options
        self._notes = notes

    def ok(self, results: Severity) -> str:
        """Returns the number of replicas and the oldest."""
        return first_line(results.verdicts())

    problem = ok

    def verbose(self, results: Severity) -> list[str]:
        """Returns a line for every subject, the worst first, then the notes."""
        verbosity = self._options.verbosity
        lines = [detail_line(it, verbosity) for it in ranked(results.verdicts())]
        return [*lines, *self._notes]

    def empty(self) -> str:
        """Returns what was looked for; to find nothing is no good news."""
        options = self._options
        return f"no state file in {options.state_dir}, nothing configured in {options.config_dir}"


# --- running -----------------------------------------------------------------------------------


class _Ended(BaseException):
    """The check was told to end: by its timer or by a signal.

    No Exception, so that nothing on the way takes it for an error of its own and goes on.
    """


def check(options: Options, now: int, nodename: str) -> tuple[str, int]:
    """Returns the text to print, with its final newline, and the exit status."""
    subjects, notes = gather(options, nodename)
    # What is left of the time is for the verdict of all the others.
    zfs = LocalZfs(options.timeout * 0.7) if options.verify else None
    run_check = nagiosplugin.Check(
        *(Subjects(subject, now, zfs) for subject in subjects),
        Judgement(options, now),
        Severity(),
        Phrases(options, notes),
    )
    run_check()
    if options.output:
        items = [item_of(it, options) for it in ranked(run_check.results.verdicts())]
        return format_answer(options.output, run_check.exitcode, run_check.summary_str, items)
    # Printed here and not by the library's Runtime: it swallows an unwritable stdout, takes 0.5
    # seconds for no timer and lets a newline in a text forge a line.
    text = f"{NAME} {str(run_check.state).upper()} - {clean(run_check.summary_str)}"
    if run_check.perfdata:
        text += f" | {' '.join(run_check.perfdata)}"
    lines = [text]
    if options.verbosity:
        lines += [clean(line) for line in run_check.summary.verbose(run_check.results)]
    return "\n".join(lines) + "\n", run_check.exitcode


def item_of(verdict: Verdict, options: Options) -> "Item":
    """Returns what the other formats tell of one subject."""
    from check_zfs_sync.formats import Item  # noqa: PLC0415 - Nagios does not need it

    subject, state = verdict.subject, _SERVICE_STATES[verdict.level].code
    if isinstance(subject, Unjudged):
        details: dict[str, object] = {"kind": subject.kind}
        return Item(state, subject.service, subject.rid, "", verdict.words, {}, details)
    warning = warning_of(subject, options).plain
    critical = options.critical.plain if options.critical is not None else ""
    known, entry = subject.state, subject.entry
    metrics = {}
    if verdict.lag is not None:
        metrics["lag"] = (verdict.lag, warning, critical)
    success = entry.last_success if entry is not None else None
    if success is not None:
        metrics["bytes"] = (success.bytes, "", "")
        if success.finished >= success.started:
            metrics["duration"] = (success.finished - success.started, "", "")
    parts = (entry.snapshot, success, entry.last_attempt) if entry is not None else (None,) * 3
    snapshot, last_success, last_attempt = (part and part._asdict() for part in parts)
    details = {
        "kind": verdict.kind,
        "lag": verdict.lag,
        "limit": int(warning) if warning else None,
        "source": known.source if known is not None else None,
        "src": known.src if known is not None else None,
        "dst": entry.dst if entry is not None else None,
        "snapshot": snapshot,
        "last_success": last_success,
        "last_attempt": last_attempt,
    }
    service, rid, target = map(clean, (subject.service, subject.rid, subject.target))
    return Item(state, service, rid, target, verdict.words, metrics, details)


def format_answer(
    output: str, state: int, text: str, items: Sequence["Item"] = ()
) -> tuple[str, int]:
    """Returns the text to print in one of the other formats, and the exit status.

    For checkmk it is 0, since the states are in the lines: of a local check that it runs at
    intervals, in local/300, the agent throws the output away if it exits with anything else.
    """
    from check_zfs_sync import formats  # noqa: PLC0415 - Nagios does not need it

    answer = formats.Answer(state, clean(text), items)
    if output == "checkmk":
        return formats.format_checkmk(answer), 0
    return formats.format_json(answer), state


def unanswered(argv: Sequence[str], text: str, verbosity: int = 0) -> tuple[str, int]:
    """Returns what is printed where nothing could be judged, in the format that was asked for."""
    # The command line may be what is wrong, so the options are not there to be asked.
    for output in OUTPUTS:
        if f"--{output}" in argv:
            return format_answer(output, EXIT_UNKNOWN, text)
    return status_line(Level.UNKNOWN, text) + _traceback(verbosity), EXIT_UNKNOWN


def run(
    argv: Sequence[str],
    *,
    now: float,
    nodename: str,
    stdout: TextIO | None,
    when_stuck: Callable[[Options], object] = lambda _: None,
) -> int:
    """Checks, prints to stdout and returns the exit status: 0 to 3, whatever happens.

    `now` is the epoch in seconds, `nodename` the node whose values hold in the service files.
    `when_stuck` is called by another thread if the time is up and nothing can end this one.
    """
    text, status = "", EXIT_UNKNOWN
    verbosity = 0
    try:
        options = parse_arguments(argv)
        verbosity = options.verbosity
        with _deadline(options.timeout), _watched(options, when_stuck):
            text, status = check(options, int(now), nodename)
    except _Reply as reply:
        text = str(reply)
    except _BadArguments as mistake:
        text, status = unanswered(argv, str(mistake))
    except (_Ended, KeyboardInterrupt) as ended:
        text, status = unanswered(argv, str(ended) or "interrupted")
    except BaseException as error:  # whatever it is, Nagios must get a line and a status of its own
        text, status = unanswered(argv, f"{type(error).__name__}: {error}", verbosity)
    try:
        if stdout is None:
            return EXIT_UNKNOWN
        stdout.write(text)
        stdout.flush()
    except (OSError, ValueError):
        # Nobody has read the line, so the status must not claim to be one.
        return EXIT_UNKNOWN
    return status


def _traceback(verbosity: int) -> str:
    if verbosity < 3:  # noqa: PLR2004 - -vvv is for debugging
        return ""
    import traceback  # noqa: PLC0415 - for a defect of the check itself

    return "".join(f"{clean(line)}\n" for line in traceback.format_exc().splitlines())


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    def end(_signal: int, _frame: FrameType | None) -> None:
        raise _Ended(f"timed out after {seconds:g}s")

    before = signal.signal(signal.SIGALRM, end)
    # Again every second: an exception that is raised inside a destructor is lost.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _watched(options: Options, when_stuck: Callable[[Options], object]) -> Iterator[None]:
    # A read from a file system that is gone returns for no signal: no handler runs, the timer's
    # neither.
    seconds = options.timeout + GRACE_SECONDS
    watch = threading.Timer(seconds, when_stuck, (options,))
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def _end_when_stuck(options: Options) -> None:
    folders = f"{options.state_dir} or {options.config_dir}"
    said = f"a file system does not answer, perhaps that of {folders}"
    text, status = unanswered(sys.argv[1:], said)
    with suppress(OSError):
        os.write(1, text.encode(errors="backslashreplace"))
    os._exit(status)


def _end_by_signal(number: int, _frame: FrameType | None) -> None:
    raise _Ended(f"ended by {signal.Signals(number).name}")


def main() -> NoReturn:
    """The console entry: runs on this process's arguments, clock and node name, then exits."""
    status = EXIT_UNKNOWN
    gc.disable()  # of a thousand state files nothing is garbage before the process ends
    try:
        for number in _ENDING:
            signal.signal(number, _end_by_signal)
        # Icinga merges stderr into the output, Nagios and NRPE lose it: nothing may be there.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Under LC_ALL=C a name outside ASCII would otherwise cost the whole answer.
            sys.stdout.reconfigure(errors="backslashreplace")
        # uname's name is what gethostname returns, without the 3 ms of importing socket.
        nodename = os.uname().nodename
        status = run(
            sys.argv[1:],
            now=time.time(),
            nodename=nodename,
            stdout=sys.stdout,
            when_stuck=_end_when_stuck,
        )
    finally:
        # Not sys.exit: the interpreter's own last flush turns a full stdout into status 120.
        os._exit(status)
