"""Clocks and zones that are wrong: the agent needs none of them, and the check says what it cannot
date.

A wrong clock is one that a program is given: Python's, ZFS's (by libfaketime), or the `date` of a
target, which the agent asks.
"""

from __future__ import annotations

import subprocess

import pytest

from tests.e2e.world import OK, WARNING, World
from tests.lab import Node

pytestmark = pytest.mark.zfs

MINUTE, HOUR, DAY = 60, 3600, 86400
ABOUT = 30  # seconds, so that 2h0m30s still reads 2h when some time has passed

# As tzset(3) has them, so that no file of zones is needed.
KIRITIMATI, NEW_YORK, PAGO_PAGO = "LINT-14", "EST5EDT,M3.2.0,M11.1.0", "SST11"


def by_clock(
    node: Node, seconds: int, program: str, *args: str
) -> subprocess.CompletedProcess[str]:
    """Run the agent or the check by a clock that is so many seconds ahead."""
    code = (
        "import runpy, sys, time; now = time.time; "
        f"time.time = lambda: now() + {seconds}; "
        f"runpy.run_module({program!r}, run_name='__main__', alter_sys=True)"
    )
    *python, _, _ = node.python(program)
    return node.run([*python, "-c", code, *args], check=False)


def checked_by(node: Node, seconds: int) -> tuple[int, str]:
    """Return the exit status and the words of the check by such a clock."""
    result = by_clock(node, seconds, "check_zfs_sync")
    assert not result.stderr
    return result.returncode, result.stdout


def start_zfs_by(node: Node, seconds: int) -> None:
    """Start a node's ZFS anew by such a clock."""
    node.kill_zfs()
    node.start_zfs(ahead=seconds)
    node.zfs("mount", "-a")


def set_date(node: Node, seconds: int) -> None:
    """Let the next run see such a clock on a target."""
    node.wrap("date")
    node.fault("date", [], f'expr $("$0" "$@") + {seconds}', when="instead")


def test_zones_do_not_matter(two_targets: World) -> None:
    world = two_targets
    absent = world.targets[1]
    world.agent("syncupdate", env={"TZ": KIRITIMATI})
    absent.stop_ssh()
    for zone in (NEW_YORK, PAGO_PAGO):
        world.source.write(world.src, "file", zone.encode())
        world.agent("syncupdate", env={"TZ": zone}, expect=1)
    absent.start_ssh()
    world.agent("syncupdate", env={"TZ": KIRITIMATI})
    world.agent("syncupdate", env={"TZ": NEW_YORK})
    world.assert_equal()
    world.assert_tidy(*world.targets)
    for node in world.nodes:
        for zone in ("UTC", KIRITIMATI, NEW_YORK, PAGO_PAGO):
            # A minute would be late.
            result = node.check("-w", "1", env={"TZ": zone})
            assert result.returncode == OK, result.stdout


@pytest.mark.parametrize("seconds", [2 * HOUR + ABOUT, -2 * HOUR - ABOUT])
def test_a_targets_wrong_clock_is_seen_by_the_run_and_told_by_both_checks(
    one_target: World, seconds: int
) -> None:
    world = one_target
    set_date(world.target, seconds)
    world.sync()
    assert abs(world.entry(world.target)["clock_offset"] - seconds) <= 2
    world.assert_equal()
    side = "ahead of" if seconds > 0 else "behind"
    for node, ahead in ((world.source, 0), (world.target, seconds)):
        code, stdout = checked_by(node, ahead)
        assert (code, f"clock: the target's is 2h {side} the source's" in stdout) == (WARNING, True)
        assert f"{world.target.name}_lag'=" in stdout
    # The next run sees it mended.
    world.sync()
    assert abs(world.entry(world.target)["clock_offset"]) <= 2
    world.assert_check(OK)


def test_a_clock_that_was_set_back_makes_no_old_snapshot_young(one_target: World) -> None:
    world = one_target
    world.add_keys("sync_max_delay = 2h")
    world.sync()
    # Three hours later runs fail still; the last of them is known here, not on the target.
    world.target.stop_ssh()
    failed = by_clock(world.source, 3 * HOUR + ABOUT, "zfs_sync_agent", "syncupdate")
    assert (failed.returncode, "Connection refused" in failed.stderr) == (1, True)
    code, stdout = checked_by(world.source, 3 * HOUR)
    assert (code, "late" in stdout) == (WARNING, True)
    # Now the source's clock is set back by two hours.
    code, stdout = checked_by(world.source, HOUR)
    assert (code, "clock: the last run ended 2h in the future" in stdout) == (WARNING, True)
    assert " warn " in by_clock(world.source, HOUR, "zfs_sync_agent", "status").stdout
    # And by more, on either node: then even the snapshot is not born yet.
    for node in world.nodes:
        code, stdout = checked_by(node, -2 * MINUTE)
        assert code == WARNING
        assert "in the future" in stdout
        assert f"{world.target.name}_lag'=" not in stdout


def test_a_run_by_a_clock_that_was_set_back_sends_what_is_newer(two_targets: World) -> None:
    world = two_targets
    source, (present, absent) = world.source, world.targets

    def run(content: str, expect: int) -> None:
        source.write(world.src, "file", content.encode())
        result = by_clock(source, -DAY - ABOUT, "zfs_sync_agent", "syncupdate")
        assert result.returncode == expect, result.stderr

    world.sync()
    first = int(world.prop(source, "creation", f"{world.src}@sent").value)
    absent.stop_ssh()
    # Now it is yesterday, for ZFS and for the agent.
    start_zfs_by(source, -DAY)
    run("second", expect=1)
    run("third", expect=1)
    assert int(world.prop(source, "creation", f"{world.src}@sent").value) < first - DAY // 2
    world.assert_equal(present)
    # Neither node takes a difference of the clocks for a young replica.
    assert checked_by(source, -DAY)[0] == WARNING
    code, stdout = checked_by(present, 0)
    assert (code, "clock: the target's is 24h ahead of the source's" in stdout) == (WARNING, True)
    world.watch()
    absent.start_ssh()
    run("fourth", expect=0)
    run("fifth", expect=0)
    world.assert_equal()
    # The clock is right again.
    start_zfs_by(source, 0)
    for content in ("sixth", "seventh"):
        source.write(world.src, "file", content.encode())
        world.sync()
    world.assert_equal()
    world.assert_tidy(*world.targets)
    world.assert_check(OK)
    assert not world.full_streams()
