"""syncresync, syncfull and takeover, killed after any of their commands: nothing is lost by it.

At every moment there is a whole copy that can be read: what the target had before, or the new one.
Cron's run comes after the kill, then the same command again; it must end in sync.
"""

from __future__ import annotations

import os
import random
import shlex
import subprocess

import pytest

from tests.e2e.kill_chain import KILLED, switch
from tests.e2e.kill_switch import FAMILY, MARKER
from tests.e2e.test_failover import turned, unmount
from tests.e2e.test_refusals import everything, write_on_replica
from tests.e2e.world import OK, World
from tests.lab import Node

pytestmark = pytest.mark.zfs

# KILL_ALL=1 leaves no kill point out.
POINTS = None if os.environ.get("KILL_ALL") else 2
CHANGING = {
    *("set", "inherit", "rename", "clone", "promote", "receive", "destroy", "rollback", "snapshot"),
}

Sums = dict[str, dict[str, str]]
Point = tuple[str, int]  # the n-th command of a kind


def diverge(world: World) -> Sums:
    """Write on the replica, which forbids that it is discarded; return what it holds then."""
    world.add_keys("on_divergence = refuse")
    world.sync()
    for child in ("/a", "/b"):
        write_on_replica(world.target, world.dst + child, b"written there" * 1000)
    return sums(world, world.dst)


def break_chain(world: World) -> Sums:
    """Take the source's base away; return what the replica holds."""
    world.sync()
    world.source.zfs("destroy", "-r", f"{world.src}@sent")
    return sums(world, world.dst)


def sums(world: World, root: str) -> Sums:
    """Return the checksums of a tree of the target."""
    names = world.datasets(world.target, root)
    return {name: world.target.checksums(root + name) for name in names}


def copies(world: World) -> list[Sums]:
    """Return the trees that the target holds at dst and beside it."""
    pool = world.dst.partition("/")[0]
    names = [pool + name for name in world.datasets(world.target, pool)]
    roots = [name for name in names if name.startswith(world.dst) and name.count("/") == 1]
    return [sums(world, root) for root in roots]


def watched(world: World, *words: str) -> list[Point]:
    """Let the command go through; return the kill points of it on the target."""
    world.target.wrap("zfs")
    world.target.clear_calls()
    world.agent(*words)
    count: dict[str, int] = {}
    points = []
    for call in world.target.calls("zfs"):
        verb = call[0] if call else ""
        if verb in CHANGING:
            count[verb] = count.get(verb, 0) + 1
            points.append((verb, count[verb]))
    return points


def kill(source: Node, node: Node, point: Point, *words: str) -> None:
    """Run the command on the source, and kill it with its children after its n-th command."""
    verb, nth = point
    node.wrap("zfs")
    fault = node.fault("zfs", [verb], shlex.join(switch(FAMILY, node)), nth, "after")
    running = source.popen(
        source.python("zfs_sync_agent", *words),
        env={MARKER: "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    _, stderr = running.communicate(timeout=120)
    assert fault.fired, f"{point}: {stderr}"
    assert running.returncode in KILLED, f"{point}: {running.returncode}: {stderr}"
    node.clear_faults()


def sampled(points: list[Point]) -> list[Point]:
    """Return the kill points to try."""
    chosen = random.Random(os.environ.get("KILL_SEED", "1"))  # noqa: S311 - a test's choice
    return points if POINTS is None else chosen.sample(points, POINTS)


@pytest.mark.parametrize(
    ("action", "prepare"), [("syncresync", diverge), ("syncfull", break_chain)]
)
def test_a_repair_killed_after_any_command_leaves_a_whole_copy(
    request: pytest.FixtureRequest, action: str, prepare: object
) -> None:
    assert callable(prepare)
    words = ("--node", "osol2.opensvc.com", action)
    world: World = request.getfixturevalue("one_target")
    text = world.source.path(f"/etc/zfs_sync/{world.service}.conf").read_text()
    prepare(world)
    points = watched(world, *words)
    assert {verb for verb, _ in points} >= {"rename", "set", "receive"}
    for point in sampled(points):
        for node in world.nodes:
            node.reset()
        world.configure(text)
        for name in ("", "/a", "/b"):
            world.source.zfs("create", world.src + name)
            world.source.write(world.src + name, "file", f"first of {name}".encode() * 100)
        held = prepare(world)
        kill(world.source, world.target, point, *words)
        new = {
            name: world.source.checksums(world.src + name)
            for name in world.datasets(world.source, world.src)
        }
        assert held in copies(world) or new in copies(world), point
        world.source.agent("syncupdate")
        assert held in copies(world) or new in copies(world), point
        again = world.source.agent(*words)
        assert again.returncode == 0, f"{point}: {again.stderr}"
        world.sync()
        world.assert_equal()
        world.assert_check(OK)
        if action == "syncresync":
            assert held in copies(world), point
        else:
            assert len(copies(world)) == 1, point


def test_a_takeover_killed_after_any_command_is_finished_by_the_next(one_target: World) -> None:
    world = one_target
    unmount(world.source, world.src)
    world.sync()
    other = turned(world)
    before = everything(other.source)
    for point in (("set", 1), ("set", 1), ("inherit", 1)):  # targets, the mark, readonly
        kill(other.source, other.source, point, "takeover")
    other.agent("takeover")
    assert everything(other.source) == before
    other.sync()
    other.assert_equal()
    other.assert_check(OK)
