"""Every row of the check's table, with the clock, the node and both folders as arguments."""

import io
import time
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import NamedTuple

import pytest

from check_zfs_sync.plugin import (
    human_bytes,
    human_duration,
    parse_threshold,
    run,
    short_name,
    snapshot_sets,
)
from check_zfs_sync.statefile import (
    Attempt,
    Snapshot,
    State,
    Success,
    TargetState,
    digest,
    format_state,
    state_path,
)

NOW = 1_800_000_000
MINUTE, HOUR, DAY = 60, 3600, 86400
SOURCE, TARGET = "osol1.opensvc.com", "osol2.opensvc.com"
STATES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


class Answer(NamedTuple):
    """What the check said; `line` is the first one without performance data."""

    status: int
    line: str
    perfdata: Mapping[str, str]
    more: list[str]

    @property
    def words(self) -> str:
        """The first line behind the state."""
        return self.line.partition(" - ")[2]


class World(NamedTuple):
    """A node with its two folders."""

    state_dir: Path
    config_dir: Path

    def state(
        self,
        service: str = "z3",
        *,
        here: str = SOURCE,
        source: str = SOURCE,
        limit: int = 25 * HOUR,
        rid: str = "sync#1",
        **targets: TargetState,
    ) -> Path:
        """Writes a state file; a keyword osol2 stands for osol2.opensvc.com."""
        entries = {f"{node}.opensvc.com": entry for node, entry in targets.items()}
        state = State(service, rid, source, here, "tank/src", limit, "0.1.0", entries)
        path = Path(state_path(str(self.state_dir), service, rid))
        path.write_text(format_state(state))
        return path

    def config(self, text: str, service: str = "z3") -> None:
        """Writes a service file; tank/src goes to whom `text` names."""
        head = "[sync#1]\ntype = zfs\nsrc = tank/src\ndst = tank/dst\n"
        self.config_dir.mkdir(exist_ok=True)
        (self.config_dir / f"{service}.conf").write_text(head + text)

    def check(self, *argv: str, nodename: str = SOURCE) -> Answer:
        """Runs the check and takes its output apart."""
        folders = ("--state-dir", str(self.state_dir), "--config-dir", str(self.config_dir))
        stdout, stderr = io.StringIO(), io.StringIO()
        with redirect_stderr(stderr):
            status = run((*folders, *argv), now=NOW, nodename=nodename, stdout=stdout)
        assert stderr.getvalue() == ""
        first, *more = stdout.getvalue().splitlines()
        line, _, perfdata = first.partition(" | ")
        assert line.startswith(f"ZFS_SYNC {STATES[status]} - ")
        figures = (item.rpartition("=") for item in perfdata.split(" '") if item)
        return Answer(status, line, {label.strip("'"): value for label, _, value in figures}, more)


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "state").mkdir()
    return World(tmp_path / "state", tmp_path / "config")


def entry(
    age: int = 12 * MINUTE,
    status: str = "ok",
    error: str | None = None,
    clock_offset: int | None = 0,
    equal: int | None = None,
    *,
    has_snapshot: bool = True,
) -> TargetState:
    """A target whose last snapshot is so old; `equal` is the age of equal_as_of."""
    creation = NOW - age
    return TargetState(
        dst="tank/dst",
        status=status,
        clock_offset=clock_offset,
        snapshot=Snapshot("7130521973640210317", creation, 1, digest([("", "1")]))
        if has_snapshot
        else None,
        equal_as_of=None if equal is None else NOW - equal,
        flags=(),
        last_success=Success(creation, creation + 5, 2048, "incremental") if has_snapshot else None,
        last_attempt=Attempt(NOW - 30, NOW - 20, "failed" if status == "never" else status, error),
    )


# --- OK and late -------------------------------------------------------------------------------


def test_a_young_replica_is_ok_and_the_line_names_it(world: World) -> None:
    world.state(osol2=entry())
    assert world.check().line == "ZFS_SYNC OK - 1 replica: z3/sync#1 to osol2 12m (limit 25h)"


def test_of_many_replicas_the_oldest_is_named(world: World) -> None:
    world.state(osol2=entry(), osol3=entry(age=3 * HOUR))
    world.state("z4", osol2=entry())
    expected = "ZFS_SYNC OK - 3 replicas, oldest z3/sync#1 to osol3 3h (limit 25h)"
    assert world.check().line == expected


