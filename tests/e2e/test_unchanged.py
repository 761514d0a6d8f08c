"""Runs with skip_unchanged: what was not written to is neither snapshotted nor sent.

What was written is asked of the test's own zfs; that the data arrives is read from both sides.
"""

from __future__ import annotations

import pytest

from tests.e2e.world import OK, World
from tests.lab.process import eventually

CHANGES = {"snapshot", "send", "receive", "rename", "destroy", "rollback", "set"}


def changes(world: World) -> list[str]:
    """Return the zfs commands that changed or sent anything since `watch`."""
    calls = [call for node in world.nodes for call in node.calls("zfs") if call]
    return [call[0] for call in calls if call[0] in CHANGES and len(call) > 1]


@pytest.mark.needs("written")
def test_nothing_is_sent_where_nothing_was_written(one_target: World) -> None:
    world = one_target
    world.add_keys("skip_unchanged = True")
    world.sync()
    first = world.source.guids(world.src)
    taken = world.entry(world.target)["snapshot"]
    world.watch()
    assert "nothing was written since" in world.sync("-n").stdout
    assert world.entry(world.target)["equal_as_of"] is None
    eventually("a second went by", lambda: _is_later(world, taken["creation"]))
    world.sync()
    assert not changes(world)
    assert world.source.guids(world.src) == first
    for node in world.nodes:
        entry = world.entry(world.target, node)
        assert entry["snapshot"] == taken
        assert entry["equal_as_of"] > taken["creation"]
        assert (entry["last_success"]["mode"], entry["last_success"]["bytes"]) == ("none", 0)
    world.assert_check(OK)
    world.assert_check(OK, "--verify", nodes=[world.target])


def _is_later(world: World, epoch: int) -> bool:
    return int(world.source.run(["date", "+%s"]).stdout) > epoch + 1


@pytest.mark.needs("written")
def test_one_byte_in_one_child_is_sent_at_once(one_target: World) -> None:
    world = one_target
    world.add_keys("skip_unchanged = True")
    world.sync()
    world.source.write(f"{world.src}/b", "file", b"x")
    world.watch()
    world.sync()
    assert len(world.sends()) == 1
    world.assert_equal()
    world.assert_tidy(world.target)
    world.source.remove(f"{world.src}/b", "file")
    world.sync()
    assert len(world.sends()) == 2
    world.assert_equal()
    world.source.zfs("create", f"{world.src}/c")
    world.sync()
    world.assert_equal()


@pytest.mark.needs("written")
def test_what_was_written_to_the_replica_is_discarded_as_ever(one_target: World) -> None:
    world = one_target
    world.add_keys("skip_unchanged = True", "replica_readonly = False")
    pool = world.dst.partition("/")[0]
    world.target.zfs("set", f"mountpoint=/run/pools/{pool}", pool)
    world.sync()
    world.target.zfs("mount", "-a")
    world.target.write(world.dst, "stray", b"not from the source")
    world.target.zpool("sync")
    world.sync()
    assert f"discarding what was written to {world.dst}" in world.log()
    world.assert_equal()


@pytest.mark.needs("written")
def test_a_target_that_was_away_is_sent_what_it_lacks(two_targets: World) -> None:
    world = two_targets
    world.add_keys("skip_unchanged = True")
    world.sync()
    away, _ = world.targets
    world.source.write(world.src, "file", b"while one is away")
    away.cut()
    world.sync(expect=1)
    away.mend()
    world.sync()
    world.sync()
    world.assert_equal()
    world.assert_tidy(*world.targets)
    world.watch()
    world.sync()
    assert not changes(world)
    world.assert_check(OK)


@pytest.mark.lacks("written")
def test_where_zfs_does_not_tell_what_was_written_it_is_sent(one_target: World) -> None:
    world = one_target
    world.add_keys("skip_unchanged = True")
    world.sync()
    world.watch()
    world.sync()
    assert len(world.sends()) == 1
    assert world.entry(world.target)["equal_as_of"] is None
    world.assert_check(OK)
