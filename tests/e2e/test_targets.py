"""Several targets: one that is down, one whose answer is lost, one that joins slowly."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.e2e.conftest import SOURCE, T1, T2, Nodes, make_tree
from tests.e2e.world import MARK, OK, World, ended
from tests.lab import Node, Pool

pytestmark = pytest.mark.zfs

T3 = "t3.example.com"


def file_for(*targets: str) -> str:
    return f"[sync#1]\ntype = zfs\nsrc@{SOURCE} = tank/data\ntarget = {' '.join(targets)}\n"


@pytest.fixture
def three_targets(lab: Nodes) -> World:
    """One source, three targets."""
    wanted: dict[str, dict[str, Pool | str]] = {SOURCE: {"tank": "source"}}
    nodes = lab({**wanted, **{name: {"tank": "target"} for name in (T1, T2, T3)}})
    world = World(nodes[0], nodes[1:], file_for(T1, T2, T3), src="tank/data", dst="tank/data")
    make_tree(world.source, world.src, "a")
    return world


def row(world: World, target: Node) -> dict[str, Any]:
    return next(row for row in world.status() if row["target"] == target.name)


def change(world: World, content: str) -> None:
    world.source.write(world.src, "file", content.encode())
    world.source.write(f"{world.src}/a", content, content.encode())


def down_for_three_runs_and_back(world: World, absent: Node) -> None:
    present = [target for target in world.targets if target is not absent]
    world.sync()
    world.watch()
    base = world.source.guids(world.src)[f"{world.src}@sent"]
    absent.stop_ssh()
    blocks = []
    for number in range(3):
        change(world, f"run{number}")
        blocks.append(world.sync(expect=1).stderr)
        world.assert_equal(*present)
        # The absent one's base stays on the source, under whatever own name.
        assert base in world.source.guids(world.src).values()
        kept = world.retained()
        assert absent.name in kept
        for target in present:
            assert target.name not in kept
        assert world.entry(absent)["status"] == "failed"
        (kept_base,) = row(world, absent)["kept_bases"]
        size = f"{world.src}@{kept_base['snapshot']}"
        assert int(world.prop(world.source, "creation", size).value) == kept_base["since"]
        assert kept_base["bytes"] >= int(world.prop(world.source, "used", size).value)
        assert f"@{kept_base['snapshot']} is kept for it" in world.check(world.source, "-v").stdout
        assert not row(world, present[0])["kept_bases"]
        for target in present:
            assert world.check(target).code == OK
    assert absent.name in blocks[0]
    assert blocks[0].count("next:") == 1
    assert blocks[1:] == ["", ""]
    assert absent.guids(world.dst)[f"{world.dst}@sent"] == base
    absent.start_ssh()
    change(world, "back")
    # The first run that reaches it may catch it up beside the others; the second has all abreast.
    world.sync()
    world.sync()
    world.assert_equal()
    assert not world.full_streams()
    world.sync()
    world.assert_equal()
    world.assert_tidy(*world.targets)
    assert base not in world.source.guids(world.src).values()
    assert not row(world, absent)["kept_bases"]
    world.assert_check(OK)


def test_b08_one_of_two_targets_down_for_three_runs_comes_back_without_a_full_stream(
    two_targets: World,
) -> None:
    down_for_three_runs_and_back(two_targets, two_targets.targets[1])


def test_one_of_three_targets_down_for_three_runs_comes_back_without_a_full_stream(
    three_targets: World,
) -> None:
    down_for_three_runs_and_back(three_targets, three_targets.targets[0])


def test_a_target_that_was_down_has_all_after_the_first_run_that_reaches_it(
    two_targets: World,
) -> None:
    world = two_targets
    world.sync()
    world.targets[1].stop_ssh()
    change(world, "missed")
    world.sync(expect=1)
    world.targets[1].start_ssh()
    world.sync()
    newest = world.source.guids(world.src)
    held = world.targets[1].guids(world.dst)[f"{world.dst}@sent"]
    assert held in newest.values()
    assert "missed" in world.targets[1].checksums(f"{world.dst}/a@sent")
    assert world.entry(world.targets[1])["status"] == "ok"


def test_targets_that_take_turns_in_being_down_converge(two_targets: World) -> None:
    world = two_targets
    world.sync()
    world.watch()
    for number, absent in enumerate((*world.targets, *world.targets)):
        absent.stop_ssh()
        change(world, f"run{number}")
        world.sync(expect=1)
        absent.start_ssh()
    world.sync()
    world.sync()
    world.assert_equal()
    world.assert_tidy(*world.targets)
    assert not world.full_streams()


def test_nothing_is_taken_while_no_target_answers(two_targets: World) -> None:
    world = two_targets
    world.sync()
    before = world.source.guids(world.src)
    for target in world.targets:
        target.stop_ssh()
    for _ in range(2):
        world.sync(expect=1)
        assert world.source.guids(world.src) == before
    for target in world.targets:
        target.start_ssh()
    world.sync()
    world.assert_equal()
    world.assert_tidy(*world.targets)


@pytest.mark.parametrize("verb", ["destroy", "rename"])
def test_b05_an_answer_lost_while_the_target_rotates_converges_though_it_is_away_then(
    two_targets: World, verb: str
) -> None:
    world = two_targets
    _, lost = world.targets
    world.sync()
    world.watch()
    change(world, "lost")
    # The command runs on the target; its answer never leaves it.
    fault = lost.fault("zfs", [verb, "-r"], kill_ssh_sessions(), when="after")
    world.sync(expect=1)
    assert fault.fired
    lost.clear_faults()
    world.assert_equal(world.targets[0])
    change(world, "while it was away")
    lost.stop_ssh()
    world.sync(expect=1)
    lost.start_ssh()
    change(world, "back")
    world.sync()
    world.sync()
    world.assert_equal()
    world.sync()
    world.assert_tidy(*world.targets)
    assert not world.full_streams()


def kill_ssh_sessions() -> str:
    """Return what ends every ssh session on the node where it runs, but not the listener.

    A session is an ancestor of this very command.
    """
    return (
        "pid=$$; while [ $pid -gt 1 ]; do"
        " parent=$(awk '/^PPid:/ {print $2}' /proc/$pid/status);"
        " case $(cat /proc/$parent/cmdline 2>/dev/null | tr '\\0' ' ') in"
        " sshd:*) kill -9 $parent; break;; esac; pid=$parent; done"
    )


def test_a_push_that_is_lost_is_told_and_mended(two_targets: World) -> None:
    world = two_targets
    world.sync()
    lost = world.targets[1]
    old = world.state_text(lost)
    lost.fault("mv", ["-f"], "exit 9", when="instead")
    change(world, "second")
    result = world.sync(expect=1)
    assert lost.name in result.stderr
    assert world.state_text(lost) == old
    world.assert_equal()
    lost.clear_faults()
    world.sync()
    assert world.entry(lost, on=lost) == world.entry(lost)


def full_by_dataset(world: World) -> list[str]:
    """Return the datasets that were sent in full."""
    return [call[-1].partition("@")[0] for call in world.full_streams()]


def test_a_new_target_with_a_slow_first_stream_holds_up_nobody(two_targets: World) -> None:
    world = two_targets
    old, new = world.targets
    world.configure(file_for(T1))
    world.sync()
    world.configure(file_for(T1, T2))
    world.watch()
    # Not the usage text that the agent asks for first: the stream.
    gate = world.gate(new, "zfs", ["receive", "-d"])
    slow = world.start()
    gate.wait_until_reached()
    world.wait_until_only_joins()
    for number in range(3):
        change(world, f"meanwhile{number}")
        world.sync("--node", T1)
        world.assert_equal(old)
        change(world, f"also{number}")
        world.sync()  # a run for all targets leaves the new one to the run that has it
        world.assert_equal(old)
    gate.open()
    ended(slow)
    assert world.prop(new, MARK, world.dst).source == "local"
    world.sync()
    world.sync()
    world.assert_equal()
    world.assert_tidy(*world.targets)
    # One stream for each dataset of the tree, none twice.
    assert sorted(full_by_dataset(world)) == ["tank/data", "tank/data/a"]
    world.assert_check(OK)


def test_b08_a_new_target_that_waits_at_a_child_holds_up_nobody(two_targets: World) -> None:
    world = two_targets
    old, new = world.targets
    world.configure(file_for(T1))
    world.sync()
    world.configure(file_for(T1, T2))
    world.watch()
    gate = world.gate(new, "zfs", ["receive", f"{world.dst}/a"])
    slow = world.start()
    gate.wait_until_reached()
    world.wait_until_only_joins()
    assert world.datasets(new, world.dst) == [""]
    for number in range(2):
        change(world, f"meanwhile{number}")
        world.sync()
        world.assert_equal(old)
    gate.open()
    ended(slow)
    world.sync()
    world.sync()
    world.assert_equal()
    world.assert_tidy(*world.targets)
    assert sorted(full_by_dataset(world)) == ["tank/data", "tank/data/a"]
    world.assert_check(OK)


def test_children_come_and_go_while_a_new_target_joins(two_targets: World) -> None:
    world = two_targets
    old, new = world.targets
    world.configure(file_for(T1))
    make_tree(world.source, f"{world.src}/moved")
    # More than the pipes and the connection hold: most is sent after the gate has opened.
    world.source.write(world.src, "large", os.urandom(16 << 20))
    world.sync()
    world.configure(file_for(T1, T2))
    world.watch()
    gate = world.gate(new, "zfs", ["receive", "-d"])
    slow = world.start()
    gate.wait_until_reached()
    world.wait_until_only_joins()
    make_tree(world.source, f"{world.src}/born")
    world.sync()
    world.source.zfs("rename", f"{world.src}/a", f"{world.src}/renamed")
    world.source.zfs("rename", f"{world.src}/moved", f"{world.src}/born/moved")
    world.sync()
    world.source.zfs("destroy", "-r", f"{world.src}/renamed")
    world.sync()
    world.sync()
    world.assert_equal(old)
    gate.open()
    slow.communicate(timeout=120)
    # A run may fail for what moved under its hands, but whatever comes next converges.
    assert slow.returncode in {0, 1}
    world.agent("syncupdate")
    for _ in range(3):
        world.sync()
    world.assert_equal()
    world.assert_tidy(*world.targets)
    # What moved is tried again; the root, which has the bulk, is sent once.
    assert full_by_dataset(world).count("tank/data") == 1


def test_a_target_that_leaves_the_file_no_longer_holds_a_base(two_targets: World) -> None:
    world = two_targets
    world.sync()
    world.targets[1].stop_ssh()
    change(world, "second")
    world.sync(expect=1)
    assert T2 in world.retained()
    world.configure(file_for(T1))
    change(world, "third")
    world.sync()
    world.assert_equal(world.targets[0])
    world.assert_tidy(world.targets[0])
    assert T2 in world.log()
