"""What is not the agent's survives: foreign snapshots, datasets, clones, holds."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import make_tree
from tests.e2e.world import OK, World

pytestmark = pytest.mark.zfs


def write(world: World, content: str) -> None:
    for child in ("", "/a", "/b"):
        if world.exists(world.source, world.src + child):
            world.source.write(world.src + child, "file", f"{content} of {child}".encode())


def several_runs(world: World, extra: list[str] | None = None) -> None:
    """Run through the life of children: changed, born, renamed, destroyed, re-created."""
    beyond = extra or []

    def run(what: str) -> None:
        write(world, what)
        world.sync()
        gone = [name for name in world.surplus(world.target) if name not in beyond]
        world.assert_equal(extra=[*beyond, *gone])

    run("changed")
    make_tree(world.source, f"{world.src}/c")
    run("born")
    world.source.zfs("rename", f"{world.src}/c", f"{world.src}/d")
    run("renamed")
    world.source.zfs("destroy", "-r", f"{world.src}/d")
    run("destroyed")
    run("gone")
    world.source.zfs("destroy", "-r", f"{world.src}/a")
    make_tree(world.source, f"{world.src}/a")
    run("re-created")
    run("after")
    world.assert_equal(extra=beyond)
    world.assert_check(OK)


def test_b03_foreign_snapshots_of_the_replica_older_and_newer_than_sent_survive(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    world.target.zfs("snapshot", "-r", f"{world.dst}@older")
    write(world, "second")
    world.sync()
    world.target.zfs("snapshot", f"{world.dst}@newer")
    world.target.zfs("snapshot", f"{world.dst}/b@newer")
    held = world.target.guids(world.dst)
    foreign = {name: guid for name, guid in held.items() if not name.endswith("@sent")}
    assert len(foreign) == 5
    sums = world.target.checksums(f"{world.dst}@older")
    write(world, "third")
    world.sync()
    world.assert_equal()
    make_tree(world.source, f"{world.src}/c")
    world.sync()
    world.source.zfs("rename", f"{world.src}/b", f"{world.src}/b2")
    foreign = {name.replace("/b@", "/b2@"): guid for name, guid in foreign.items()}
    for _ in range(3):
        world.sync()
        world.assert_equal()
        held = world.target.guids(world.dst)
        assert {name: held.get(name) for name in foreign} == foreign
    assert world.target.checksums(f"{world.dst}@older") == sums


def test_a_gone_child_that_holds_a_foreign_snapshot_is_kept_and_named(one_target: World) -> None:
    world = one_target
    world.sync()
    world.target.zfs("snapshot", f"{world.dst}/b@precious")
    sums = world.target.checksums(f"{world.dst}/b@precious")
    world.source.zfs("destroy", "-r", f"{world.src}/b")
    for number in range(4):
        write(world, str(number))
        world.sync()
        assert world.surplus(world.target) == ["/b"]
        world.assert_equal(extra=["/b"])
    assert world.target.checksums(f"{world.dst}/b@precious") == sums
    assert f"{world.dst}/b@precious" in world.log()


def test_a_foreign_snapshot_in_a_child_that_is_re_created_survives(one_target: World) -> None:
    world = one_target
    world.sync()
    world.target.zfs("snapshot", f"{world.dst}/b@precious")
    guid = world.target.guids(world.dst)[f"{world.dst}/b@precious"]
    world.source.zfs("destroy", "-r", f"{world.src}/b")
    make_tree(world.source, f"{world.src}/b")
    for number in range(4):
        write(world, str(number))
        world.sync()
        world.assert_equal(extra=world.surplus(world.target))
        assert guid in world.target.guids(world.dst).values()


def test_b03_a_foreign_child_of_the_replica_survives(one_target: World) -> None:
    world = one_target
    world.sync()
    world.target.zfs("create", f"{world.dst}/foreign")
    world.target.zfs("create", f"{world.dst}/a/foreign")
    world.target.zfs("snapshot", f"{world.dst}/foreign@mine")
    guids = world.target.guids(f"{world.dst}/foreign")
    write(world, "second")
    world.sync()
    world.assert_equal(extra=["/foreign", "/a/foreign"])
    world.target.zfs("destroy", f"{world.dst}/a/foreign")
    several_runs(world, ["/foreign"])
    assert world.target.guids(f"{world.dst}/foreign") == guids


def test_a_foreign_child_with_snapshots_of_our_names_survives(one_target: World) -> None:
    world = one_target
    world.sync()
    foreign = f"{world.dst}/foreign"
    world.target.zfs("create", foreign)
    for name in ("sent", "tosend"):
        world.target.zfs("snapshot", f"{foreign}@{name}")
    guids = world.target.guids(foreign)
    assert len(guids) == 2
    several_runs(world, ["/foreign"])
    assert world.target.guids(foreign) == guids


def test_b03_a_copy_of_a_child_made_by_hand_is_never_taken_for_the_child(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    # The copy has the guid of our @sent: ZFS itself would pair it with the source's child.
    script = f"zfs send {world.dst}/a@sent | zfs receive {world.dst}/copy"
    world.target.run(["/bin/sh", "-c", script])
    guids = world.target.guids(f"{world.dst}/copy")
    sums = world.target.checksums(f"{world.dst}/copy@sent")
    assert guids[f"{world.dst}/copy@sent"] in world.source.guids(world.src).values()
    several_runs(world, ["/copy"])
    assert world.target.guids(f"{world.dst}/copy") == guids
    assert world.target.checksums(f"{world.dst}/copy@sent") == sums


def test_a_foreign_child_below_a_gone_one_keeps_both(one_target: World) -> None:
    world = one_target
    world.sync()
    world.target.zfs("create", f"{world.dst}/b/foreign")
    world.target.zfs("snapshot", f"{world.dst}/b/foreign@sent")
    world.source.zfs("destroy", "-r", f"{world.src}/b")
    for number in range(4):
        write(world, str(number))
        world.sync()
        world.assert_equal(extra=["/b", "/b/foreign"])
    assert f"{world.dst}/b/foreign" in world.log()


def test_users_snapshots_on_the_source_stay_there_and_do_not_travel(one_target: World) -> None:
    world = one_target
    world.source.zfs("snapshot", "-r", f"{world.src}@before")
    world.sync()
    world.source.zfs("snapshot", f"{world.src}/a@user")
    write(world, "second")
    world.sync()
    world.assert_equal()
    assert world.snapshots(world.source, world.src) == ["before", "sent"]
    assert world.snapshots(world.source, f"{world.src}/a") == ["before", "sent", "user"]
    assert world.snapshots(world.target, f"{world.dst}/a") == ["sent"]


def test_what_is_beside_dst_is_never_touched(one_target: World) -> None:
    world = one_target
    pool = "osol2_z3_root"
    for name in ("database", "data2", "data-old"):
        world.target.zfs("create", f"{pool}/{name}")
        for snapshot in ("sent", "tosend", "mine"):
            world.target.zfs("snapshot", f"{pool}/{name}@{snapshot}")
    world.target.zfs("snapshot", f"{pool}@sent")

    def beside() -> dict[str, str]:
        guids = world.target.guids(pool)
        return {
            n: g for n, g in guids.items() if not n.startswith((world.dst + "@", world.dst + "/"))
        }

    before = beside()
    assert len(before) == 10
    world.sync()
    write(world, "changed")
    world.source.zfs("destroy", "-r", f"{world.src}/b")
    world.sync()
    world.sync()
    world.assert_equal()
    assert beside() == before


# --- clones and holds ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "side", "where"),
    [
        ("clone", "source", ""),
        ("hold", "source", "/a"),
        ("clone", "target", "/a"),
        ("hold", "target", ""),
    ],
)
def test_b22_a_clone_or_a_hold_of_sent_stops_nothing_and_leaves_nothing(
    one_target: World, side: str, what: str, where: str
) -> None:
    world = one_target
    world.sync()
    node, root = (world.source, world.src) if side == "source" else (world.target, world.dst)
    snapshot = f"{root}{where}@sent"
    guid = node.guids(root)[snapshot]
    clone = f"{root.split('/', maxsplit=1)[0]}/clone"
    if what == "clone":
        node.zfs("clone", snapshot, clone)
    else:
        node.zfs("hold", "keep", snapshot)
    for content in ("second", "third"):
        write(world, content)
        world.sync()
        world.assert_equal()
        assert guid in node.guids(root).values()
        assert world.entry(world.target)["status"] == "ok"
    assert "WARNING" in world.log()
    assert "later runs try again" in world.log()
    world.assert_check(OK)
    if what == "clone":
        node.zfs("destroy", clone)
    else:
        held = next(name for name, one in node.guids(root).items() if one == guid)
        node.zfs("release", "keep", held)
    for content in ("fifth", "sixth"):
        write(world, content)
        world.sync()
    world.assert_equal()
    world.assert_tidy(world.target)
    assert guid not in node.guids(root).values()
    assert world.prop(world.target, "zfs_sync:retained", world.dst).value in {"-", ""}
