"""Shows what this node knows of its replicas, from state files and the source's own marks.

It asks no other node and changes nothing; it never calls a lag good that it cannot date.
"""

import json
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import NamedTuple

from check_zfs_sync.service import SyncResource
from check_zfs_sync.statefile import State, StateFileError, TargetState, read_state, state_path
from zfs_sync_agent import observe, record
from zfs_sync_agent.errors import SyncError
from zfs_sync_agent.model import MARK, RETAINED, Names, Standing, parse_nodes, parse_standing
from zfs_sync_agent.observe import Side
from zfs_sync_agent.transport import Shell

CLOCK_SLACK_SECONDS = 60  # the check's

Kept = tuple[int, int]  # creation (epoch), bytes


class Row(NamedTuple):
    """One target in the table; lag and limit in seconds, lag None if it never held a snapshot."""

    service: str
    rid: str
    target: str
    dst: str
    status: str
    lag: int | None
    limit: int
    kept_bases: list[dict[str, object]]
    last_attempt: dict[str, object] | None


def show(
    resources: Sequence[SyncResource], state_dir: str, nodes: Sequence[str], *, as_json: bool
) -> None:
    """Print the table, or a list of JSON objects."""
    now = record.now()
    rows = [row for one in resources for row in _rows(one, state_dir, now)]
    rows = [row for row in rows if not nodes or row.target in nodes]
    if as_json:
        json.dump([row._asdict() for row in rows], sys.stdout, indent=2)
        print()
        return
    head = ("SERVICE", "RID", "TARGET", "STATUS", "LAG", "LIMIT", "KEPT BASE", "LAST ATTEMPT")
    lines = [head, *(_columns(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def human(seconds: int | None) -> str:
    """Return a duration as people read it: `45s`, `12m`, `3h10m`, `2d4h`."""
    if seconds is None:
        return "-"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d{hours % 24}h"
    if hours:
        return f"{hours}h{minutes % 60}m"
    return f"{minutes}m" if minutes else f"{max(seconds, 0)}s"


def _columns(row: Row) -> tuple[str, ...]:
    last = "-"
    if row.last_attempt is not None:
        last = str(row.last_attempt["result"])
        last += f": {row.last_attempt['error']}" if row.last_attempt["error"] else ""
    kept = ", ".join(_kept(one) for one in row.kept_bases) or "-"
    lag, limit = human(row.lag), human(row.limit)
    return (row.service, row.rid, row.target, row.status, lag, limit, kept, last)


def _kept(base: dict[str, object]) -> str:
    size = base["bytes"]
    since = datetime.fromtimestamp(int(str(base["since"])), tz=timezone.utc)
    return f"@{base['snapshot']} since {since:%Y-%m-%dT%H:%MZ}, {size} bytes"


def _rows(resource: SyncResource, state_dir: str, now: int) -> list[Row]:
    try:
        state = read_state(state_path(state_dir, resource.service, resource.rid))
    except StateFileError as error:
        print(error, file=sys.stderr)
        state = None
    standing, retained, sizes = _marks(resource)
    own = f"/{resource.service}/{resource.rid}"
    # After a takeover the other node's state file is here until the first run.
    copied = state is not None and state.source != resource.nodename
    if (standing.replica_of or "").endswith(own) or (copied and standing.source_since is None):
        return [_standby_row(resource, state, now)]
    rows = []
    for target in resource.targets:
        entry = state.targets.get(target.node) if state and not copied else None
        kept: list[dict[str, object]] = [
            {"snapshot": name, "since": sizes[name][0], "bytes": sizes[name][1]}
            for name in sorted(sizes)
            if target.node in retained[name]
        ]
        rows.append(_row(resource, target.node, entry, now, kept))
    return rows


def _row(
    resource: SyncResource,
    node: str,
    entry: TargetState | None,
    now: int,
    kept: list[dict[str, object]],
) -> Row:
    lag = None
    if entry is not None and entry.snapshot is not None:
        lag = max(0, now - max(entry.snapshot.creation, entry.equal_as_of or 0))
    word = "warn"
    if entry is not None and entry.status in ("broken", "refused"):
        word = "broken"
    elif lag is not None and lag <= resource.sync_max_delay and not _is_undated(entry, now):
        word = "up"
    last = entry.last_attempt._asdict() if entry and entry.last_attempt else None
    dst = entry.dst if entry else resource.dst or ""
    return Row(
        resource.service,
        resource.rid,
        node,
        dst,
        word,
        lag,
        resource.sync_max_delay,
        kept,
        last,
    )


def _is_undated(entry: TargetState | None, now: int) -> bool:
    """Tell whether the clocks differ, or one was set back: the lag may be any, as for the check."""
    if entry is None or entry.snapshot is None:
        return True
    finished = entry.last_attempt.finished if entry.last_attempt else 0
    ahead = max(entry.snapshot.creation, finished) - now
    return max(abs(entry.clock_offset or 0), ahead) > CLOCK_SLACK_SECONDS


def _standby_row(resource: SyncResource, state: State | None, now: int) -> Row:
    """This node holds the replica: what the source last pushed here is what is known."""
    entry = state.targets.get(resource.nodename) if state else None
    offset = (entry.clock_offset or 0) if entry else 0
    row = _row(resource, resource.nodename, entry, now - offset, [])
    return row._replace(status="standby" if row.status == "up" else row.status)


def _marks(resource: SyncResource) -> tuple[Standing, dict[str, frozenset[str]], dict[str, Kept]]:
    """Return the mark of this node's src, its kept bases and what they hold.

    Nothing where zfs cannot be asked.
    """
    if resource.src is None:
        return Standing(), {}, {}
    shell = Shell(resource.nodename, ())
    words = resource.zfs.get(resource.nodename, ("zfs",))
    side = Side(shell, words, sudo=resource.sudo.get(resource.nodename, False))
    try:
        datasets, marks, _ = observe.look(side, resource.src, recursive=resource.recursive)
        retained = Names(resource.snap_prefix).own(parse_nodes(marks.get(RETAINED)))
        sizes = observe.read_kept(side, datasets, retained) if datasets and retained else {}
    except SyncError as error:
        print(f"{resource.service}/{resource.rid}: {error.reason}", file=sys.stderr)
        return Standing(), {}, {}
    finally:
        shell.close()
    return parse_standing(marks.get(MARK)), retained, sizes
