"""Decides what Prometheus is told of a node's replicas: the text of its metrics file.

It reads no clock and no file, and exports no age: one would stand still, and look young, with the
agent that writes it. What must exist and what is judged on a target is as check_zfs_sync has it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from check_zfs_sync import __version__
from check_zfs_sync.service import SyncResource
from check_zfs_sync.statefile import STATUSES, State, TargetState


class Replica(NamedTuple):
    """One target of one sync resource as this node knows it; `entry` None: nothing is known.

    `role` is this node's: source, or target where the file was copied to. `limit` is in seconds.
    """

    service: str
    rid: str
    target: str
    role: str
    limit: int
    entry: TargetState | None


class _Gauge(NamedTuple):
    """One value of each replica; `value` returns None where there is none to tell."""

    name: str
    help: str
    value: Callable[[Replica], int | None]


def _held_until(one: Replica) -> int:
    if one.entry is None or one.entry.snapshot is None:
        return 0
    return max(one.entry.snapshot.creation, one.entry.equal_as_of or 0)


def _attempted(one: Replica) -> int | None:
    return one.entry.last_attempt.finished if one.entry and one.entry.last_attempt else None


def _succeeded(one: Replica) -> int | None:
    return one.entry.last_success.finished if one.entry and one.entry.last_success else None


def _duration(one: Replica) -> int | None:
    success = one.entry.last_success if one.entry else None
    if success is None or success.finished < success.started:
        return None  # a clock that was set back in between measures nothing
    return success.finished - success.started


def _bytes(one: Replica) -> int | None:
    return one.entry.last_success.bytes if one.entry and one.entry.last_success else None


def _kept(one: Replica) -> int:
    return sum(base.bytes for base in one.entry.kept_bases) if one.entry else 0


_GAUGES = (
    _Gauge(
        "zfs_sync_replica_timestamp_seconds",
        "Time up to which the target is known to hold the source's data; 0: never synchronized.",
        _held_until,
    ),
    _Gauge(
        "zfs_sync_max_delay_seconds",
        "How far the replica may lag behind: sync_max_delay.",
        lambda one: one.limit,
    ),
    _Gauge("zfs_sync_last_attempt_timestamp_seconds", "End of the last run.", _attempted),
    _Gauge(
        "zfs_sync_last_success_timestamp_seconds",
        "End of the last run after which the target was proven to be in sync.",
        _succeeded,
    ),
    _Gauge("zfs_sync_last_success_duration_seconds", "How long that run took.", _duration),
    _Gauge("zfs_sync_last_success_bytes", "What that run sent.", _bytes),
    _Gauge(
        "zfs_sync_clock_offset_seconds",
        "Clock of the target minus that of the source, in the last run.",
        lambda one: one.entry.clock_offset if one.entry else None,
    ),
    _Gauge(
        "zfs_sync_kept_base_bytes",
        "What the source keeps for the target beyond the last snapshot of the others.",
        _kept,
    ),
)
_STATUS = "zfs_sync_status"


def replicas_of(states: Iterable[State], resources: Iterable[SyncResource]) -> list[Replica]:
    """Return what is told of: all that is configured here as a source, and all that has a state.

    On a target its own entry alone: of others the source pushes nothing there.
    """
    by_key = {(state.service, state.rid): state for state in states}
    configured = {(one.service, one.rid): one for one in resources}
    found = []
    for service, rid in sorted({*by_key, *configured}):
        state, resource = by_key.get((service, rid)), configured.get((service, rid))
        entries = {} if state is None else state.targets
        copied = state is not None and state.here != state.source
        nodes = list(entries)
        if state is not None and copied:
            nodes = [state.here]
        elif resource is not None and resource.src is not None:
            nodes = [target.node for target in resource.targets]
        limit = resource.sync_max_delay if resource else state.sync_max_delay if state else 0
        role = "target" if copied else "source"
        found += [Replica(service, rid, node, role, limit, entries.get(node)) for node in nodes]
    return found


def format_metrics(replicas: Sequence[Replica], *, unusable: int) -> str:
    """Return the text: each family once, with its help, whatever it has samples of.

    `unusable` is the number of service and state files of the node that cannot be used.
    """
    version = _labels(version=__version__)
    lines = [
        *_family("zfs_sync_agent_info", "The version that wrote this.", [(version, 1)]),
        *_family(
            "zfs_sync_unusable_files",
            "Service files and state files of this node that cannot be used.",
            [("", unusable)],
        ),
    ]
    for gauge in _GAUGES:
        samples = [(_labels_of(one), gauge.value(one)) for one in replicas]
        lines += _family(gauge.name, gauge.help, samples)
    # Not that of a run under way or killed: it would look like a failure as long as it lasts.
    states = [
        (_labels_of(one, status=word), int(word == (one.entry.status if one.entry else "never")))
        for one in replicas
        for word in STATUSES
    ]
    lines += _family(_STATUS, "1 for what came of the last run that came to its end.", states)
    return "".join(f"{line}\n" for line in lines)


def _family(name: str, text: str, samples: Iterable[tuple[str, int | None]]) -> list[str]:
    told = [f"{name}{labels} {value}" for labels, value in samples if value is not None]
    return [f"# HELP {name} {text}", f"# TYPE {name} gauge", *told]


def _labels_of(one: Replica, **more: str) -> str:
    return _labels(service=one.service, resource=one.rid, target=one.target, role=one.role, **more)


def _labels(**labels: str) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    """Return a label's value as the text format has it; what UTF-8 cannot say is a question mark.

    Nothing that a state file says can end a value, a line or the file.
    """
    plain = value.encode("utf-8", "replace").decode("utf-8")
    return plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
