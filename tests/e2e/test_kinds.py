"""Trees that hold more than filesystems: volumes, clones, properties, other people's snapshots."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.e2e.conftest import make_tree
from tests.e2e.world import OK, World
from tests.lab.process import eventually

pytestmark = pytest.mark.zfs

DATASETS, MANY = 20, 2000


def volume_sum(world: World, on_source: bool, name: str) -> str:
    """Return the sha256 of a snapshot of a volume, read through a clone of it."""
    node = world.source if on_source else world.target
    pool = name.partition("/")[0]
    node.zfs("clone", name, f"{pool}/copy")
    device = f"/dev/zvol/{pool}/copy"
    read = ["/usr/local/sbin/guest", "sha256sum", device]
    try:
        eventually(
            "the volume's device is there", lambda: not node.run(read, check=False).returncode, 20
        )
        return node.run(read).stdout.split()[0]
    finally:
        node.zfs("destroy", f"{pool}/copy")


@pytest.mark.needs("volumes")
def test_a_volume_in_the_tree_is_replicated(one_target: World) -> None:
    world = one_target
    volume = f"{world.src}/vol"
    world.source.zfs("create", "-V", "8M", volume)
    world.watch()
    device = f"/dev/zvol/{volume}"
    there = ["/usr/local/sbin/guest", "test", "-b", device]
    eventually("the device is there", lambda: not world.source.run(there, check=False).returncode)
    for letter in "ab":
        fill = f"head -c 3000000 /dev/zero | tr '\\0' {letter} >{device}"
        world.source.run(["/usr/local/sbin/guest", "/bin/sh", "-c", fill])
        world.source.write(world.src, "file", letter.encode())
        world.sync()
        sums = [
            volume_sum(world, True, f"{volume}@sent"),
            volume_sum(world, False, f"{world.dst}/vol@sent"),
        ]
        assert sums[0] == sums[1]
    assert len(world.full_streams()) == 1
    assert world.prop(world.target, "volsize", f"{world.dst}/vol").value == str(8 << 20)
    world.assert_check(OK)


@pytest.mark.parametrize("when", ["before the first sync", "later"])
def test_a_clone_in_the_tree_is_replicated_with_its_own_data(one_target: World, when: str) -> None:
    world = one_target
    if when == "later":
        world.sync()
    world.source.zfs("snapshot", f"{world.src}/a@origin")
    world.source.zfs("clone", f"{world.src}/a@origin", f"{world.src}/clone")
    world.source.write(f"{world.src}/clone", "file", b"of the clone")
    world.sync()
    world.assert_equal()
    world.source.write(f"{world.src}/clone", "file", b"of the clone, changed")
    world.watch()
    world.sync()
    world.assert_equal()
    assert not world.full_streams()
    world.assert_check(OK)


def test_properties_that_a_user_set_travel(one_target: World) -> None:
    world = one_target
    world.source.zfs("set", "com.example:owner=alice", f"{world.src}/a")
    world.source.zfs("set", "compression=on", world.src)
    world.sync()
    assert world.prop(world.target, "com.example:owner", f"{world.dst}/a") == ("alice", "received")
    world.source.zfs("set", "com.example:owner=bob", f"{world.src}/a")
    world.sync()
    assert world.prop(world.target, "com.example:owner", f"{world.dst}/a") == ("bob", "received")
    assert world.prop(world.target, "compression", world.dst) == ("on", "received")


def test_thousands_of_other_snapshots_are_never_listed(
    one_target: World, record_property: Callable[[str, object], None]
) -> None:
    world = one_target
    children = [f"{world.src}/c{number}" for number in range(DATASETS - 3)]
    world.source.run(["/bin/sh", "-c", 'for i; do zfs create "$i" || exit; done', "sh", *children])
    world.sync()

    def run() -> tuple[int, float]:
        world.source.write(world.src, "file", str(time.monotonic()).encode())
        world.watch()
        begun = time.monotonic()
        world.sync()
        calls = [call for node in world.nodes for call in node.calls("zfs")]
        assert not [call for call in calls if "snapshot" in call and call[0] == "list"]
        return len(calls), time.monotonic() - begun

    few = run()
    script = 'for i in $(seq "$1"); do zfs snapshot -r "$0@auto-$i" || exit; done'
    world.source.run(["/bin/sh", "-c", script, world.src, str(MANY // DATASETS)], timeout=300)
    many = run()
    assert many[0] == few[0]
    record_property("seconds with few and with many snapshots", f"{few[1]:.2f}, {many[1]:.2f}")
    assert len(world.source.guids(world.src)) == MANY + DATASETS
    assert world.snapshots(world.target, world.dst) == ["sent"]
    world.assert_check(OK)


@pytest.mark.needs("exclude")
def test_a_subtree_with_a_mountpoint_is_received_without_it(one_target: World) -> None:
    world = one_target
    world.add_keys("receive_options = -x mountpoint -o com.example:site=b")
    world.source.zfs("set", "mountpoint=/run/clones/here", f"{world.src}/a")
    make_tree(world.source, f"{world.src}/c")
    world.sync()
    world.assert_equal()
    assert world.prop(world.target, "mountpoint", f"{world.dst}/a").value != "/run/clones/here"
    assert world.prop(world.target, "com.example:site", f"{world.dst}/c").value == "b"
    world.source.write(f"{world.src}/a", "file", b"second")
    world.sync()
    world.assert_equal()