def test_a_lag_of_exactly_the_limit_is_ok(world: World) -> None:
    world.state(osol2=entry(age=25 * HOUR))
    assert world.check().status == 0


def test_a_second_more_than_the_limit_is_a_warning(world: World) -> None:
    world.state(osol2=entry(age=25 * HOUR + 1))
    assert world.check().status == 1


def test_late_replicas_are_counted_and_named_the_oldest_first(world: World) -> None:
    world.state("z3.opensvc.com", osol2=entry(age=26 * HOUR + 10 * MINUTE))
    world.state("z4", osol2=entry(age=52 * HOUR), osol3=entry())
    answer = world.check()
    assert answer.status == 1
    assert answer.words == (
        "2 of 3 late: z4/sync#1 to osol2 2d4h (limit 25h),"
        " z3.opensvc.com/sync#1 to osol2 26h10m (limit 25h)"
    )


def test_late_with_a_failure_tells_why(world: World) -> None:
    world.state(osol2=entry(age=26 * HOUR, status="failed", error="osol2: no answer"))
    answer = world.check()
    assert answer.status == 1
    assert "26h (limit 25h) (last attempt failed: osol2: no answer)" in answer.line


def test_late_without_a_failure_tells_when_the_last_run_was(world: World) -> None:
    dead = entry(age=50 * HOUR)._replace(last_attempt=Attempt(0, NOW - 50 * HOUR, "ok", None))
    world.state(osol2=dead)
    assert "2d2h (limit 25h) (last run 2d2h ago)" in world.check().line


def test_a_failed_last_attempt_is_ok_and_told(world: World) -> None:
    world.state(osol2=entry(status="failed", error="pool is full"), osol3=entry(age=HOUR))
    answer = world.check()
    assert answer.status == 0
    assert answer.words == (
        "2 replicas, oldest z3/sync#1 to osol3 1h (limit 25h);"
        " 1 more failed: z3/sync#1 to osol2 12m (limit 25h) (last attempt failed: pool is full)"
    )


def test_a_failed_last_attempt_is_a_warning_if_asked_for(world: World) -> None:
    world.state(osol2=entry(status="failed"))
    answer = world.check("--failed", "warning")
    assert answer.status == 1
    assert "1 of 1 failed: " in answer.line
    assert "(last attempt failed: no reason recorded)" in answer.line


def test_lag_counts_from_the_time_at_which_the_target_was_shown_equal(world: World) -> None:
    world.state(osol2=entry(age=3 * DAY, equal=5 * MINUTE))
    answer = world.check()
    assert (answer.status, "5m (limit 25h)" in answer.line) == (0, True)


def test_a_limit_in_the_service_file_wins_over_the_state_file(world: World) -> None:
    world.state(osol2=entry(age=3 * HOUR))
    world.config(f"target = {TARGET}\nsync_max_delay = 2h\n")
    assert "3h (limit 2h)" in world.check().line


def test_a_limit_on_the_command_line_wins_over_both(world: World) -> None:
    world.state(osol2=entry(age=3 * HOUR))
    world.config(f"target = {TARGET}\nsync_max_delay = 2h\n")
    answer = world.check("-w", "4h")
    assert (answer.status, "3h (limit 4h)" in answer.line) == (0, True)


def test_a_lag_beyond_the_critical_range_is_critical(world: World) -> None:
    world.state(osol2=entry(age=50 * HOUR))
    answer = world.check("-c", "2d")
    assert answer.status == 2
    assert "1 of 1 late: z3/sync#1 to osol2 2d2h (limit 2d)" in answer.line


@pytest.mark.parametrize(
    ("text", "alerting", "quiet"),
    [
        ("90", [5401], [0, 5400]),
        ("0", [1], [0]),
        ("1d2h", [93601], [93600]),
        ("10:26h", [599, 93601], [600, 93600]),
        (":90m", [5401], [0, 5400]),
        ("~:90m", [5401], [0, 5400]),
        ("@0:5m", [0, 300], [301]),
        ("10:", [599], [600, 10**9]),
    ],
)
def test_ranges_are_nagios_ranges_in_minutes_and_durations(
    text: str, alerting: list[int], quiet: list[int]
) -> None:
    threshold = parse_threshold(text)
    assert [lag for lag in (*alerting, *quiet) if threshold.alerts(lag)] == alerting


