"""What the agent must not do without a person: it refuses, says so, and touches nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.e2e.conftest import OSOL1, OSOL2, SOURCE, T1, T2, make_tree
from tests.e2e.world import CONFIG_DIR, CRITICAL, MARK, OK, STATE_DIR, World
from tests.lab import Node

pytestmark = pytest.mark.zfs


def everything(node: Node) -> dict[str, str]:
    """Return guid by name of every dataset and snapshot of a node."""
    pairs: dict[str, str] = {}
    for pool in node.zpool("list", "-H", "-o", "name").split():
        for line in node.zfs("get", "-rHp", "-o", "name,value", "guid", pool).splitlines():
            name, guid = line.split("\t")
            pairs[name] = guid
    return pairs


def write_on_replica(node: Node, dataset: str, content: bytes) -> None:
    """Do what someone does who takes a replica for his own: mount it, write, unmount."""
    node.zfs("set", "readonly=off", dataset)
    node.zfs("set", f"mountpoint=/run/clones/{dataset.replace('/', '_')}", dataset)
    if node.zfs("get", "-H", "-o", "value", "mounted", dataset).strip() != "yes":
        node.zfs("mount", dataset)
    node.write(dataset, "written-there", content)
    node.zfs("unmount", dataset)
    node.zfs("set", "mountpoint=none", dataset)


def assert_refused(
    world: World,
    *words: str,
    runs: int = 2,
    untouched: Sequence[Node] = (),
    status: Sequence[str] = ("refused", "broken"),
) -> str:
    """Assert exit 3 at each run, the words in the first block, no guid changed, the check critical.

    Returns the first block.
    """
    before = {node.name: everything(node) for node in untouched or world.targets}
    blocks = [world.sync(expect=3).stderr for _ in range(runs)]
    for word in ("untouched:", "next:", *words):
        assert word in blocks[0], blocks[0]
    assert not any(blocks[1:]), "the block comes once, the exit status always"
    for node in untouched or world.targets:
        assert everything(node) == before[node.name]
    for node in world.nodes:
        assert world.entry(world.target, on=node)["status"] in status
        assert world.entry(world.target, on=node)["last_attempt"]["error"]
    world.assert_check(CRITICAL)
    return blocks[0]


# --- the base was taken again on the source -----------------------------------------------------


@pytest.mark.parametrize("scope", ["the tree", "the root", "a child"])
def test_b01_a_sent_taken_again_on_the_source_is_refused(one_target: World, scope: str) -> None:
    world = one_target
    world.sync()
    place = f"{world.src}/a" if scope == "a child" else world.src
    depth = ["-r"] if scope == "the tree" else []
    world.source.zfs("destroy", *depth, f"{place}@sent")
    world.source.write(place, "file", b"changed")
    world.source.zfs("snapshot", *depth, f"{place}@sent")
    held = world.target.checksums(f"{world.dst}/a@sent")
    world.watch()
    assert_refused(world, "chain broken", f"{place}@sent", untouched=world.nodes)
    assert not world.receives()
    assert world.target.checksums(f"{world.dst}/a@sent") == held


def test_b15_a_sent_that_someone_destroyed_on_the_source_is_broken_and_sends_nothing(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    world.source.zfs("destroy", "-r", f"{world.src}@sent")
    before = everything(world.target)
    world.watch()
    result = world.sync(expect=3)
    assert "chain broken" in result.stderr
    assert everything(world.target) == before
    assert not world.sends()
    world.assert_check(CRITICAL)


# --- a replica that was written to --------------------------------------------------------------


@pytest.mark.parametrize("child", ["", "/a"])
def test_b16_what_was_written_on_a_replica_is_rolled_back_and_said(
    one_target: World, child: str
) -> None:
    world = one_target
    world.sync()
    write_on_replica(world.target, world.dst + child, b"mine" * 10000)
    assert "written-there" in world.target.checksums(world.dst + child)
    world.source.write(world.src + child, "file", b"second")
    world.source.write(f"{world.src}/b", "file", b"second")
    world.sync()
    world.assert_equal()
    world.assert_tidy(world.target)
    assert "written-there" not in world.target.checksums(world.dst + child)
    assert f"discarding what was written to {world.dst}{child}" in world.log()
    world.assert_check(OK)


@pytest.mark.parametrize("child", ["", "/a"])
def test_b16_what_was_written_on_a_replica_stays_where_the_file_says_refuse(
    one_target: World, child: str
) -> None:
    world = one_target
    world.add_keys("on_divergence = refuse")
    world.sync()
    write_on_replica(world.target, world.dst + child, b"mine")
    written = world.target.checksums(world.dst + child)
    assert "written-there" in written
    world.source.write(world.src + child, "file", b"second")
    for _ in range(2):
        result = world.sync(expect=3)
        assert world.target.checksums(world.dst + child) == written
        world.assert_check(CRITICAL)
    log = world.log()
    assert world.dst + child in log
    assert "written to" in log
    # The person saves it and rolls back, as the message says; then all goes on.
    del result
    world.target.zfs("rollback", f"{world.dst}{child}@{sent_or_goal(world, child)}")
    world.sync()
    world.assert_equal()
    world.assert_check(OK)


def sent_or_goal(world: World, child: str) -> str:
    """Return the name of the newest snapshot of the replica."""
    newest = ("list", "-H", "-t", "snapshot", "-d", "1", "-s", "creation", "-o", "name")
    names = world.target.zfs(*newest, world.dst + child).split()
    return names[-1].partition("@")[2]


# --- a dst that is not a replica ----------------------------------------------------------------


@pytest.mark.parametrize("snapshots", [(), ("mine",), ("sent",), ("sent", "tosend")])
def test_b02_a_first_sync_onto_an_existing_dataset_is_refused(
    one_target: World, snapshots: Sequence[str]
) -> None:
    world = one_target
    world.target.zfs("create", world.dst)
    world.target.zfs("create", f"{world.dst}/a")
    write_on_replica(world.target, world.dst, b"years of work")
    for snapshot in snapshots:
        world.target.zfs("snapshot", "-r", f"{world.dst}@{snapshot}")
    held = world.target.checksums(world.dst)
    assert "written-there" in held
    assert_refused(world, "not a replica", "syncfull --in-place", untouched=[world.target])
    assert world.target.checksums(world.dst) == held
    assert world.prop(world.target, MARK, world.dst).value == "-"
    # A refused first sync does not pile up snapshots on the source.
    assert len(world.source.guids(world.src, recursive=False)) <= 1
    world.target.zfs("rename", world.dst, f"{world.dst}.old")
    world.sync()
    world.assert_equal()
    assert world.target.checksums(f"{world.dst}.old") == held


def test_a_foreign_child_where_a_new_child_has_to_go_is_refused_and_intact(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    world.target.zfs("create", f"{world.dst}/c")
    write_on_replica(world.target, f"{world.dst}/c", b"mine")
    held = world.target.checksums(f"{world.dst}/c")
    make_tree(world.source, f"{world.src}/c")
    for _ in range(2):
        world.sync(expect=3)
        assert world.target.checksums(f"{world.dst}/c") == held
        world.assert_check(CRITICAL)
    world.target.zfs("rename", f"{world.dst}/c", f"{world.dst}/mine")
    world.sync()
    world.assert_equal(extra=["/mine"])
    assert world.target.checksums(f"{world.dst}/mine") == held


# --- two sources --------------------------------------------------------------------------------


def test_two_sources_with_one_service_name_and_two_dsts_are_told_apart(two_targets: World) -> None:
    world = two_targets
    first, second, target = world.source, world.targets[0], world.targets[1]
    text = f"[sync#1]\ntype = zfs\nsrc@{SOURCE} = tank/data\nsrc@{T1} = tank/data\n"
    dsts = f"dst@{SOURCE} = tank/one\ndst@{T1} = tank/two\ntarget = {T2}\n"
    world.configure(text + dsts)
    world.targets, world.dst = [target], "tank/one"
    world.sync()
    pushed = world.state_text(target)
    before = everything(target)
    second.zfs("create", "tank/data")
    for number in range(2):
        result = world.sync(node=second, expect=3)
        if number == 0:
            assert SOURCE in result.stderr
            assert T1 in result.stderr
    assert everything(target) == before
    assert world.state_text(target) == pushed
    world.source.write(world.src, "file", b"second")
    world.sync()
    world.assert_equal()
    assert first.name == world.state(target)["source"]


def one_dst(world: World, *, other: str = "tank/copy") -> tuple[Node, Node]:
    """Let the first source fill tank/copy; return the second one and the target."""
    second, target = world.targets
    srcs = f"src@{SOURCE} = tank/data\nsrc@{T1} = tank/data\n"
    text = f"[sync#1]\ntype = zfs\n{srcs}target = {T2}\n"
    world.configure(f"{text}dst@{SOURCE} = tank/copy\ndst@{T1} = {other}\n")
    world.targets, world.dst = [target], "tank/copy"
    second.zfs("create", "tank/data")
    return second, target


@pytest.mark.parametrize("names_the_first", [True, False])
def test_a_second_source_that_never_sent_leaves_the_replica_of_the_first(
    two_targets: World, names_the_first: bool
) -> None:
    world = two_targets
    second, target = one_dst(world)
    if not names_the_first:
        own = f"[sync#1]\ntype = zfs\nsrc@{T1} = tank/data\ndst@{T1} = tank/copy\ntarget = {T2}\n"
        world.configure(own, second)
    world.sync()
    before, pushed = everything(target), world.state_text(target)
    for number in range(2):
        # A failover pair's other node stands by; a stranger with the same name is refused.
        result = world.sync(node=second, expect=0 if names_the_first else 3)
        if number == 0 and not names_the_first:
            assert SOURCE in result.stderr
            assert T1 in result.stderr
        # Neither calls itself replicated.
        assert world.check(second).code != OK
    assert everything(target) == before
    assert world.state_text(target) == pushed
    assert not second.guids("tank/data")
    world.source.write(world.src, "file", b"second")
    world.sync()
    world.assert_equal()
    assert world.check(target).code == OK


def test_a_second_source_that_has_sent_before_is_refused_and_both_are_named(
    two_targets: World,
) -> None:
    world = two_targets
    second, target = one_dst(world, other="tank/other")
    world.sync(node=second)
    target.path(STATE_DIR).joinpath(f"{world.service}_{world.rid}_zfs_state").unlink()
    world.sync()
    one_text = world.source.path(f"{CONFIG_DIR}/{world.service}.conf").read_text()
    world.configure(one_text.replace("tank/other", "tank/copy"))
    before, pushed = everything(target), world.state_text(target)
    for number in range(2):
        result = world.sync(node=second, expect=3)
        if number == 0:
            assert SOURCE in result.stderr
            assert T1 in result.stderr
    assert everything(target) == before
    assert world.state_text(target) == pushed
    world.source.write(world.src, "file", b"second")
    world.sync()
    world.assert_equal()
    assert world.check(target).code == OK


# --- the mark -----------------------------------------------------------------------------------


def test_a_replica_whose_mark_was_taken_off_is_left_alone(one_target: World) -> None:
    world = one_target
    world.sync()
    world.target.zfs("inherit", MARK, world.dst)
    write_on_replica(world.target, world.dst, b"it is the source now")
    written = world.target.checksums(world.dst)
    world.source.write(world.src, "file", b"second")
    assert_refused(world, MARK, "no longer carries the mark")
    assert world.target.checksums(world.dst) == written


def test_a_replica_of_another_source_is_left_alone(one_target: World) -> None:
    world = one_target
    world.sync()
    world.target.zfs("set", f"{MARK}=other.example.com/web/sync#9", world.dst)
    world.source.write(world.src, "file", b"second")
    assert_refused(world, "other.example.com/web/sync#9", f"{OSOL1}/{world.service}/{world.rid}")


# --- a vanished replica and syncfull ------------------------------------------------------------


def test_a_vanished_replica_is_broken_until_a_person_asks_for_a_full_copy(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    held = world.target.guids(world.dst)
    world.target.zfs("rename", world.dst, f"{world.dst}.moved")
    block = assert_refused(world, "chain broken", "syncfull", status=["broken"])
    assert f"--node {OSOL2}" in block
    before = everything(world.target)
    asked = world.agent("syncfull", expect=2)
    assert "--node" in asked.stderr
    assert everything(world.target) == before
    world.watch()
    world.agent("--node", OSOL2, "syncfull")
    # The copy is made with a snapshot of its own; the next run has both sides abreast again.
    held_now = world.target.guids(world.dst)
    assert held_now[f"{world.dst}@sent"] in world.source.guids(world.src).values()
    for child in ("", "/a", "/b"):
        sums = world.target.checksums(f"{world.dst}{child}@sent")
        assert sums == world.source.checksums(f"{world.src}{child}")
    assert world.full_streams()
    world.assert_check(OK)
    moved = world.target.guids(f"{world.dst}.moved")
    assert list(moved.values()) == list(held.values())
    world.source.write(world.src, "file", b"second")
    world.sync()
    world.assert_equal()
    world.assert_tidy(world.target)


def test_a_vanished_replica_that_comes_back_goes_on_without_a_full_stream(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    world.watch()
    world.target.zfs("rename", world.dst, f"{world.dst}.moved")
    for _ in range(2):
        world.sync(expect=3)
    world.target.zfs("rename", f"{world.dst}.moved", world.dst)
    world.source.write(world.src, "file", b"second")
    world.sync()
    world.assert_equal()
    world.assert_check(OK)
    assert not world.full_streams()


def test_one_vanished_replica_of_two_does_not_hinder_the_other(two_targets: World) -> None:
    world = two_targets
    world.sync()
    gone = world.targets[1]
    gone.zfs("rename", world.dst, f"{world.dst}.moved")
    for number in range(2):
        world.source.write(world.src, "file", str(number).encode())
        world.sync(expect=3)
        world.assert_equal(world.targets[0])
    assert world.check(world.targets[0]).code == OK
    world.assert_check(CRITICAL, nodes=[world.source, gone])
    world.agent("--node", gone.name, "syncfull")
    world.sync()
    world.sync()
    world.assert_equal()
    world.assert_tidy(*world.targets)
