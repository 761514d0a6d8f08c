"""Failures of the field where what is there is not what somebody thinks: the worst case of each.

Where something ends half-way, see test_field_cut.py. The table in field.py says which failure is
meant, and which of them other files hold.
"""

from __future__ import annotations

import os
import re
import time

import pytest

from tests.e2e.conftest import make_tree
from tests.e2e.test_first import reshape
from tests.e2e.test_refusals import assert_refused
from tests.e2e.world import CRITICAL, OK, WARNING, World
from tests.lab import Node
from tests.lab.host import SYSTEM_PATH
from tests.lab.process import eventually

pytestmark = pytest.mark.zfs

ALL = ("", "/a", "/b")
LIVE = "/run/clones/live"

# Stands for a newer zfs: its usage text has receive -u, and its receive takes that.
RECEIVED = "/run/zfs_sync/received"
NEWER_ZFS = f"""\
#!/bin/sh
PATH={SYSTEM_PATH}
[ $# -gt 0 ] || exec zfs 2>&1 | sed 's/^\\treceive \\[-vnF/&u/'
[ "$1" = receive ] || exec zfs "$@"
echo "$*" >>{RECEIVED}
shift 2
exec zfs receive "$@"
"""


def change(world: World, content: str) -> None:
    for child in ALL:
        world.source.write(world.src + child, "file", f"{content} of {child}".encode())


def files(node: Node, root: str, snapshot: str = "sent") -> list[dict[str, str]]:
    """Return the checksums of all files of one snapshot, dataset by dataset."""
    return [node.checksums(f"{root}{child}@{snapshot}") for child in ALL]


# --- the base is not the base -------------------------------------------------------------------


