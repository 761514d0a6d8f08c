"""The seed's symmetric file on both nodes: who sends after a switch, and that nothing is lost.

The planned switch sends no full stream; the unplanned one loses nothing without a person's word.
"""

from __future__ import annotations

import pytest

from tests.e2e.conftest import OSOL1, OSOL2, SOURCE, T1, T2, make_tree
from tests.e2e.test_refusals import everything
from tests.e2e.world import CRITICAL, MARK, OK, World
from tests.lab import Node

pytestmark = pytest.mark.zfs


def turned(world: World) -> World:
    """Return the world as it is seen from the other node of the pair."""
    other = World.__new__(World)
    other.__dict__.update(world.__dict__)
    other.source, other.targets = world.target, [world.source]
    other.src, other.dst = world.dst, world.src
    return other


def unmount(node: Node, root: str) -> None:
    """Unmount a tree: with zfs-fuse a mounted replica is busy while it receives.

    The mountpoint is the pool's, so that no stream carries it.
    """
    node.zfs("set", "mountpoint=none", root.partition("/")[0])


def mount(node: Node, root: str) -> None:
    """Mount a tree for the application that moves to this node."""
    pool = root.partition("/")[0]
    node.zfs("set", f"mountpoint=/run/pools/{pool}", pool)
    for name in node.zfs("list", "-H", "-r", "-o", "name", root).split():
        if node.zfs("get", "-H", "-o", "value", "mounted", name).strip() != "yes":
            node.zfs("mount", name)


def switch(world: World) -> World:
    """Move the service to the other node, as planned: nothing is written after the last run."""
    unmount(world.source, world.src)
    world.sync()
    other = turned(world)
    said = other.agent("takeover").stdout
    assert f"was the replica of {world.source.name}" in said
    return other


