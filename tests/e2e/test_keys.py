"""What the service file and the command line ask for."""

from __future__ import annotations

from threading import Thread

import pytest

from tests.e2e.conftest import OSOL1, OSOL2, SOURCE, T1, T2, make_tree
from tests.e2e.test_targets import kill_ssh_sessions
from tests.e2e.world import CONFIG_DIR, CRITICAL, MARK, OK, World, ended
from tests.lab import Node

pytestmark = pytest.mark.zfs


def write(world: World, content: str) -> None:
    for child in ("", "/a"):
        world.source.write(world.src + child, "file", f"{content} of {child}".encode())


# --- the seed's file on both nodes --------------------------------------------------------------


def test_the_standby_of_the_symmetric_file_never_sends(one_target: World) -> None:
    world = one_target
    world.sync()
    world.watch()
    for number in range(3):
        write(world, str(number))
        before = world.target.guids("osol2_z3_root")
        world.sync(node=world.target)
        assert world.target.guids("osol2_z3_root") == before
        world.sync()
        world.assert_equal()
    assert not world.sends(world.target)
    assert world.datasets(world.source, "osol1_z3_root") == ["", "/data", "/data/a", "/data/b"]
    assert world.prop(world.source, MARK, world.src).value == "-"
    assert [row["status"] for row in world.status(world.target)] == ["standby"]
    assert [row["status"] for row in world.status()] == ["up"]
    world.assert_check(OK)


def test_the_standby_of_a_first_sync_that_was_cut_leaves_the_live_source_alone(
    one_target: World,
) -> None:
    world = one_target
    # With older history each dataset has a stream of its own, root first.
    world.source.zfs("snapshot", f"{world.src}@old")
    lost = f"{kill_ssh_sessions()}; exit 1"
    cut = world.target.fault("zfs", ["receive", f"{world.dst}/b"], lost, when="instead")
    world.sync(expect=1)
    assert cut.fired
    world.target.clear_faults()
    assert world.exists(world.target, f"{world.dst}@tosend")
    before = world.picture(world.source)
    for _ in range(3):
        world.sync(node=world.target)
        assert world.picture(world.source) == before
    world.sync()
    world.sync()
    world.assert_equal()
    assert world.prop(world.source, MARK, world.src).value == "-"


