"""First synchronizations in all their shapes, and ordinary incrementals after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.e2e.conftest import OSOL1, OSOL2, make_tree
from tests.e2e.world import OK, World
from tests.lab import Node

pytestmark = pytest.mark.zfs

SRC = "osol1_z3_root/data"


def scoped(src: str, dst: str, *lines: str) -> str:
    """Return a service file for osol1 as the source."""
    head = ["[sync#1]", "type = zfs", f"src@{OSOL1} = {src}", f"dst@{OSOL1} = {dst}"]
    return "\n".join([*head, f"target = {OSOL2}", *lines]) + "\n"


def reshape(world: World, src: str, dst: str, *lines: str) -> None:
    """Use another src and dst, written to both nodes."""
    world.src, world.dst = src, dst
    world.configure(scoped(src, dst, *lines))


def test_a_first_sync_and_an_incremental_one_of_a_tree(one_target: World) -> None:
    world = one_target
    world.watch()
    world.sync()
    world.assert_equal()
    world.assert_tidy(world.target)
    assert len(world.full_streams()) == 1
    assert world.entry(world.target)["last_success"]["mode"] == "full"
    world.source.write(world.src, "file", b"second")
    world.sync()
    world.assert_equal()
    world.assert_tidy(world.target)
    assert len(world.full_streams()) == 1
    assert world.entry(world.target)["last_success"]["mode"] == "incremental"
    world.assert_check(OK)


def test_the_state_file_tells_the_guid_that_both_sides_hold(one_target: World) -> None:
    world = one_target
    world.sync()
    guid = world.source.guids(world.src)[f"{world.src}@sent"]
    assert world.target.guids(world.dst)[f"{world.dst}@sent"] == guid
    for node in world.nodes:
        entry = world.entry(world.target, on=node)
        assert (entry["status"], entry["snapshot"]["guid"]) == ("ok", guid)
        assert entry["snapshot"]["datasets"] == 3
        assert world.state(node)["here"] == node.name
        created = world.prop(world.source, "creation", f"{world.src}@sent").value
        assert entry["snapshot"]["creation"] == int(created)


def test_the_replica_is_marked_and_readonly_and_its_snapshots_are_the_agents(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    mark = world.prop(world.target, "zfs_sync:replica", world.dst)
    assert mark == (f"{OSOL1}/{world.service}/{world.rid}", "local")
    assert world.prop(world.target, "readonly", world.dst) == ("on", "local")
    own = (f"{world.service}/{world.rid}", "local")
    for name in ("", "/a", "/b"):
        assert world.prop(world.source, "zfs_sync:rid", f"{world.src}{name}@sent") == own
        rid = world.prop(world.target, "zfs_sync:rid", f"{world.dst}{name}@sent")
        assert rid.value == own[0]
        assert rid.source in {"local", "received"}


def test_without_recursive_only_the_root_travels(one_target: World) -> None:
    world = one_target
    world.add_keys("recursive = False")
    for content in (b"second", b"third"):
        world.sync()
        world.assert_equal(recursive=False)
        assert list(world.source.guids(world.src)) == [f"{world.src}@sent"]
        world.source.write(world.src, "file", content)
    world.assert_check(OK)


def test_a_dataset_without_children_is_a_tree_too(one_target: World) -> None:
    world = one_target
    make_tree(world.source, "osol1_z3_root/single")
    reshape(world, "osol1_z3_root/single", "osol2_z3_root/single")
    for content in (b"second", b"third"):
        world.sync()
        world.assert_equal()
        world.source.write(world.src, "file", content)


def test_missing_parents_of_another_dst_are_created_and_cover_no_directory(
    one_target: World,
) -> None:
    world = one_target
    reshape(world, SRC, "osol2_z3_root/backup/of osol1/copy")
    for content in (b"second", b"third"):
        world.sync()
        world.assert_equal()
        world.source.write(world.src, "file", content)
    for parent in ("osol2_z3_root/backup", "osol2_z3_root/backup/of osol1"):
        assert world.prop(world.target, "canmount", parent) == ("off", "local")


def test_a_dst_under_another_name_gets_the_whole_tree(one_target: World) -> None:
    world = one_target
    reshape(world, SRC, "osol2_z3_root/copy")
    world.sync()
    world.assert_equal()
    world.source.zfs("create", f"{SRC}/c")
    world.source.zfs("rename", f"{SRC}/a", f"{SRC}/renamed")
    world.sync()
    world.assert_equal()


def test_a_dst_that_is_the_pool_and_the_path_of_src_is_received_as_in_the_seed(
    one_target: World,
) -> None:
    world = one_target
    world.watch()
    world.sync()
    world.source.write(world.src, "file", b"second")
    world.sync()
    received = [call for call in world.target.calls("zfs") if call[:1] == ["receive"]]
    received = [call for call in received if len(call) > 1]  # without arguments: the usage text
    assert len(received) == 2
    for call in received:
        assert call[-2:] == ["-d", "osol2_z3_root"]
        assert "-F" not in "".join(call[:-1])
    world.assert_equal()


def test_no_command_ever_has_the_flag_that_forces(one_target: World) -> None:
    world = one_target
    world.watch()
    world.sync()
    world.source.zfs("destroy", "-r", f"{world.src}/a")
    world.sync()
    world.sync()
    for node in world.nodes:
        for call in node.calls("zfs"):
            if call[:1] in (["receive"], ["rollback"], ["destroy"]):
                flags = "".join(word for word in call[1:] if word.startswith("-"))
                assert not {"F", "R", "f"} & set(flags), call


def test_b25_names_with_spaces_arrive(one_target: World) -> None:
    world = one_target
    src = "osol1_z3_root/my data"
    make_tree(world.source, src, "a child", "b:1.x-y_z")
    reshape(world, src, "osol2_z3_root/the copy")
    for content in (b"second", b"third"):
        world.sync()
        world.assert_equal()
        world.source.write(f"{src}/a child", "file", content)
    world.assert_check(OK)
    world.assert_check(OK, "--verify")


def test_a_local_target_is_another_pool_of_the_same_node(one_node: World) -> None:
    world = one_node
    world.watch("ssh")
    for content in (b"second", b"third"):
        world.sync()
        world.assert_equal()
        world.source.write(world.src, "file", content)
    assert not world.source.calls("ssh")
    world.assert_tidy(world.target)
    world.assert_check(OK, nodes=[world.source])


def test_b04_a_whole_pool_as_src_is_refused_with_a_hint(one_target: World) -> None:
    world = one_target
    reshape(world, "osol1_z3_root", "osol2_z3_root")
    world.target.zfs("create", "osol2_z3_root/precious")
    world.target.zfs("snapshot", "-r", "osol2_z3_root@precious")
    before = world.target.guids("osol2_z3_root")
    result = world.sync(expect=3)
    assert "next:" in result.stderr
    assert "--in-place" in result.stderr
    assert world.target.guids("osol2_z3_root") == before
    assert world.datasets(world.target, "osol2_z3_root") == ["", "/precious"]


# --- incrementals -----------------------------------------------------------------------------


class Step(NamedTuple):
    """What happens on the source before a run, and what the target has beside the source's then."""

    what: str
    do: Callable[[Node], object]
    extra: tuple[str, ...] = ()