def test_a_replica_below_a_range_is_not_called_late(world: World) -> None:
    world.state(osol2=entry())
    answer = world.check("-w", "1h:26h")
    assert answer.status == 1
    assert "1 of 1 out of range: z3/sync#1 to osol2 12m (limit 1h:26h)" in answer.line


# --- never, broken, refused --------------------------------------------------------------------


def test_configured_and_without_a_state_file_is_never_synchronized(world: World) -> None:
    world.config(f"target = {TARGET}\n")
    answer = world.check()
    assert answer.status == 1
    assert answer.words == "1 of 1 never synchronized: z3/sync#1 to osol2 never synchronized"


def test_a_configured_target_that_the_state_file_lacks_was_never_synchronized(world: World) -> None:
    world.state(osol2=entry())
    world.config(f"target = {TARGET} osol3.opensvc.com\n")
    answer = world.check()
    assert answer.status == 1
    assert "1 of 2 never synchronized: z3/sync#1 to osol3 never synchronized" in answer.line


def test_never_synchronized_tells_why_the_last_attempt_failed(world: World) -> None:
    world.state(osol2=entry(status="never", error="no space", has_snapshot=False))
    answer = world.check()
    assert answer.status == 1
    assert "never synchronized (last attempt failed: no space)" in answer.line
    assert answer.perfdata == {}


@pytest.mark.parametrize("status", ["broken", "refused"])
def test_broken_and_refused_are_critical_with_the_reason(world: World, status: str) -> None:
    world.state(osol2=entry(status=status, error="no snapshot in common"))
    answer = world.check()
    assert answer.status == 2
    assert (
        f"1 of 1 {status}: z3/sync#1 to osol2 {status}, 12m (limit 25h): no snapshot in common"
        in (answer.line)
    )


# --- clocks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [61, -61])
def test_clocks_more_than_a_minute_apart_are_a_warning(world: World, offset: int) -> None:
    world.state(osol2=entry(clock_offset=offset))
    answer = world.check()
    assert answer.status == 1
    assert "clock: the target's is 1m1s " in answer.line


def test_clocks_a_minute_apart_are_ok(world: World) -> None:
    world.state(osol2=entry(clock_offset=60))
    assert world.check().status == 0


def test_a_snapshot_from_the_future_is_a_warning_and_has_no_lag(world: World) -> None:
    world.state(osol2=entry(age=-61))
    answer = world.check()
    assert answer.status == 1
    assert "clock: the last snapshot is 1m1s in the future" in answer.line
    assert not any(label.endswith("_lag") for label in answer.perfdata)


def test_a_snapshot_within_the_slack_of_the_future_has_no_lag_at_all(world: World) -> None:
    world.state(osol2=entry(age=-60))
    answer = world.check()
    assert answer.status == 0
    assert answer.perfdata["z3/sync#1/osol2.opensvc.com_lag"] == "0s;90000;;0"


def ended(seconds_ago: int, *, clock_offset: int = 0) -> TargetState:
    """A target whose snapshot is 20 h old, and whose last run failed so long ago."""
    failed = Attempt(NOW - DAY, NOW - seconds_ago, "failed", "no answer")
    return entry(age=20 * HOUR, status="failed", clock_offset=clock_offset)._replace(
        last_attempt=failed
    )


@pytest.mark.parametrize(("seconds", "status"), [(61, 1), (60, 0)])
def test_a_run_that_ended_in_the_future_is_a_warning(
    world: World, seconds: int, status: int
) -> None:
    # This clock was set back: the snapshot is older than the 20 h that it says.
    world.state(osol2=ended(-seconds))
    answer = world.check()
    assert answer.status == status
    assert ("clock: the last run ended 1m1s in the future" in answer.line) == bool(status)


def test_on_the_target_the_end_of_a_run_is_compared_with_the_sources_clock(world: World) -> None:
    world.state(here=TARGET, osol2=ended(10, clock_offset=50))
    assert world.check(nodename=TARGET).status == 0
    world.state(here=TARGET, osol2=ended(-11, clock_offset=50))
    assert "the last run ended 1m1s in the future" in world.check(nodename=TARGET).line


