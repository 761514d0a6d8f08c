"""What Prometheus is told of a node's replicas, and that no text from a state file can forge it."""

import re

from hypothesis import given
from hypothesis import strategies as st

from check_zfs_sync import __version__
from check_zfs_sync.service import Target
from check_zfs_sync.statefile import (
    STATUSES,
    Attempt,
    KeptBase,
    Snapshot,
    State,
    Success,
    TargetState,
)
from zfs_sync_agent.metrics import Replica, format_metrics, replicas_of
from zfs_sync_agent.record import never, started

from .notation import DST, EPOCH, SRC, resource

HELD = TargetState(
    DST,
    "ok",
    clock_offset=-2,
    snapshot=Snapshot("71", EPOCH, 3, "d" * 64),
    equal_as_of=None,
    flags=(),
    last_success=Success(EPOCH + 5, EPOCH + 65, 4096, "incremental"),
    last_attempt=Attempt(EPOCH + 5, EPOCH + 65, "ok", None),
    kept_bases=(KeptBase("sent.1", EPOCH, 1000), KeptBase("sent.2", EPOCH, 24)),
)
STATE = State("z3", "sync#1", "osol1", "osol1", SRC, 90000, "0.1.0", {"osol2": HELD})
# Of the text format: a sample's line.
SAMPLE = re.compile(
    r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)+)\})? (-?[0-9]+)', re.ASCII
)


def replica(entry: TargetState | None = HELD) -> Replica:
    return Replica("z3", "sync#1", "osol2", "source", 90000, entry)


def value(text: str, name: str, **labels: str) -> str | None:
    """Return the value of the one sample that has these labels."""
    wanted = [f'{key}="{word}"' for key, word in labels.items()]
    lines = [line for line in text.splitlines() if re.match(rf"{name}[ {{]", line)]
    found = [line for line in lines if all(one in line for one in wanted)]
    assert len(found) <= 1, found
    return found[0].rpartition(" ")[2] if found else None


def test_a_replica_is_told_with_what_is_known_of_it() -> None:
    labels = 'service="z3",resource="sync#1",target="osol2",role="source"'
    told = [
        line
        for line in format_metrics([replica()], unusable=0).splitlines()
        if not line.startswith("#") and "_status" not in line
    ]
    assert told == [
        f'zfs_sync_agent_info{{version="{__version__}"}} 1',
        "zfs_sync_unusable_files 0",
        f"zfs_sync_replica_timestamp_seconds{{{labels}}} {EPOCH}",
        f"zfs_sync_max_delay_seconds{{{labels}}} 90000",
        f"zfs_sync_last_attempt_timestamp_seconds{{{labels}}} {EPOCH + 65}",
        f"zfs_sync_last_success_timestamp_seconds{{{labels}}} {EPOCH + 65}",
        f"zfs_sync_last_success_duration_seconds{{{labels}}} 60",
        f"zfs_sync_last_success_bytes{{{labels}}} 4096",
        f"zfs_sync_clock_offset_seconds{{{labels}}} -2",
        f"zfs_sync_kept_base_bytes{{{labels}}} 1024",
    ]


def test_one_status_of_all_is_true() -> None:
    text = format_metrics([replica(HELD._replace(status="broken"))], unusable=0)
    told = {word: value(text, "zfs_sync_status", status=word) for word in STATUSES}
    assert told == {word: "1" if word == "broken" else "0" for word in STATUSES}


def test_a_target_that_was_shown_equal_later_is_as_young_as_that() -> None:
    text = format_metrics([replica(HELD._replace(equal_as_of=EPOCH + 600))], unusable=0)
    assert value(text, "zfs_sync_replica_timestamp_seconds") == str(EPOCH + 600)


def test_what_was_never_synchronized_is_as_old_as_can_be() -> None:
    for entry in (None, never(DST)):
        text = format_metrics([replica(entry)], unusable=0)
        assert value(text, "zfs_sync_replica_timestamp_seconds") == "0"
        assert value(text, "zfs_sync_status", status="never") == "1"
        assert value(text, "zfs_sync_last_success_timestamp_seconds") is None


def test_a_run_under_way_is_no_failure_yet() -> None:
    text = format_metrics([replica(started(HELD, EPOCH + 3600))], unusable=0)
    assert value(text, "zfs_sync_status", status="failed") == "0"


def test_a_duration_that_ran_backwards_is_left_out() -> None:
    backwards = HELD._replace(last_success=Success(EPOCH, EPOCH - 1, 0, "none"))
    text = format_metrics([replica(backwards)], unusable=0)
    assert value(text, "zfs_sync_last_success_duration_seconds") is None


def test_each_family_is_there_once_with_its_help_even_without_a_sample() -> None:
    def heads(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("#")]

    nothing, two = format_metrics([], unusable=0), format_metrics([replica()] * 2, unusable=3)
    assert heads(nothing) == heads(two)
    assert len(set(heads(two))) == len(heads(two)) == 2 * len(re.findall("^# TYPE", two, re.M))


@given(st.lists(st.text(st.characters()), min_size=3, max_size=3))
def test_no_name_can_forge_a_sample(names: list[str]) -> None:
    service, rid, target = names
    one = replica()._replace(service=service, rid=rid, target=target)
    text = format_metrics([one], unusable=0)
    assert text.encode()
    lines = text.split("\n")
    assert lines.pop() == ""
    samples = [line for line in lines if not line.startswith("# ")]
    assert len(samples) == 10 + len(STATUSES)
    assert all(SAMPLE.fullmatch(line) for line in samples)


# --- which replicas ---------------------------------------------------------------------------


def told(*, states: list[State], **changes: object) -> list[tuple[str, str, int]]:
    found = replicas_of(states, [resource(**changes)] if changes else [])
    return [(one.target, one.role, one.limit) for one in found]


def test_a_source_tells_of_every_configured_target() -> None:
    targets = (Target("osol2", "nodes"), Target("osol3", "drpnodes"))
    expected = [("osol2", "source", 60), ("osol3", "source", 60)]
    assert told(states=[STATE], targets=targets, sync_max_delay=60) == expected


def test_a_target_that_is_no_longer_configured_is_not_told_of() -> None:
    state = STATE._replace(targets={"osol2": HELD, "osol9": HELD})
    assert told(states=[state], sync_max_delay=60) == [("osol2", "source", 60)]


def test_what_no_usable_service_file_speaks_of_is_told_by_its_state() -> None:
    assert told(states=[STATE]) == [("osol2", "source", 90000)]


def test_a_target_tells_of_its_own_replica_alone() -> None:
    copy = STATE._replace(here="osol3", targets={"osol2": HELD, "osol3": HELD})
    assert told(states=[copy]) == [("osol3", "target", 90000)]
    standby = resource(nodename="osol3", sync_max_delay=60)
    assert [(one.target, one.limit) for one in replicas_of([copy], [standby])] == [("osol3", 60)]


def test_a_node_that_neither_sends_nor_holds_tells_nothing() -> None:
    assert told(states=[], src=None, targets=()) == []