def write(child: str, content: str) -> Callable[[Node], object]:
    return lambda node: node.write(f"{SRC}{child}", "file", content.encode())


def zfs(*commands: str) -> Callable[[Node], object]:
    def run(node: Node) -> None:
        for command in commands:
            node.zfs(*command.replace("SRC", SRC).split())

    return run


def recreate(child: str) -> Callable[[Node], object]:
    def run(node: Node) -> None:
        node.zfs("destroy", "-r", f"{SRC}/{child}")
        make_tree(node, f"{SRC}/{child}")

    return run


STEPS = [
    Step("nothing happened", lambda _: None),
    Step("a file changed", write("/a", "changed")),
    Step("children were born", lambda node: make_tree(node, f"{SRC}/c", "d", "e")),
    Step("a child was renamed", zfs("rename SRC/a SRC/a2")),
    Step("a child was destroyed: it stays one run more", zfs("destroy -r SRC/b"), ("/b",)),
    Step("and goes in the next run", write("/a2", "changed again")),
    Step("a parent was renamed with its children", zfs("rename SRC/c SRC/f")),
    Step("a child moved below another", zfs("rename SRC/a2 SRC/f/a2")),
    Step("a child was renamed and changed", zfs("rename SRC/f/d SRC/g")),
    Step(
        "two children swapped their names",
        zfs("rename SRC/g SRC/tmp", "rename SRC/f/e SRC/g", "rename SRC/tmp SRC/f/e"),
    ),
    Step("a subtree was destroyed", zfs("destroy -r SRC/f"), ("/f", "/f/a2", "/f/e")),
    Step("it goes, and a new child comes", lambda node: make_tree(node, f"{SRC}/h")),
    Step("all is quiet again", lambda _: None),
]


def test_b14_children_born_renamed_moved_and_destroyed_are_followed(one_target: World) -> None:
    world = one_target
    world.sync()
    world.assert_equal()
    for step in STEPS:
        step.do(world.source)
        world.sync()
        extra = tuple(world.surplus(world.target))
        assert extra == step.extra, step.what
        world.assert_equal(extra=extra)
        for node in world.nodes:
            assert world.entry(world.target, on=node)["status"] == "ok", step.what
    world.assert_tidy(world.target)
    world.assert_check(OK)