def test_b01_a_base_with_our_name_and_mark_and_another_guid_lets_nothing_be_written(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    held = files(world.target, world.dst)
    change(world, "after the restore")
    own = f"zfs_sync:rid={world.service}/{world.rid}"
    world.source.zfs("destroy", "-r", f"{world.src}@sent")
    world.source.zfs("snapshot", "-r", "-o", own, f"{world.src}@sent")
    world.watch()
    assert_refused(world, "chain broken", untouched=world.nodes, status=["broken"])
    assert not world.receives()
    assert files(world.target, world.dst) == held


def test_b01_a_source_that_was_made_anew_under_its_name_leaves_the_replica_whole(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    held = files(world.target, world.dst)
    world.source.zfs("destroy", "-r", world.src)
    make_tree(world.source, world.src, "a", "b")
    world.watch()
    assert_refused(world, "chain broken", untouched=world.nodes, status=["broken"])
    assert not world.receives()
    assert files(world.target, world.dst) == held


def test_b13_a_child_rolled_back_on_the_source_keeps_its_newer_copy_and_the_others_go_on(
    one_target: World,
) -> None:
    world = one_target
    world.add_keys("intermediary = True")
    world.source.zfs("snapshot", "-r", f"{world.src}@before")
    change(world, "second")
    world.sync()
    held = world.target.guids(f"{world.dst}/a")
    kept = world.target.checksums(f"{world.dst}/a@sent")
    world.source.zfs("rollback", "-r", f"{world.src}/a@before")
    world.source.write(world.src, "file", b"third")
    stderr = world.sync(expect=3).stderr
    assert f"{world.src}/a" in stderr
    assert world.target.guids(f"{world.dst}/a") == held
    assert world.target.checksums(f"{world.dst}/a@sent") == kept
    sums = world.source.checksums(f"{world.src}@sent")
    assert world.target.checksums(f"{world.dst}@sent") == sums
    world.assert_check(CRITICAL)
    # What the block says: only this child is sent in full, and its old copy is still there.
    assert "next:" in stderr
    world.target.zfs("rename", f"{world.dst}/a", "osol2_z3_root/a-before")
    world.watch()
    world.sync()
    assert [call[-1] for call in world.full_streams()] == [f"{world.src}/a@tosend"]
    world.assert_equal()
    assert world.target.checksums("osol2_z3_root/a-before@sent") == kept
    world.assert_check(OK)


def test_b13_a_source_rolled_back_is_left_alone_until_syncresync(
    one_target: World,
) -> None:
    world = one_target
    world.add_keys("intermediary = True")
    world.source.zfs("snapshot", "-r", f"{world.src}@before")
    change(world, "second")
    world.sync()
    for child in ALL:
        world.source.zfs("rollback", "-r", f"{world.src}{child}@before")
    block = assert_refused(world, "chain broken", untouched=world.nodes, status=["broken"])
    mend = ("-s", world.service, "--rid", world.rid, "--node", world.target.name, "syncresync")
    assert " ".join(("zfs_sync_agent", *mend)) in block
    world.watch()
    world.agent(*mend)
    world.sync()
    world.assert_equal()
    assert not world.full_streams()
    world.assert_check(OK)


def test_b15_a_base_pruned_from_one_child_is_told_and_the_others_go_on(one_target: World) -> None:
    world = one_target
    world.sync()
    world.source.zfs("destroy", f"{world.src}/a@sent")
    held = world.target.guids(f"{world.dst}/a")
    world.source.write(world.src, "file", b"second")
    world.watch()
    stderr = world.sync(expect=3).stderr
    assert f"{world.src}/a" in stderr
    assert not world.full_streams()
    assert world.target.guids(f"{world.dst}/a") == held
    sums = world.source.checksums(f"{world.src}@sent")
    assert world.target.checksums(f"{world.dst}@sent") == sums
    world.assert_check(CRITICAL)


def test_b12_a_child_that_lost_its_base_on_the_target_is_not_destroyed(one_target: World) -> None:
    world = one_target
    world.sync()
    world.target.zfs("destroy", f"{world.dst}/a@sent")
    held = world.target.checksums(f"{world.dst}/a")
    change(world, "second")
    # A dataset as young as B, and without a snapshot, could be one that is being received.
    created = int(world.prop(world.target, "creation", f"{world.dst}/a").value)
    eventually("the child is older than B will be", lambda: time.time() > created + 3)
    for _ in range(2):
        world.sync(expect=3)
        assert world.target.checksums(f"{world.dst}/a") == held
        world.assert_check(CRITICAL)
    world.target.zfs("rename", f"{world.dst}/a", "osol2_z3_root/a-old")
    world.watch()
    world.sync()
    assert [call[-1] for call in world.full_streams()] == [f"{world.src}/a@tosend"]
    world.assert_equal()
    assert world.target.checksums("osol2_z3_root/a-old") == held
    world.assert_check(OK)


# --- where it lands -----------------------------------------------------------------------------


def test_b02_a_first_sync_onto_a_mounted_dataset_leaves_it_mounted_and_whole(
    one_target: World,
) -> None:
    world = one_target
    world.target.zfs("create", "-o", f"mountpoint={LIVE}", world.dst)
    world.target.write(world.dst, "years of work", b"mine" * 10000)
    held = world.target.checksums(world.dst)
    world.watch()
    assert_refused(world, "not a replica", untouched=[world.target])
    assert not world.receives()
    assert world.prop(world.target, "mounted", world.dst).value == "yes"
    assert world.target.checksums(world.dst) == held


def test_b04_a_whole_pool_goes_below_another_pool_and_spares_what_is_beside_it(
    one_target: World,
) -> None:
    world = one_target
    pool = "osol2_z3_root"
    world.target.zfs("create", f"{pool}/precious")
    world.target.zfs("snapshot", f"{pool}/precious@sent")
    held = world.target.guids(f"{pool}/precious")
    # A pool's root has a mountpoint of its own, and that would travel.
    world.source.zfs("set", "mountpoint=none", "osol1_z3_root")
    reshape(world, "osol1_z3_root", f"{pool}/copy")
    for number in range(3):
        world.sync()
        extra = world.surplus(world.target)
        assert extra == (["/data/b"] if number == 1 else [])
        world.assert_equal(extra=extra)
        if number == 0:
            world.source.zfs("destroy", "-r", "osol1_z3_root/data/b")
    assert world.datasets(world.target, pool) == [
        *("", "/copy", "/copy/data", "/copy/data/a", "/precious"),
    ]
    assert world.target.guids(f"{pool}/precious") == held
    world.assert_check(OK)


def test_b17_a_mountpoint_that_the_target_uses_is_refused_before_anything_is_received(
    one_target: World,
) -> None:
    world = one_target
    live = "osol2_z3_root/live"
    world.target.zfs("create", "-o", f"mountpoint={LIVE}", live)
    world.target.write(live, "file", b"in use")
    world.source.zfs("set", f"mountpoint={LIVE}", f"{world.src}/a")
    held = world.target.checksums(live)
    world.watch()
    words = (f"{world.src}/a", LIVE, live, "receive_options = -x mountpoint")
    assert_refused(world, *words, untouched=[world.target])
    assert not world.receives()
    assert world.prop(world.target, "mounted", live).value == "yes"
    # Where receive has no -x: as the block says.
    world.source.zfs("inherit", "mountpoint", f"{world.src}/a")
    world.sync()
    world.assert_equal()
    assert world.target.checksums(live) == held
    world.assert_check(OK)


@pytest.mark.needs("unmounted")
def test_b17_nothing_that_is_received_is_mounted(one_target: World) -> None:
    world = one_target
    pool = world.dst.partition("/")[0]
    world.target.zfs("set", f"mountpoint=/run/pools/{pool}", pool)
    world.watch()
    world.sync()
    change(world, "second")
    world.sync()
    assert all("-u" in call for call in world.receives())
    assert len(world.receives()) == 2
    held = [f"{world.dst}{name}" for name in world.datasets(world.target, world.dst)]
    assert {world.prop(world.target, "mounted", name).value for name in held} == {"no"}


@pytest.mark.lacks("unmounted")
def test_b17_where_receive_knows_u_nothing_that_is_received_is_mounted(one_target: World) -> None:
    world = one_target
    zfs = world.target.root / "bin" / "zfs"
    zfs.write_text(NEWER_ZFS)
    zfs.chmod(0o755)
    for content in ("second", "third"):
        world.sync()
        change(world, content)
    received = world.target.inside(RECEIVED).read_text().splitlines()
    assert received == ["receive -u -d osol2_z3_root"] * 2


# --- what travels -------------------------------------------------------------------------------


def test_b18_a_quota_and_a_reservation_that_travel_stop_nothing(one_target: World) -> None:
    world = one_target
    # The target has no room for what the child reserves.
    free = int(world.prop(world.target, "available", "osol2_z3_root").value)
    taken = f"refreservation={free - (32 << 20)}"
    world.target.zfs("create", "-o", taken, "osol2_z3_root/other")
    world.source.zfs("set", "refreservation=48M", f"{world.src}/a")
    world.source.zfs("set", "quota=3M", f"{world.src}/b")
    world.sync()
    world.assert_equal()
    # More data than the quota that the replica has by now.
    world.source.zfs("set", "quota=100M", f"{world.src}/b")
    world.source.write(f"{world.src}/b", "large", os.urandom(8 << 20))
    world.sync()
    world.assert_equal()
    world.assert_check(OK)


@pytest.mark.lacks("raw")
def test_b19_a_stream_that_cannot_be_raw_is_not_sent_at_all(one_target: World) -> None:
    world = one_target
    world.add_keys("send_options = -w")
    world.watch()
    stderr = world.sync(expect=3).stderr
    assert (
        f"send_options asks for -w, which zfs send on {world.source.name} does not have" in stderr
    )
    assert not world.sends()
    assert not world.source.guids(world.src)
    assert world.datasets(world.target, "osol2_z3_root") == [""]
    assert world.entry(world.target)["status"] == "refused"


# --- what hangs, and what time it is ------------------------------------------------------------


def test_b21_a_receive_that_hangs_ends_the_run_and_leaves_nothing_running(
    one_target: World,
) -> None:
    world = one_target
    world.add_keys("stall_timeout = 2")
    world.sync()
    world.source.write(f"{world.src}/a", "large", os.urandom(16 << 20))
    gate = world.gate(world.target, "zfs", ["receive", "-d"])
    stderr = world.sync(expect=1).stderr
    assert "stalled: no byte for 2 s" in stderr
    assert not world.source.strays()
    gate.open()
    eventually("nothing is left on the target", lambda: not world.target.strays(), 30)
    world.target.clear_faults()
    world.source.release_holds()
    world.sync()
    world.assert_equal()
    world.assert_check(OK)


def test_b24_the_age_is_that_of_the_snapshot_in_whatever_zone_the_nodes_are(
    one_target: World,
) -> None:
    world = one_target
    west, east = {"TZ": "WEST+11"}, {"TZ": "EAST-13EASTSUMMER,M9.5.0,M4.1.0"}
    world.agent("syncupdate", env=west)
    created = int(world.prop(world.source, "creation", f"{world.src}@sent").value)
    for node in world.nodes:
        assert world.entry(world.target, on=node)["snapshot"]["creation"] == created
        for zone in (west, east):
            result = node.check(env=zone)
            assert result.returncode == OK, result.stdout
            lag = re.search(r"_lag'?=(\d+)s", result.stdout)
            assert lag, result.stdout
            assert int(lag[1]) < 60
    assert abs(world.entry(world.target)["clock_offset"]) <= 1


@pytest.mark.parametrize("hours", [2, -2])
def test_b24_a_target_with_another_clock_is_told_and_never_ok(
    one_target: World, hours: int
) -> None:
    world = one_target
    wrong = f'echo $(($("$0" "$@") + {hours * 3600}))'
    world.target.fault("date", ["+%s"], wrong, when="instead")
    world.sync()
    world.assert_equal()
    assert abs(world.entry(world.target)["clock_offset"] - hours * 3600) <= 2
    for node in world.nodes:
        code, stdout = world.check(node)
        assert code == WARNING
        assert "clock" in stdout
    world.target.clear_faults()
    world.sync()
    world.assert_check(OK)