def test_a_planned_switch_and_the_way_back_lose_nothing_and_send_no_full_stream(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    world.watch("zfs")
    world.source.write(f"{world.src}/a", "file", b"written before the switch")
    other = switch(world)
    mount(other.source, other.src)
    other.source.write(f"{other.src}/a", "file", b"written after the switch")
    # The same crontab on both nodes: the old source is told off, and touches nothing.
    before = everything(other.source)
    world.sync(expect=3)
    assert everything(other.source) == before
    other.sync()
    other.assert_equal()
    other.assert_tidy(other.target)
    assert other.prop(other.target, MARK, other.dst).value.startswith(f"{OSOL2}/")
    assert other.prop(other.target, "readonly", other.dst).value == "on"
    world.sync()  # the old source stands by from now on, and says nothing
    other.assert_check(OK)
    # And back again.
    back = switch(other)
    mount(back.source, back.src)
    back.source.write(back.src, "file", b"written at home")
    back.sync()
    back.assert_equal()
    back.assert_tidy(back.target)
    back.assert_check(OK)
    assert not world.full_streams(world.source)
    assert not world.full_streams(other.source)


def unplanned(world: World) -> World:
    """Let the source fail after it wrote what it never sent: the other node takes over."""
    world.sync()
    world.source.write(f"{world.src}/a", "unsent", b"never sent" * 1000)
    unmount(world.source, world.src)
    other = turned(world)
    other.agent("takeover")
    mount(other.source, other.src)
    other.source.write(f"{other.src}/b", "file", b"written by the new source")
    return other


def test_what_the_old_source_never_sent_is_refused_and_kept_by_syncresync(
    one_target: World,
) -> None:
    world = one_target
    other = unplanned(world)
    sums = world.source.checksums(f"{world.src}/a")
    refused = other.sync(expect=3)
    assert "syncresync" in refused.stderr
    assert world.source.checksums(f"{world.src}/a") == sums
    other.assert_check(CRITICAL, nodes=[other.source])
    other.watch("zfs")
    plan = other.agent("--node", OSOL1, "--dry-run", "syncresync").stdout
    assert f"{world.src}/a" in plan
    assert world.source.checksums(f"{world.src}/a") == sums
    said = other.agent("--node", OSOL1, "syncresync").stdout
    aside = next(word for word in said.split() if word.startswith(f"{world.src}.unsent-"))
    other.assert_equal()
    assert world.source.checksums(f"{aside.rstrip(';')}/a") == sums
    assert not other.full_streams()
    other.source.write(f"{other.src}/b", "file", b"and more")
    other.sync()
    other.assert_equal()
    other.assert_check(OK)
    world.source.zfs("destroy", "-r", aside.rstrip(";"))
    other.sync()
    other.assert_equal()
    other.assert_tidy(other.target)


def test_what_the_old_source_never_sent_is_discarded_only_where_a_person_says_so(
    one_target: World,
) -> None:
    world = one_target
    other = unplanned(world)
    # The old source came up again and took a snapshot before it learned of the switch.
    world.source.zfs(
        "snapshot", "-r", "-o", f"zfs_sync:rid={world.service}/{world.rid}", f"{world.src}@tosend"
    )
    other.sync(expect=3)
    other.watch("zfs")
    said = other.agent("--node", OSOL1, "--discard", "syncresync").stdout
    assert "discarded, for good" in said
    assert not [n for n in world.datasets(world.source, "osol1_z3_root") if "unsent" in n]
    other.assert_equal()
    other.assert_tidy(other.target)
    assert not other.full_streams()
    other.assert_check(OK)


def test_a_child_born_on_the_old_source_is_no_gone_child(one_target: World) -> None:
    world = one_target
    world.sync()
    make_tree(world.source, f"{world.src}/born")
    sums = world.source.checksums(f"{world.src}/born")
    world.source.zfs(
        "snapshot", "-r", "-o", f"zfs_sync:rid={world.service}/{world.rid}", f"{world.src}@tosend"
    )
    unmount(world.source, world.src)
    other = turned(world)
    other.agent("takeover")
    for _ in range(2):
        other.sync(expect=3)
        assert world.source.checksums(f"{world.src}/born") == sums
    other.agent("--node", OSOL1, "syncresync")
    other.assert_equal()
    aside = next(n for n in world.datasets(world.source, "osol1_z3_root") if "unsent" in n)
    assert world.source.checksums(f"osol1_z3_root{aside}/born") == sums


def test_the_old_source_cannot_take_back_by_a_consent_on_the_wrong_node(one_target: World) -> None:
    world = one_target
    world.sync()
    other = turned(world)
    other.agent("takeover")
    before = everything(other.source)
    for action in (["syncresync"], ["syncfull"], ["--in-place", "syncfull"]):
        refused = world.agent("--node", OSOL2, *action, expect=3)
        assert "takeover" in refused.stderr
    assert everything(other.source) == before


def test_a_node_that_stands_by_says_so_to_a_person(one_target: World) -> None:
    world = one_target
    world.sync()
    refused = world.agent("--node", OSOL1, "syncresync", node=world.target, expect=3)
    assert "stands by" in refused.stderr


def test_only_if_on_the_standby_makes_it_the_source(one_target: World) -> None:
    world = one_target
    world.add_keys("only_if = test -e /run/zfs_sync/active")
    world.source.path("/run/zfs_sync/active").touch()
    unmount(world.source, world.src)
    world.sync()
    assert not world.state(world.source)["targets"][OSOL2]["last_attempt"]["error"]
    world.source.path("/run/zfs_sync/active").unlink()
    other = turned(world)
    world.target.path("/run/zfs_sync/active").touch()
    other.sync()
    other.assert_equal()
    assert other.prop(other.target, MARK, other.dst).value.startswith(f"{OSOL2}/")


THREE = f"""\
[sync#1]
type = zfs
src@{SOURCE} = tank/data
src@{T1} = tank/data
target = {SOURCE} {T1} {T2}
"""


@pytest.mark.parametrize("away", [False, True])
def test_a_third_target_follows_the_new_source(two_targets: World, away: bool) -> None:
    world = two_targets
    world.configure(THREE)
    unmount(world.source, world.src)
    world.sync()
    other = World.__new__(World)
    other.__dict__.update(world.__dict__)
    other.source, other.targets = world.targets[0], [world.source, world.targets[1]]
    other.agent("takeover")
    other.watch("zfs")
    if away:
        # It is down at the switch: what it holds is kept for it.
        other.targets[1].cut()
        for _ in range(2):
            other.agent("syncupdate", expect=1)
        other.assert_equal(world.source)
        other.targets[1].mend()
        other.sync()
    other.sync()
    other.assert_equal()
    other.assert_tidy(*other.targets)
    assert not other.full_streams()
    assert not other.full_streams(world.source)
    assert other.prop(other.targets[1], MARK, other.dst).value.startswith(f"{T1}/")
    other.assert_check(OK)
