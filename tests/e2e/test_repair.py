"""syncresync, syncfull and forget: what a person asks for, and what no consent covers."""

from __future__ import annotations

import os
import re

import pytest

from tests.e2e.conftest import OSOL2, SOURCE, T1, T2
from tests.e2e.test_refusals import everything, write_on_replica
from tests.e2e.world import CONFIG_DIR, MARK, OK, STATE_DIR, World

pytestmark = pytest.mark.zfs

SWAP = "zfs_sync:swap"


def beside(world: World) -> list[str]:
    """Return the names of what is in the target's pool beside dst, relative to dst."""
    pool = world.dst.partition("/")[0]
    names = [pool + name for name in world.datasets(world.target, pool)]
    return [n[len(world.dst) :] for n in names if n.startswith(f"{world.dst}.")]


def lose_base(world: World) -> None:
    """Leave nothing that both sides hold: the source's @sent is gone."""
    world.source.zfs("destroy", "-r", f"{world.src}@sent")
    world.source.write(f"{world.src}/a", "file", b"second")


# --- syncfull -----------------------------------------------------------------------------------


def test_a_broken_chain_is_mended_by_syncfull_and_the_old_copy_goes_last(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    lose_base(world)
    broken = world.sync(expect=3)
    assert f"--node {OSOL2} syncfull" in broken.stderr
    before = everything(world.target)
    planned = world.agent("--node", OSOL2, "--dry-run", "syncfull").stdout
    assert f"{world.dst}.full" in planned
    assert everything(world.target) == before
    world.watch()
    said = world.agent("--node", OSOL2, "syncfull").stdout
    assert "takes the place of" in said
    world.assert_check(OK)
    assert beside(world) == []
    assert world.prop(world.target, SWAP, world.dst).value == "-"
    renames = [call for call in world.target.calls("zfs") if call[:1] in (["rename"], ["destroy"])]
    at = [(call[0], *call[-2:]) for call in renames]
    old, full = f"{world.dst}.old", f"{world.dst}.full"
    assert at.index(("rename", world.dst, old)) < at.index(("rename", full, world.dst))
    assert at.index(("rename", full, world.dst)) < at.index(("destroy", "-r", old))
    world.source.write(world.src, "file", b"third")
    world.sync()
    world.assert_equal()
    world.assert_tidy(world.target)


def test_where_the_replica_lost_its_snapshots_what_the_block_says_mends_it(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    world.target.zfs("destroy", "-r", f"{world.dst}@sent")
    said = world.sync(expect=3).stderr
    advice = re.search(rf"on {re.escape(world.target.name)}: zfs (rename .*); then (.*)", said)
    assert advice, said
    world.target.zfs(*advice[1].split())
    world.agent(*advice[2].split()[1:])
    world.sync()
    world.assert_equal()
    world.assert_check(OK)
    assert world.exists(world.target, f"{world.dst}.mine")


def test_syncfull_refuses_where_the_old_copy_holds_foreign_data(one_target: World) -> None:
    world = one_target
    world.sync()
    lose_base(world)
    world.target.zfs("create", f"{world.dst}/mine")
    world.target.zfs("snapshot", f"{world.dst}/a@theirs")
    before = everything(world.target)
    for action in (["syncfull"], ["--in-place", "syncfull"]):
        refused = world.agent("--node", OSOL2, *action, expect=3)
        assert f"{world.dst}/mine" in refused.stderr
        assert f"{world.dst}/a@theirs" in refused.stderr
    assert everything(world.target) == before


def test_syncfull_says_how_much_room_is_missing_and_in_place_does_without(
    one_target: World,
) -> None:
    world = one_target
    world.source.write(f"{world.src}/b", "big", os.urandom(60 << 20))
    world.sync()
    lose_base(world)
    # What is left of the target's pool is less than a second copy takes.
    pool = world.dst.partition("/")[0]
    world.target.zfs("create", "-o", "mountpoint=none", f"{pool}/filler")
    free = int(world.target.zfs("get", "-Hp", "-o", "value", "available", pool))
    world.target.zfs("set", f"reservation={free - 40 * 1024 * 1024}", f"{pool}/filler")
    before = everything(world.target)
    refused = world.agent("--node", OSOL2, "syncfull", expect=3)
    assert "are missing" in refused.stderr
    assert "--in-place" in refused.stderr
    assert everything(world.target) == before
    planned = world.agent("--node", OSOL2, "--in-place", "--dry-run", "syncfull").stdout
    assert f"{world.dst}/b" in planned
    assert everything(world.target) == before
    world.agent("--node", OSOL2, "--in-place", "syncfull")
    world.sync()
    world.assert_equal()
    world.assert_check(OK)


def test_in_place_is_the_one_consent_for_a_dataset_that_is_no_replica(one_target: World) -> None:
    world = one_target
    world.target.zfs("create", world.dst)
    world.target.zfs("create", f"{world.dst}/theirs")
    write_on_replica(world.target, world.dst, b"years of work")
    world.sync(expect=3)
    before = everything(world.target)
    refused = world.agent("--node", OSOL2, "syncfull", expect=3)
    assert "--in-place" in refused.stderr
    assert everything(world.target) == before
    said = world.agent("--node", OSOL2, "--in-place", "syncfull").stdout
    assert f"{world.dst}/theirs" in said
    world.sync()
    world.assert_equal()
    world.assert_check(OK)


# --- syncresync ---------------------------------------------------------------------------------


def test_a_source_that_was_rolled_back_is_followed_by_syncresync(one_target: World) -> None:
    world = one_target
    world.source.zfs("snapshot", "-r", f"{world.src}@hourly")
    world.add_keys("intermediary = True")
    world.sync()
    world.source.write(f"{world.src}/a", "file", b"second")
    world.sync()
    held = world.target.checksums(f"{world.dst}/a@sent")
    world.source.zfs("rollback", "-r", f"{world.src}/a@hourly")
    broken = world.sync(expect=3)
    assert "syncresync" in broken.stderr
    world.watch()
    said = world.agent("--node", OSOL2, "syncresync").stdout
    assert "rolled back to @hourly" in said
    (aside,) = [name for name in beside(world) if name.count("/") == 0]
    assert world.target.checksums(f"{world.dst}{aside}/a") == held
    assert not world.full_streams()
    world.sync()
    world.assert_equal()
    world.target.zfs("destroy", "-r", f"{world.dst}{aside}")
    world.sync()
    world.assert_tidy(world.target)
    world.assert_check(OK)


def test_what_was_written_on_a_replica_is_kept_by_syncresync_with_its_local_properties(
    one_target: World,
) -> None:
    world = one_target
    world.add_keys("on_divergence = refuse")
    world.sync()
    write_on_replica(world.target, f"{world.dst}/a", b"mine")
    world.target.zfs("set", "compression=gzip-9", f"{world.dst}/a")
    written = world.target.checksums(f"{world.dst}/a")
    world.source.write(f"{world.src}/a", "file", b"second")
    assert "syncresync" in world.sync(expect=3).stderr
    world.agent("--node", OSOL2, "syncresync")
    world.assert_equal()
    (aside,) = [name for name in beside(world) if name.count("/") == 0]
    assert world.target.checksums(f"{world.dst}{aside}/a") == written
    assert world.prop(world.target, "compression", f"{world.dst}/a") == ("gzip-9", "local")
    assert world.prop(world.target, MARK, world.dst).source == "local"
    world.assert_check(OK)


def test_a_replica_without_its_mark_is_taken_back_by_syncresync(one_target: World) -> None:
    world = one_target
    world.sync()
    world.target.zfs("inherit", MARK, world.dst)
    assert "syncresync" in world.sync(expect=3).stderr
    world.agent("--node", OSOL2, "--discard", "syncresync")
    world.assert_equal()
    world.sync()
    world.assert_check(OK)


def test_discard_refuses_what_the_agent_did_not_take(one_target: World) -> None:
    world = one_target
    world.add_keys("on_divergence = refuse")
    world.sync()
    write_on_replica(world.target, f"{world.dst}/a", b"mine")
    world.target.zfs("snapshot", f"{world.dst}/a@theirs")
    before = everything(world.target)
    refused = world.agent("--node", OSOL2, "--discard", "syncresync", expect=3)
    assert "@theirs" in refused.stderr
    assert everything(world.target) == before


# --- forget -------------------------------------------------------------------------------------


def test_a_node_that_left_the_file_is_forgotten(two_targets: World) -> None:
    world = two_targets
    world.sync()
    gone = world.targets[1]
    gone.cut()
    world.source.write(world.src, "file", b"second")
    world.sync(expect=1)
    gone.mend()
    refused = world.agent("forget", world.service, world.rid, T2, expect=2)
    assert "take it out there first" in refused.stderr
    world.configure(f"[sync#1]\ntype = zfs\nsrc@{SOURCE} = tank/data\ntarget = {T1}\n")
    assert T2 in world.retained()
    before = everything(gone)
    shown = world.agent("--dry-run", "forget", world.service, world.rid, T2).stdout
    assert "zfs destroy" in shown
    assert T2 in world.retained()
    world.agent("forget", world.service, world.rid, T2)
    assert T2 not in world.retained()
    assert world.snapshots(world.source, world.src) == ["sent"]
    assert world.state_text(gone) is None
    assert everything(gone) == before
    assert T2 not in world.state(world.source)["targets"]
    world.sync()
    world.assert_equal(world.targets[0])


def test_a_service_that_is_no_longer_configured_is_forgotten(one_target: World) -> None:
    world = one_target
    world.sync()
    for node in world.nodes:
        node.path(f"{CONFIG_DIR}/{world.service}.conf").unlink()
    said = world.agent("forget", world.service, world.rid).stdout
    assert f"zfs destroy -r {world.src}@sent" in said
    for node in world.nodes:
        assert world.state_text(node) is None
        assert not [file for file in node.path(STATE_DIR).iterdir() if "sync#1" in file.name]
    assert world.snapshots(world.source, world.src) == ["sent"]
    assert world.snapshots(world.target, world.dst) == ["sent"]
