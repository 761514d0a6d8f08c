"""What a run is about to discard on a replica is told beforehand, by name and by bytes.

Needs a ZFS that counts what was written.
"""

from __future__ import annotations

import os
import re

import pytest

from tests.e2e.world import OK, World

pytestmark = [pytest.mark.zfs, pytest.mark.needs("written")]

MANY = 50
POOL = "osol2_z3_root"
WRITTEN = ("/c07", "/c31", "/c49")
GONE = ("/c11", "/c42")
LINES = re.compile(r"(?:discarding|destroying) .*")


@pytest.fixture
def wide(one_target: World) -> World:
    """A tree of 50 datasets, synchronized to a replica that is mounted and may be written to."""
    world = one_target
    world.add_keys("replica_readonly = False")
    script = f'for i in $(seq -w {MANY - 1}); do zfs create "$0/c$i" || exit; done'
    world.source.run(["/bin/sh", "-c", script, world.src])
    world.target.zfs("set", f"mountpoint=/run/pools/{POOL}", POOL)
    world.sync()
    world.target.zfs("mount", "-a")
    return world


def written(world: World, child: str) -> int:
    return int(world.prop(world.target, "written", f"{world.dst}{child}").value)


def test_discards_of_a_wide_tree_are_foretold_by_name_and_bytes(wide: World) -> None:
    world = wide
    assert len(world.datasets(world.target, world.dst)) == 3 + MANY - 1
    for child in GONE:
        world.source.zfs("destroy", "-r", f"{world.src}{child}")
    world.sync()
    assert world.surplus(world.target) == list(GONE)
    for number, child in enumerate((*WRITTEN, GONE[0]), start=1):
        world.target.write(f"{world.dst}{child}", "mine", os.urandom(100_000 * number))
    world.target.zpool("sync", POOL)
    sizes = {child: written(world, child) for child in (*WRITTEN, GONE[0])}
    assert all(size > 100_000 for size in sizes.values())
    wanted = {
        f"discarding what was written to {world.dst}{child}: {sizes[child]} bytes"
        for child in WRITTEN
    }
    gone = "gone on the source since the run before"
    wanted |= {
        f"destroying {world.dst}{GONE[0]}, {gone} ({sizes[GONE[0]]} bytes written there are lost)",
        f"destroying {world.dst}{GONE[1]}, {gone}",
    }
    before = world.picture(world.target)
    world.source.write(world.src, "file", b"second")
    shown = world.agent("--dry-run", "syncupdate").stdout
    assert set(LINES.findall(shown)) == wanted
    assert world.picture(world.target) == before
    world.sync()
    told = {line for line in LINES.findall(world.log()) if "WARNING" not in line}
    assert told == wanted
    assert world.surplus(world.target) == []
    world.assert_equal()
    world.assert_check(OK)


def test_a_replica_that_is_read_between_the_runs_goes_on(wide: World) -> None:
    world = wide
    world.target.zfs("set", "atime=on", world.dst)
    world.target.zfs("set", "relatime=off", world.dst)
    for number in range(3):
        for child in ("", "/a", "/b"):
            world.target.checksums(f"{world.dst}{child}")  # reads the files where they are mounted
        world.target.zpool("sync", POOL)
        world.source.write(f"{world.src}/a", "file", b"again %d" % number)
        world.sync()
        world.assert_equal()
    assert f"discarding what was written to {world.dst}" in world.log()
    assert f"discarding what was written to {world.dst}/c" not in world.log()
    world.assert_check(OK)