def test_on_the_target_the_clock_offset_is_taken_off(world: World) -> None:
    # The target's clock, `now`, is 50 s ahead: the snapshot is 10 s old, not 60 s.
    world.state(here=TARGET, osol2=entry(age=60, clock_offset=50))
    assert "osol2 10s (limit" in world.check(nodename=TARGET).line


def test_on_the_source_the_clock_offset_does_not_matter(world: World) -> None:
    world.state(osol2=entry(age=60, clock_offset=50))
    assert "osol2 1m (limit" in world.check().line


# The clocks of the second one change 15 hours before NOW.
@pytest.mark.parametrize("zone", ["UTC", "XST5XDT,J14/12,J300", "LINT-14", "SST11"])
def test_the_zone_of_the_node_does_not_matter(
    world: World, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    world.state("z4", osol2=entry(age=25 * HOUR))
    in_utc = world.check("-vv")
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert world.check("-vv") == in_utc
        world.state("z4", osol2=entry(age=25 * HOUR + 1))
        assert (in_utc.status, world.check().status) == (0, 1)
    finally:
        monkeypatch.undo()
        time.tzset()


# --- source, target, standby -------------------------------------------------------------------


def test_a_target_judges_its_own_entry_only(world: World) -> None:
    world.state(here=TARGET, osol2=entry(), osol3=entry(age=9 * DAY))
    answer = world.check(nodename=TARGET)
    assert answer.words == "1 replica: z3/sync#1 to osol2 12m (limit 25h)"


def test_a_standby_is_not_blamed_for_the_reverse_direction(world: World) -> None:
    world.config(f"target = nodes\n[DEFAULT]\nnodes = {SOURCE} {TARGET}\n")
    world.state(here=TARGET, osol2=entry())
    answer = world.check("-v", nodename=TARGET)
    assert answer.words == "1 replica: z3/sync#1 to osol2 12m (limit 25h)"
    assert "z3/sync#1: standby, osol1.opensvc.com is the source" in answer.more


def test_a_target_without_an_entry_of_its_own_is_unknown(world: World) -> None:
    world.state(here="osol9.opensvc.com", osol2=entry())
    assert world.check().status == 3


def test_a_target_that_is_no_longer_configured_is_mentioned_and_not_judged(world: World) -> None:
    world.config(f"target = {TARGET}\n")
    world.state(osol2=entry(), osol3=entry(age=9 * DAY))
    answer = world.check("-v")
    assert answer.status == 0
    assert any("osol3" in line and "not configured: not judged" in line for line in answer.more)


def test_a_state_file_of_no_configured_resource_is_judged(world: World) -> None:
    world.config(f"target = {TARGET}\n")
    world.state(osol2=entry())
    world.state("gone", osol2=entry(age=2 * DAY))
    assert "1 of 2 late: gone/sync#1 to osol2" in world.check().line


def test_a_local_target_is_judged_by_one_clock(world: World) -> None:
    world.config("target = local\n")
    world.state(osol1=entry(age=60, clock_offset=50))
    assert "z3/sync#1 to osol1 1m (limit 25h)" in world.check().line


def test_the_seeds_example_is_judged_on_both_nodes(world: World) -> None:
    world.config_dir.mkdir()
    (world.config_dir / "z3.opensvc.com.env").write_text(
        "[sync#1]\ntype = zfs\n"
        f"src@{SOURCE} = osol1_z3_root/data\nsrc@{TARGET} = osol2_z3_root/data\n"
        f"dst@{SOURCE} = osol2_z3_root/data\ndst@{TARGET} = osol1_z3_root/data\n"
        "target = nodes\n;recursive = True\n"
    )
    path = world.state("z3.opensvc.com", osol2=entry())
    on_source = world.check()
    path.unlink()
    world.state("z3.opensvc.com", here=TARGET, osol2=entry())
    on_target = world.check(nodename=TARGET)
    assert on_source.line == on_target.line
    assert on_source.line == (
        "ZFS_SYNC OK - 1 replica: z3.opensvc.com/sync#1 to osol2 12m (limit 25h)"
    )


# --- UNKNOWN, and what outranks it -------------------------------------------------------------


def test_nothing_at_all_is_unknown(world: World) -> None:
    answer = world.check()
    assert answer.status == 3
    assert "no state file in " in answer.line


def test_an_absent_state_folder_is_like_an_empty_one(world: World) -> None:
    world.state_dir.rmdir()
    assert world.check().status == 3


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"format": 2}', b'{"format": NaN}'])
def test_a_state_file_that_cannot_be_believed_is_unknown(world: World, content: bytes) -> None:
    (world.state_dir / "z3_sync#1_zfs_state").write_bytes(content)
    answer = world.check()
    assert answer.status == 3
    assert "z3_sync#1_zfs_state: " in answer.line