def test_both_nodes_of_the_symmetric_file_fire_at_once(one_target: World) -> None:
    world = one_target
    world.sync()
    world.watch()
    for number in range(3):
        write(world, str(number))
        runs = [world.start(node=node) for node in world.nodes]
        threads = [Thread(target=ended, args=(run,)) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [run.returncode for run in runs] == [0, 0]
        world.assert_equal()
    assert not world.sends(world.target)
    world.assert_tidy(world.target)


def test_the_standby_that_fires_first_has_nothing_to_send(one_target: World) -> None:
    world = one_target
    # On a new pair the standby's src is not there yet: an error of its file, and nothing is done.
    result = world.agent("syncupdate", node=world.target, expect=2)
    assert "osol2_z3_root/data" in result.stderr
    assert world.datasets(world.target, "osol2_z3_root") == [""]
    world.sync()
    world.assert_equal()


# --- recursive, intermediary --------------------------------------------------------------------


def test_recursive_can_be_switched_off_and_on_again(one_target: World) -> None:
    world = one_target
    text = world.source.path(f"{CONFIG_DIR}/{world.service}.conf").read_text()
    world.sync()
    world.watch()
    world.configure(text + "recursive = False\n")
    for number in range(2):
        write(world, f"off{number}")
        world.sync()
        guid = world.source.guids(world.src)[f"{world.src}@sent"]
        assert world.target.guids(world.dst)[f"{world.dst}@sent"] == guid
        assert sorted(world.datasets(world.target, world.dst)) == ["", "/a", "/b"]
    world.configure(text)
    for number in range(3):
        write(world, f"on{number}")
        world.sync()
    world.assert_equal()
    assert not world.full_streams()
    world.assert_tidy(world.target)
    world.assert_check(OK)


def test_recursive_switched_on_for_a_tree_that_grew_meanwhile(one_target: World) -> None:
    world = one_target
    text = world.source.path(f"{CONFIG_DIR}/{world.service}.conf").read_text()
    world.configure(text + "recursive = False\n")
    world.sync()
    make_tree(world.source, f"{world.src}/c")
    world.sync()
    assert world.datasets(world.target, world.dst) == [""]
    world.configure(text)
    world.sync()
    world.assert_equal()
    world.source.zfs("destroy", "-r", f"{world.src}/c")
    world.sync()
    world.sync()
    world.assert_equal()
    world.assert_tidy(world.target)


def test_with_intermediary_the_users_snapshots_travel(one_target: World) -> None:
    world = one_target
    world.add_keys("intermediary = True")
    world.source.zfs("snapshot", "-r", f"{world.src}@before")
    world.sync()
    world.assert_equal()
    for number in (1, 2):
        write(world, str(number))
        world.source.zfs("snapshot", "-r", f"{world.src}@user{number}")
    world.source.zfs("snapshot", f"{world.src}/a@alone")
    world.sync()
    world.assert_equal()
    here, there = world.source.guids(world.src), world.target.guids(world.dst)
    for name, guid in here.items():
        assert there[name.replace(world.src, world.dst)] == guid
    assert len(here) == 3 * 4 + 1
    sums = world.source.checksums(f"{world.src}/a@user1")
    assert world.target.checksums(f"{world.dst}/a@user1") == sums


def test_a_users_snapshot_name_used_again_is_refused_by_name_until_the_old_one_is_away(
    one_target: World,
) -> None:
    world = one_target
    world.add_keys("intermediary = True")
    world.sync()
    write(world, "first")
    world.source.zfs("snapshot", "-r", f"{world.src}@user1")
    world.sync()
    old = world.target.guids(world.dst)
    world.source.zfs("destroy", "-r", f"{world.src}@user1")
    write(world, "second")
    world.source.zfs("snapshot", "-r", f"{world.src}@user1")
    result = world.sync(expect=3)
    assert f"{world.dst}@user1" in result.stderr
    assert world.target.guids(world.dst) == old
    world.assert_check(CRITICAL)
    world.target.zfs("rename", "-r", f"{world.dst}@user1", f"{world.dst}@user1-old")
    world.sync()
    world.assert_equal()
    there = world.target.guids(world.dst)
    for child in ("", "/a", "/b"):
        again = world.source.guids(world.src)[f"{world.src}{child}@user1"]
        assert there[f"{world.dst}{child}@user1"] == again
        assert there[f"{world.dst}{child}@user1-old"] == old[f"{world.dst}{child}@user1"]
    name = f"{world.src}/a@user1"
    assert world.target.checksums(f"{world.dst}/a@user1") == world.source.checksums(name)
    write(world, "third")
    world.sync()
    world.assert_equal()
    world.assert_check(OK)


def test_a_foreign_snapshot_whose_name_would_travel_is_refused_by_name(one_target: World) -> None:
    world = one_target
    world.add_keys("intermediary = True")
    world.sync()
    world.target.zfs("snapshot", f"{world.dst}/a@user1")
    guid = world.target.guids(world.dst)[f"{world.dst}/a@user1"]
    write(world, "first")
    world.source.zfs("snapshot", "-r", f"{world.src}@user1")
    result = world.sync(expect=3)
    assert f"{world.dst}/a@user1" in result.stderr
    assert world.target.guids(world.dst)[f"{world.dst}/a@user1"] == guid
    world.assert_check(CRITICAL)
    world.target.zfs("rename", f"{world.dst}/a@user1", f"{world.dst}/a@mine")
    world.sync()
    world.assert_equal()
    assert world.target.guids(world.dst)[f"{world.dst}/a@mine"] == guid


# --- only_if, filters, groups -------------------------------------------------------------------


def test_only_if_decides_quietly(one_target: World) -> None:
    world = one_target
    text = world.source.path(f"{CONFIG_DIR}/{world.service}.conf").read_text()
    world.configure(f"{text}only_if = test -e {CONFIG_DIR}/active\n")
    world.sync()
    assert not world.source.guids(world.src)
    assert world.state_text(world.source) is None
    world.source.path(f"{CONFIG_DIR}/active").touch()
    world.sync()
    world.assert_equal()


@pytest.mark.parametrize("command", ["/nonexistent/is-active", f"{CONFIG_DIR}"])
def test_an_only_if_that_cannot_run_is_an_error(one_target: World, command: str) -> None:
    world = one_target
    world.add_keys(f"only_if = {command}")
    result = world.sync(expect=2)
    assert command in result.stderr
    assert not world.source.guids(world.src)


DRP = f"""\
[DEFAULT]
nodes = {SOURCE} {T1}
drpnodes = {T2}
[sync#1]
type = zfs
src = tank/data
target = nodes drpnodes
"""


def test_each_action_reaches_its_own_group_of_targets(two_targets: World) -> None:
    world = two_targets
    near, far = world.targets
    world.configure(DRP)
    world.agent("syncnodes")
    world.assert_equal(near)
    assert world.datasets(far, "tank") == [""]
    world.agent("syncdrp")
    world.sync()
    world.sync()
    world.assert_equal()
    world.watch()
    write(world, "second")
    world.agent("syncdrp")
    world.sync()
    world.sync()
    world.assert_equal()
    world.assert_tidy(*world.targets)
    assert not world.full_streams()


def sent(node: Node, dataset: str) -> str | None:
    return node.guids(dataset).get(f"{dataset}@sent")


def test_short_node_names_are_as_good_as_full_ones(two_targets: World) -> None:
    world = two_targets
    near = world.targets[0]
    world.configure("[sync#1]\ntype = zfs\nsrc@source = tank/data\ntarget = t1\n")
    for number in range(2):
        world.sync()
        world.assert_equal(near)
        write(world, str(number))
    world.assert_check(OK, "--verify", nodes=[world.source, near])
    assert [row["status"] for row in world.status(near)] == ["standby"]


def test_filters_choose_and_unknown_names_are_errors(two_targets: World) -> None:
    world = two_targets
    other = f"[sync#2]\ntype = zfs\nsrc@{SOURCE} = tank/other\ntarget = {T1}\n"
    world.configure(other, service="other")
    make_tree(world.source, "tank/other")
    world.sync("-s", "other")
    assert sent(world.targets[0], "tank/other")
    assert world.datasets(world.targets[0], "tank") == ["", "/other"]
    world.sync("--rid", "sync#1", "--node", T1)
    assert sent(world.targets[0], "tank/data")
    assert world.datasets(world.targets[1], "tank") == [""]
    before = world.picture(world.source)
    for args in (
        ("-s", "unknown"),
        ("--rid", "sync#9"),
        ("--node", "unknown.example.com"),
        ("-s", "other", "--rid", "sync#1"),
    ):
        result = world.agent(*args, "syncupdate", expect=2)
        assert args[-1] in result.stderr
    assert world.agent("nosuchaction", expect=2).stderr
    assert world.picture(world.source) == before


def test_a_dry_run_shows_the_commands_and_changes_nothing(one_target: World) -> None:
    world = one_target
    shown = []
    for content in ("second", "third"):
        before = [world.picture(node) for node in world.nodes]
        world.watch()
        result = world.agent("-n", "syncupdate")
        assert [world.picture(node) for node in world.nodes] == before
        changing = ("snapshot", "rename", "destroy", "rollback", "set", "send", "create", "inherit")
        for node in world.nodes:
            assert not [call for call in node.calls("zfs") if len(call) > 1 and call[0] in changing]
        shown.append(result.stdout)
        world.sync()
        write(world, content)
    for text in shown:
        assert f"snapshot -r -o 'zfs_sync:rid={world.service}/{world.rid}'" in text
        assert f"{world.src}@tosend" in text
        assert f"ssh {OSOL2} " in text
        assert "receive" in text
    assert "-i" in shown[1]
    assert "-i" not in shown[0].split()


def test_a_dry_run_names_what_it_would_discard(one_target: World) -> None:
    world = one_target
    world.sync()
    world.source.zfs("destroy", "-r", f"{world.src}/b")
    world.sync()
    before = [world.picture(node) for node in world.nodes]
    result = world.agent("--dry-run", "syncupdate")
    assert f"destroying {world.dst}/b" in result.stdout
    assert [world.picture(node) for node in world.nodes] == before


def test_a_dry_run_of_a_refusal_says_so(one_target: World) -> None:
    world = one_target
    world.target.zfs("create", world.dst)
    before = [world.picture(node) for node in world.nodes]
    result = world.agent("-n", "syncupdate", expect=3)
    assert "not a replica" in result.stderr
    assert [world.picture(node) for node in world.nodes] == before


# --- errors of the file -------------------------------------------------------------------------


def test_all_errors_of_a_file_are_told_at_once_and_the_others_still_run(one_target: World) -> None:
    world = one_target
    broken = "[sync#1]\ntype = zfs\nsrc = not/a//dataset\ntarget = nodes\nrecursiv = True\n"
    world.configure(broken, service="broken")
    result = world.sync(expect=2)
    for words in ("not/a//dataset", "recursiv", "broken.conf", "sync#1"):
        assert words in result.stderr
    world.assert_equal()
    assert world.entry(world.target)["status"] == "ok"
    result = world.agent("-s", "broken", "syncupdate", expect=2)
    assert "recursiv" in result.stderr
    write(world, "second")
    assert world.sync("-s", world.service).stderr == ""
    world.assert_equal()


def test_a_src_that_does_not_exist_is_an_error_and_the_others_still_run(one_target: World) -> None:
    world = one_target
    lost = f"[sync#1]\ntype = zfs\nsrc@{OSOL1} = osol1_z3_root/lost\ntarget = {OSOL2}\n"
    world.configure(lost, world.source, service="lost")
    result = world.sync(expect=2)
    assert "osol1_z3_root/lost" in result.stderr
    assert "next:" in result.stderr
    world.assert_equal()
    assert world.datasets(world.target, "osol2_z3_root") == ["", "/data", "/data/a", "/data/b"]


def test_two_resources_with_one_src_are_refused_until_they_have_prefixes(
    two_targets: World,
) -> None:
    world = two_targets
    text = f"[sync#1]\ntype = zfs\nsrc@{SOURCE} = tank/data\ntarget = {T1}\n"
    second = f"[sync#2:sync#1]\ntarget = {T2}\ndst@{SOURCE} = tank/second\n"
    world.configure(text + second)
    result = world.sync(expect=2)
    assert "sync#1" in result.stderr
    assert "sync#2" in result.stderr
    assert not world.source.guids(world.src)
    world.configure(text + second + "snap_prefix = two.\n")
    for number in range(3):
        world.sync()
        world.assert_equal(world.targets[0])
        world.assert_equal(world.targets[1], dst="tank/second", sent="two.sent")
        write(world, str(number))
    assert world.snapshots(world.targets[0], world.dst) == ["sent"]
    assert world.snapshots(world.targets[1], "tank/second") == ["two.sent"]
    assert world.snapshots(world.source, world.src) == ["sent", "two.sent"]


def test_one_src_can_go_to_two_places_of_one_target(two_targets: World) -> None:
    world = two_targets
    text = f"[sync#1]\ntype = zfs\nsrc@{SOURCE} = tank/data\ntarget = {T1}\n"
    second = f"[sync#2:sync#1]\ndst@{SOURCE} = tank/second\nsnap_prefix = two.\n"
    world.configure(text + second)
    target = world.targets[0]
    for number in range(2):
        world.sync()
        world.assert_equal(target)
        world.assert_equal(target, dst="tank/second", sent="two.sent")
        write(world, str(number))
        world.source.zfs("create", f"{world.src}/c{number}")
