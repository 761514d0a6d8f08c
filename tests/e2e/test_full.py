"""No room left: in the state folder of either side, in the source's pool.

A full pool of the target is in test_trouble: test_a_full_target_pool_is_told_and_recovers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Nodes, make_tree
from tests.e2e.world import OK, STATE_DIR, WARNING, World, ended
from tests.lab import Node, Pool
from tests.lab.errors import CommandError

pytestmark = pytest.mark.zfs

STATE_BALLAST = f"{STATE_DIR}/ballast"
POOL_BALLAST = "tank/ballast"


def fill(node: Node, ballast: str) -> None:
    """Write until there is no room."""
    result = node.run(["sh", "-c", f"cat /dev/zero >>{ballast}"], check=False)
    assert "No space left" in result.stderr


def fill_pool(node: Node) -> None:
    """Write to the ballast until not even a little has room."""
    for number, size in enumerate((64 << 20, 1 << 20, 1 << 10)):
        with pytest.raises((CommandError, OSError), match="No space left"):
            node.write(POOL_BALLAST, str(number), os.urandom(size))


def make_room(node: Node, ballast: str) -> None:
    node.inside(ballast).write_bytes(b"")


@pytest.fixture
def world(one_target: World) -> Iterator[World]:
    """Both nodes have a small state folder of its own file system."""
    for node in one_target.nodes:
        node.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", STATE_DIR])
    yield one_target
    for node in one_target.nodes:
        node.run(["umount", "--lazy", STATE_DIR])


def entries(node: Node) -> list[str]:
    """Return what the state folder shows of state files, temporary ones among them."""
    names = [file.name for file in node.inside(STATE_DIR).iterdir()]
    return sorted(name for name in names if "zfs_state" in name and not name.endswith(".lock"))


def is_told(stderr: str, *words: str) -> None:
    """Assert that a block says what, where, what was left alone and what to do."""
    for word in (*words, "untouched:", "next:"):
        assert word in stderr, stderr


def recovers(world: World) -> None:
    world.sync()
    world.assert_equal()
    world.assert_tidy(*world.targets)
    world.assert_check(OK)
    for target in world.targets:
        assert world.entry(target, on=target) == world.entry(target)


def test_a_full_state_folder_of_the_source_is_told_and_recovers(world: World) -> None:
    world.sync()
    world.watch()
    state, held = world.state_text(world.source), world.target.guids(world.dst)
    world.source.write(world.src, "file", b"second")
    fill(world.source, STATE_BALLAST)
    for _ in range(2):
        is_told(world.sync(expect=1).stderr, "state file", STATE_DIR, "No space left")
        # What cannot be recorded is not done.
        assert world.target.guids(world.dst) == held
        assert world.state_text(world.source) == state
        assert len(entries(world.source)) == 1
        world.assert_check(OK)
    make_room(world.source, STATE_BALLAST)
    recovers(world)
    assert not world.full_streams()


def test_a_state_folder_that_is_full_before_the_first_run_is_told_and_recovers(
    world: World,
) -> None:
    fill(world.source, STATE_BALLAST)
    is_told(world.sync(expect=1).stderr, STATE_DIR, "No space left")
    assert not world.exists(world.target, world.dst)
    assert world.check(world.source).code == WARNING
    make_room(world.source, STATE_BALLAST)
    recovers(world)


def test_a_failure_that_cannot_be_recorded_is_told_all_the_same(world: World) -> None:
    world.sync()
    fill(world.source, STATE_BALLAST)
    world.target.stop_ssh()
    assert "Connection refused" in world.sync(expect=1).stderr
    world.target.start_ssh()
    world.target.zfs("rename", world.dst, f"{world.dst}.moved")
    assert "chain broken" in world.sync(expect=3).stderr


def test_a_full_state_folder_of_the_target_is_told_and_recovers(world: World) -> None:
    world.sync()
    world.watch()
    state = world.state_text(world.target)
    world.source.write(world.src, "file", b"second")
    fill(world.target, STATE_BALLAST)
    for _ in range(2):
        is_told(world.sync(expect=1).stderr, "state file", world.target.name, "No space left")
        # The data arrived; the check there knows an older state, and no half of one.
        world.assert_equal()
        assert world.state_text(world.target) == state
        assert len(entries(world.target)) == 1
        world.assert_check(OK)
    make_room(world.target, STATE_BALLAST)
    recovers(world)
    assert not world.full_streams()


@pytest.fixture
def small_source(lab: Nodes) -> World:
    """A source whose pool has room for little, and two targets."""
    source, *targets = lab(
        {
            "src.example.com": {"tank": Pool(size_mib=64)},
            "one.example.com": {"tank": "target"},
            "two.example.com": {"tank": "target"},
        }
    )
    head = "[sync#1]\ntype = zfs\nsrc@src.example.com = tank/data\n"
    text = f"{head}target = one.example.com two.example.com\n"
    world = World(source, targets, text, src="tank/data", dst="tank/data")
    make_tree(source, world.src, "a")
    source.zfs("create", "tank/ballast")
    world.sync()
    world.watch()
    return world


def test_a_source_without_room_for_a_snapshot_is_told_and_recovers(small_source: World) -> None:
    world = small_source
    before = world.source.guids(world.src)
    fill_pool(world.source)
    is_told(
        world.sync(expect=1).stderr, "zfs snapshot", world.source.name, "tank/data", "out of space"
    )
    assert world.source.guids(world.src) == before
    for target in world.targets:
        entry = world.entry(target)
        assert (entry["status"], entry["snapshot"]["guid"] in before.values()) == ("failed", True)
        assert "out of space" in entry["last_attempt"]["error"]
    world.source.write(POOL_BALLAST, "0", b"")
    world.source.write(world.src, "file", b"second")
    recovers(world)
    assert not world.full_streams()


def get_full_while_one_is_away(world: World) -> tuple[str, str]:
    """Fill the source's pool while it sends; return the run's stderr, and the guid of the base."""
    present, away = world.targets
    base = world.source.guids(world.src)[f"{world.src}@sent"]
    world.source.write(world.src, "file", b"second")
    away.stop_ssh()
    gate = world.gate(present, "zfs", ["receive", "-d"])
    running = world.start()
    gate.wait_until_reached()
    fill_pool(world.source)
    gate.open()
    _, stderr = ended(running, 1)
    assert world.check(present).code == OK
    return stderr, base


def recovers_with_room(world: World) -> None:
    world.targets[1].start_ssh()
    world.source.write(POOL_BALLAST, "0", b"")
    world.sync()
    world.sync()  # that the base is no longer kept is in the copies one run later
    recovers(world)
    assert not world.full_streams()


@pytest.mark.lacks("slop")
def test_a_source_that_gets_full_while_it_sends_keeps_the_base_of_a_target_that_is_away(
    small_source: World,
) -> None:
    world = small_source
    stderr, base = get_full_while_one_is_away(world)
    is_told(stderr, world.source.name, "out of space")
    assert base in world.source.guids(world.src).values()
    recovers_with_room(world)


@pytest.mark.needs("slop")
def test_a_source_that_gets_full_while_it_sends_has_room_left_to_rotate(
    small_source: World,
) -> None:
    world = small_source
    stderr, base = get_full_while_one_is_away(world)
    assert "out of space" not in stderr
    assert base in world.source.guids(world.src).values()
    assert world.targets[1].name in world.retained()
    recovers_with_room(world)