def test_an_unreadable_state_file_is_not_taken_for_never_synchronized(world: World) -> None:
    world.config(f"target = {TARGET}\n")
    (world.state_dir / "z3_sync#1_zfs_state").mkdir()
    answer = world.check()
    assert answer.status == 3
    assert "Is a directory" in answer.line


def test_a_state_file_under_another_name_is_unknown(world: World) -> None:
    world.state(osol2=entry()).rename(world.state_dir / "copy_sync#1_zfs_state")
    answer = world.check()
    assert answer.status == 3
    assert "copy_sync#1_zfs_state: is the state of z3/sync#1" in answer.line


def test_other_files_of_the_state_folder_are_left_alone(world: World) -> None:
    world.state(osol2=entry())
    for name in ("readme", ".z3_sync#1_zfs_state", "z3_sync#1_zfs_state.tmp", "lock"):
        (world.state_dir / name).write_text("")
    assert world.check().status == 0


def test_a_wrong_service_file_is_unknown_and_the_others_are_judged(world: World) -> None:
    world.config(f"target = {TARGET}\nsync_max_dealy = 5\n", service="wrong")
    world.state(osol2=entry())
    answer = world.check()
    assert answer.status == 3
    assert "1 of 2 misconfigured: " in answer.line
    assert "z3/sync#1/osol2.opensvc.com_lag" in answer.perfdata


def test_a_wrong_service_file_does_not_disturb_the_check_of_another_service(world: World) -> None:
    world.config("sync_max_dealy = 5\n", service="wrong")
    world.state(osol2=entry())
    assert world.check("-s", "z3").status == 0


def test_a_wrong_section_is_told_whatever_resource_is_asked_for(world: World) -> None:
    world.config(f"target = {TARGET}\n[sync#2]\ntype = zfs\n")
    world.state(osol2=entry())
    answer = world.check("-r", "sync#1")
    assert answer.status == 3
    assert "[sync#2]" in answer.line


def test_a_folder_that_is_a_file_is_unknown(world: World) -> None:
    world.config_dir.write_text("")
    world.state(osol2=entry())
    answer = world.check()
    assert answer.status == 3
    assert "Not a directory" in answer.line


def test_unknown_hides_neither_warning_nor_critical(world: World) -> None:
    (world.state_dir / "torn_sync#1_zfs_state").write_text("{")
    world.state(osol2=entry(age=2 * DAY))
    assert world.check().status == 1
    world.state("z4", osol2=entry(status="broken", error="cut"))
    answer = world.check()
    assert answer.status == 2
    assert answer.words.startswith("1 of 3 broken, 1 late, 1 unreadable: z4/sync#1 to osol2 broken")


# --- filters -----------------------------------------------------------------------------------


def test_filters_select_services_resources_and_targets(world: World) -> None:
    for service in ("z3", "z4"):
        for rid in ("sync#1", "sync#2"):
            world.state(service, rid=rid, osol2=entry(), osol3=entry())
    assert len(world.check("-s", "z4").perfdata) == 12
    assert len(world.check("-r", "sync#2", "-r", "sync#1", "-s", "z3").perfdata) == 12
    one = world.check("-s", "z3", "-r", "sync#2", "--target", "osol3")
    assert "1 replica: z3/sync#2 to osol3" in one.line
    assert world.check("--target", TARGET).words.startswith("4 replicas")


@pytest.mark.parametrize(
    "argv", [("-s", "nix"), ("-r", "sync#9"), ("--target", "osol9"), ("-s", "z3", "-s", "nix")]
)
def test_a_filter_that_matches_nothing_is_unknown(world: World, argv: tuple[str, ...]) -> None:
    world.state(osol2=entry())
    answer = world.check(*argv)
    assert answer.status == 3
    assert f"nothing matches {argv[-2]} {argv[-1]}" in answer.line