def test_b14_a_child_destroyed_and_re_created_between_two_runs_is_replaced_in_one(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    recreate("b")(world.source)
    world.source.write(f"{world.src}/b", "file", b"of the new one")
    world.sync()
    extra = world.surplus(world.target)
    world.assert_equal(extra=extra)
    world.sync()
    world.sync()
    world.assert_equal()
    world.assert_tidy(world.target)
    assert "of the new one" not in world.log()


def test_a_child_gone_for_one_run_and_back_under_its_name_arrives(one_target: World) -> None:
    world = one_target
    world.sync()
    world.source.zfs("destroy", "-r", f"{world.src}/b")
    world.sync()
    assert world.surplus(world.target) == ["/b"]
    make_tree(world.source, f"{world.src}/b")
    world.source.write(f"{world.src}/b", "file", b"of the new one")
    world.sync()
    world.assert_equal(extra=world.surplus(world.target))
    world.sync()
    world.sync()
    world.assert_equal()


def test_a_child_re_created_run_after_run_leaves_nothing_behind(one_target: World) -> None:
    world = one_target
    world.sync()
    for number in range(3):
        recreate("a")(world.source)
        world.source.write(f"{world.src}/a", "file", str(number).encode())
        world.sync()
        world.assert_equal(extra=world.surplus(world.target))
        assert len(world.surplus(world.target)) <= 2
    world.sync()
    world.sync()
    world.assert_equal()
    world.assert_tidy(world.target)


def test_a_child_renamed_to_the_name_of_one_that_is_gone_arrives(one_target: World) -> None:
    world = one_target
    world.sync()
    world.source.zfs("destroy", "-r", f"{world.src}/b")
    world.sync()
    world.source.zfs("rename", f"{world.src}/a", f"{world.src}/b")
    for _ in range(3):
        world.sync()
        world.assert_equal(extra=world.surplus(world.target))
    assert world.surplus(world.target) == []
    world.assert_tidy(world.target)


def test_a_child_destroyed_and_another_renamed_to_its_name_between_two_runs(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    world.source.zfs("destroy", "-r", f"{world.src}/b")
    world.source.zfs("rename", f"{world.src}/a", f"{world.src}/b")
    for _ in range(3):
        world.sync()
        world.assert_equal(extra=world.surplus(world.target))
    assert world.surplus(world.target) == []
    world.assert_tidy(world.target)


def test_a_parent_destroyed_while_its_child_moved_out_of_it(one_target: World) -> None:
    world = one_target
    make_tree(world.source, f"{SRC}/c", "inner")
    world.sync()
    world.watch()
    world.source.zfs("rename", f"{SRC}/c/inner", f"{SRC}/a/inner")
    world.source.zfs("destroy", "-r", f"{SRC}/c")
    for _ in range(3):
        world.sync()
        world.assert_equal(extra=world.surplus(world.target))
    assert world.surplus(world.target) == []
    assert not world.full_streams()
    world.assert_tidy(world.target)


def test_a_clone_inside_the_tree_travels(one_target: World) -> None:
    world = one_target
    world.sync()
    world.source.zfs("snapshot", f"{SRC}/a@origin")
    world.source.zfs("clone", f"{SRC}/a@origin", f"{SRC}/clone")
    for content in (b"second", b"third"):
        world.sync()
        world.assert_equal()
        world.source.write(f"{SRC}/clone", "file", content)
    world.assert_check(OK)


def test_a_src_that_was_renamed_goes_on_without_a_full_stream(one_target: World) -> None:
    world = one_target
    world.sync()
    world.source.zfs("rename", SRC, "osol1_z3_root/renamed")
    reshape(world, "osol1_z3_root/renamed", "osol2_z3_root/data")
    world.watch()
    for content in (b"second", b"third"):
        world.source.write(world.src, "file", content)
        world.sync()
        world.assert_equal()
    assert not world.full_streams()
    world.assert_tidy(world.target)


@pytest.mark.parametrize("policy", ["keep", "stop"])
def test_a_gone_child_is_kept_or_stops_the_sync_where_the_file_says_so(
    one_target: World, policy: str
) -> None:
    world = one_target
    world.add_keys(f"on_child_gone = {policy}")
    world.sync()
    held = world.target.checksums(f"{world.dst}/b")
    world.source.zfs("destroy", "-r", f"{world.src}/b")
    expect = 0 if policy == "keep" else 3
    for _ in range(3):
        world.sync(expect=expect)
        assert world.target.checksums(f"{world.dst}/b") == held
    if policy == "keep":
        world.assert_equal(extra=["/b"])