def test_a_torn_file_of_another_service_is_not_even_read(world: World) -> None:
    (world.state_dir / "torn_sync#1_zfs_state").write_text("{")
    world.state(osol2=entry())
    assert world.check("-s", "z3").status == 0


# --- words, performance data and verbosity -----------------------------------------------------


def test_performance_data_is_whole_seconds_with_plain_thresholds(world: World) -> None:
    world.state(osol2=entry())
    name = "z3/sync#1/osol2.opensvc.com"
    assert world.check("-w", "~:90m", "-c", "10:26h").perfdata == {
        f"{name}_lag": "720s;5400;93600;0",
        f"{name}_bytes": "2048B;;;0",
        f"{name}_duration": "5s;;;0",
    }


def test_a_duration_that_ran_backwards_is_left_out(world: World) -> None:
    world.state(osol2=entry()._replace(last_success=Success(NOW, NOW - 5, 0, "none")))
    labels = {label.rpartition("_")[2] for label in world.check().perfdata}
    assert labels == {"lag", "bytes"}


def test_verbosity_changes_neither_the_first_line_nor_performance_data(world: World) -> None:
    world.state(osol2=entry(), osol3=entry(age=2 * DAY))
    answers = [world.check(*argv) for argv in ((), ("-v",), ("-vv",), ("-vvv",))]
    assert len({answer.line for answer in answers}) == 1
    assert all(answer.perfdata == answers[0].perfdata for answer in answers)
    assert answers[0].more == []
    assert [line.split(":")[0] for line in answers[1].more] == ["WARNING", "OK"]
    assert f"state: {world.state_dir} (1 files read)" in answers[2].more


def test_a_long_list_is_capped_and_the_rest_is_counted(world: World) -> None:
    for number in range(20):
        world.state(f"z{number:02}", osol2=entry(age=2 * DAY + number))
    answer = world.check()
    assert answer.words.startswith("20 of 20 late: z19/sync#1 to osol2 2d (limit 25h)")
    assert answer.line.endswith(" more")
    assert len(answer.line) < 200


def test_nodes_with_the_same_short_name_are_written_in_full(world: World) -> None:
    targets = {TARGET: entry(), "osol2.example.com": entry(age=HOUR)}
    state = State("z3", "sync#1", SOURCE, SOURCE, "tank/src", 25 * HOUR, "0.1.0", targets)
    (world.state_dir / "z3_sync#1_zfs_state").write_text(format_state(state))
    assert "z3/sync#1 to osol2.example.com 1h" in world.check().line


def test_an_address_has_no_short_name() -> None:
    assert [short_name(node) for node in ("10.0.0.2", "osol2.opensvc.com")] == ["10.0.0.2", "osol2"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (45, "45s"),
        (720, "12m"),
        (754, "12m34s"),
        (11400, "3h10m"),
        (90000, "25h"),
        (172799, "47h59m"),
        (172800, "2d"),
        (187200, "2d4h"),
    ],
)
def test_durations_have_two_units(seconds: int, text: str) -> None:
    assert human_duration(seconds) == text


def test_sizes_are_in_binary_units() -> None:
    sizes = [human_bytes(size) for size in (0, 1023, 1536, 2**40, 2**63)]
    assert sizes == ["0 B", "1023 B", "1.5 KiB", "1.0 TiB", "8192.0 PiB"]


# --- --verify, with a zfs that is a shell script -----------------------------------------------

GUIDS = {"tank/dst": "11", "tank/dst/a b": "12"}


class FakeZfs(NamedTuple):
    """Stands in for zfs on PATH; prints what `zfs list` and `zfs get` print."""

    folder: Path

    def holds(self, *snapshots: tuple[str, str, int], datasets: tuple[str, ...] = ()) -> None:
        """Takes (snapshot, guid, creation); a guid in `get` has the third column of its name."""
        names = datasets or tuple(GUIDS)
        self.says("list -H -r -t filesystem,volume", *names)
        root = [name.partition("@")[2] for name, _, _ in snapshots if name.startswith("tank/dst@")]
        self.says("list -H -d 1 -t snapshot", *(f"tank/dst@{name}" for name in root))
        rows = (
            f"{name}\t{key}\t{value}"
            for name, guid, creation in snapshots
            for key, value in (("guid", guid), ("creation", creation), ("zfs_sync:rid", "-"))
        )
        self.says("get -Hp", *rows, status=1)

    def says(self, start: str, *lines: str, status: int = 0, errors: str = "") -> None:
        """Sets the answer to commands that start so."""
        number = len(list(self.folder.glob("*.out")))
        (self.folder / f"{number}.out").write_text("".join(f"{line}\n" for line in lines))
        with (self.folder / "zfs").open("a") as script:
            if not number:
                script.write("#!/bin/sh\n")
            script.write(f'case "$*" in "{start}"*) cat {self.folder}/{number}.out; ')
            script.write(f"echo '{errors}' >&2; exit {status};; esac\n")
        (self.folder / "zfs").chmod(0o755)


@pytest.fixture
def zfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeZfs:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return FakeZfs(tmp_path / "bin")


def recorded(age: int = 12 * MINUTE) -> TargetState:
    """A target that was shown to hold GUIDS."""
    pairs = (
        (name.removeprefix("tank/dst").removeprefix("/"), guid) for name, guid in GUIDS.items()
    )
    return entry(age)._replace(snapshot=Snapshot("11", NOW - age, len(GUIDS), digest(pairs)))


@pytest.mark.parametrize("name", ["sent", "tosend", "sent.20100619T023000Z-640317", "sync.2.sent"])
def test_a_replica_with_the_recorded_guids_is_verified_under_any_own_name(
    world: World, zfs: FakeZfs, name: str
) -> None:
    world.state(here=TARGET, osol2=recorded())
    zfs.holds(*((f"{dataset}@{name}", guid, NOW - 720) for dataset, guid in GUIDS.items()))
    assert world.check("--verify", nodename=TARGET).status == 0


def test_a_replica_with_other_guids_is_critical(world: World, zfs: FakeZfs) -> None:
    world.state(here=TARGET, osol2=recorded())
    zfs.holds(("tank/dst@sent", "11", NOW - 720), ("tank/dst/a b@sent", "99", NOW - 720))
    answer = world.check("--verify", nodename=TARGET)
    assert answer.status == 2
    assert "missing, 12m (limit 25h): tank/dst holds no own snapshot with the recorded guids" in (
        answer.line
    )


def test_a_foreign_snapshot_name_proves_nothing(world: World, zfs: FakeZfs) -> None:
    world.state(here=TARGET, osol2=recorded())
    zfs.holds(*((f"{dataset}@absent", guid, NOW) for dataset, guid in GUIDS.items()))
    assert world.check("--verify", nodename=TARGET).status == 2


def test_with_a_service_file_only_its_own_prefix_is_own(world: World, zfs: FakeZfs) -> None:
    world.config(f"target = {TARGET}\nsnap_prefix = p.\n")
    world.state(here=TARGET, osol2=recorded())
    zfs.holds(*((f"{dataset}@sent", guid, NOW - 720) for dataset, guid in GUIDS.items()))
    assert world.check("--verify", nodename=SOURCE).status == 2


def test_a_replica_that_was_destroyed_is_critical(world: World, zfs: FakeZfs) -> None:
    world.state(here=TARGET, osol2=recorded())
    zfs.says("list", status=1, errors="cannot open tank/dst: dataset does not exist")
    answer = world.check("--verify", nodename=TARGET)
    assert answer.status == 2
    assert "the dataset tank/dst does not exist here" in answer.line


def test_a_newer_own_snapshot_is_judged_by_lag(world: World, zfs: FakeZfs) -> None:
    world.state(here=TARGET, osol2=recorded(age=2 * DAY))
    zfs.holds(("tank/dst@sent", "21", NOW - 60), ("tank/dst/a b@sent", "22", NOW - 60))
    answer = world.check("--verify", nodename=TARGET)
    assert answer.status == 1
    assert "2d (limit 25h)" in answer.line


def test_a_child_of_somebody_else_is_not_part_of_the_tree(world: World, zfs: FakeZfs) -> None:
    world.state(here=TARGET, osol2=recorded())
    zfs.says("list -H -r", *GUIDS, "tank/dst/foreign")
    zfs.says("list -H -d 1", "tank/dst@sent")
    rows = [("tank/dst", "11", "r"), ("tank/dst/a b", "12", "r"), ("tank/dst/foreign", "13", "-")]
    zfs.says(
        "get",
        *(f"{dataset}@sent\tguid\t{guid}" for dataset, guid, _ in rows),
        *(f"{dataset}@sent\tcreation\t{NOW - 720}" for dataset, _, _ in rows),
        *(f"{dataset}@sent\tzfs_sync:rid\t{mark}" for dataset, _, mark in rows),
    )
    assert world.check("--verify", nodename=TARGET).status == 0


def test_on_the_source_the_src_is_verified(world: World, zfs: FakeZfs) -> None:
    world.state(osol2=recorded())
    zfs.says("list -H -r -t filesystem,volume -o name tank/src", "tank/src", "tank/src/a b")
    zfs.says("list -H -d 1 -t snapshot -o name tank/src", "tank/src@sent")
    names = {"tank/src": "11", "tank/src/a b": "12"}
    zfs.says(
        "get",
        *(f"{dataset}@sent\tguid\t{guid}" for dataset, guid in names.items()),
        *(f"{dataset}@sent\tcreation\t{NOW - 720}" for dataset in names),
    )
    assert world.check("--verify").status == 0


@pytest.mark.parametrize("errors", ["/dev/zfs: Permission denied", ""])
def test_a_zfs_that_cannot_answer_is_unknown(world: World, zfs: FakeZfs, errors: str) -> None:
    world.state(here=TARGET, osol2=recorded())
    zfs.says("list", status=1, errors=errors)
    answer = world.check("--verify", nodename=TARGET)
    assert answer.status == 3
    assert f"zfs list: {errors or 'exit 1'}" in answer.line


def test_a_node_without_zfs_is_unknown(world: World, tmp_path: Path) -> None:
    world.config(f"target = {TARGET}\nzfs = {tmp_path}/absent/zfs\n")
    world.state(osol2=recorded())
    answer = world.check("--verify")
    assert answer.status == 3
    assert "No such file" in answer.line  # the line is cut to a length that a screen shows


def test_a_zfs_that_hangs_leaves_the_other_verdicts_standing(world: World, zfs: FakeZfs) -> None:
    world.state(here=TARGET, osol2=recorded())
    world.state("z4", here=TARGET, osol2=entry(status="broken", error="cut"))
    (zfs.folder / "zfs").write_text("#!/bin/sh\nexec sleep 60\n")
    (zfs.folder / "zfs").chmod(0o755)
    answer = world.check("--verify", "-t", "0.5", nodename=TARGET)
    assert answer.status == 2
    assert "1 of 2 broken, 1 unverified: " in answer.line
    assert "zfs list: no answer in time" in answer.line


# --- the sets that --verify compares -----------------------------------------------------------


def sets(**names: str) -> dict[str, set[str]]:
    """Digests by name; `names` are datasets of tank/a (root: a) with words NAME:GUID."""
    rows = []
    for dataset, words in names.items():
        full = "tank/a" if dataset == "a" else f"tank/a/{dataset}"
        for word in words.split():
            name, _, guid = word.partition(":")
            values = {"guid": guid, "creation": "7", "zfs_sync:rid": "z3/sync#1"}
            rows += [(f"{full}@{name}", key, value) for key, value in values.items()]
    return {name: found[1] for name, found in snapshot_sets("tank/a", rows).items()}


def test_a_dataset_without_the_snapshot_may_hold_the_same_as_its_sent() -> None:
    found = sets(a="sent:1 tosend:2", b="sent:3", c="sent:4 tosend:5")
    assert found["tosend"] == {
        digest([("", "2"), ("c", "5")]),
        digest([("", "2"), ("b", "3"), ("c", "5")]),
    }
    assert found["sent"] == {digest([("", "1"), ("b", "3"), ("c", "4")])}


def test_the_root_may_have_lost_its_sent_and_the_others_not() -> None:
    assert digest([("", "2"), ("b", "3")]) in sets(a="tosend:2", b="sent:3")["tosend"]


def test_what_is_kept_of_some_goes_with_the_sent_of_the_others() -> None:
    kept = "sync.2.sent.20100619T143005Z-1"
    found = sets(a=f"{kept}:1 sync.2.sent:2 sent:8", b="sync.2.sent:3 sent:9")
    assert digest([("", "1"), ("b", "3")]) in found[kept]
    assert digest([("", "1"), ("b", "9")]) not in found[kept]
