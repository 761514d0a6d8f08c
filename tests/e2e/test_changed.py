"""Runs with send_changed: where few of many datasets were written to, these are sent alone.

That the data arrives is read from both sides; what a kill leaves is made by kills, and where ZFS
does not tell what was written, by hand.
"""

from __future__ import annotations

import shlex
import subprocess

import pytest

from tests.e2e.kill_chain import switch
from tests.e2e.kill_switch import FAMILY, MARKER
from tests.e2e.test_field_cut import all_ended
from tests.e2e.test_targets import kill_ssh_sessions
from tests.e2e.world import OK, World, ended
from tests.lab.process import PATIENCE

pytestmark = pytest.mark.zfs

CHILDREN = ("a", "b", "c", "d", "e", "f", "g")


def eight(world: World) -> World:
    """Bring a tree of eight datasets to the targets."""
    for child in CHILDREN:
        if not world.exists(world.source, f"{world.src}/{child}"):
            world.source.zfs("create", f"{world.src}/{child}")
    world.add_keys("send_changed = True")
    world.sync()
    world.assert_equal()
    world.watch()
    return world


def sent(world: World) -> list[str]:
    """Return the names of the datasets that were sent since `watch`, sorted; a tree ends by -R."""
    found = [
        call[-1].partition("@")[0][len(world.src) :] + (" -R" if "-R" in call else "")
        for call in world.sends()
    ]
    return sorted(found)


def in_order(world: World) -> None:
    """Hold that both sides are equal, and that the check says so, by its own look too."""
    world.assert_equal()
    world.assert_tidy(*world.targets)
    assert not world.full_streams()
    world.assert_check(OK, "--verify")


@pytest.mark.needs("written")
def test_the_datasets_that_were_written_to_are_sent_and_no_others(one_target: World) -> None:
    world = eight(one_target)
    before = world.source.guids(world.src)
    world.source.write(f"{world.src}/c", "file", b"second")
    dry = world.sync("-n").stdout
    assert [f"{world.src}{name}@tosend" in dry for name in ("", "/c", "/d")] == [True, True, False]
    assert "-R" not in dry
    world.sync()
    assert sent(world) == ["", "/c"]
    in_order(world)
    after = world.source.guids(world.src)
    assert {one for one in after if after[one] != before[one]} == {
        f"{world.src}@sent",
        f"{world.src}/c@sent",
    }
    snapshot = world.entry(world.target)["snapshot"]
    assert (snapshot["datasets"], snapshot["guid"]) == (8, after[f"{world.src}@sent"])
    # From bases of unlike age one stream brings all of it, here with a new child.
    world.watch()
    for child in ("a", "d", "e"):
        world.source.write(f"{world.src}/{child}", "file", b"third")
    world.source.zfs("create", f"{world.src}/h")
    world.sync()
    assert sent(world) == [" -R"]
    world.assert_equal()
    world.assert_check(OK, "--verify")


@pytest.mark.needs("written")
def test_what_is_written_while_b_is_taken_comes_with_the_whole_tree(one_target: World) -> None:
    world = eight(one_target)
    world.source.write(f"{world.src}/c", "file", b"second")
    gate = world.gate(world.source, "zfs", ["snapshot"])
    running = world.start()
    gate.wait_until_reached()
    world.source.write(f"{world.src}/d", "file", b"meanwhile")
    gate.open()
    ended(running)
    assert sent(world) == ["", " -R", "/c"]
    in_order(world)


@pytest.mark.needs("written")
def test_a_target_that_missed_some_gets_what_it_lacks(two_targets: World) -> None:
    world = eight(two_targets)
    away, there = world.targets
    world.source.write(f"{world.src}/c", "file", b"second")
    lost = away.fault("zfs", ["receive"], kill_ssh_sessions(), when="before")
    world.sync(expect=1)
    assert lost.fired
    away.clear_faults()
    world.assert_equal(there)
    away.cut()
    world.source.write(f"{world.src}/d", "file", b"third")
    world.sync(expect=1)
    world.assert_equal(there)
    away.mend()
    world.sync()
    world.sync()
    in_order(world)


@pytest.mark.needs("written")
@pytest.mark.parametrize(
    ("at_source", "words"),
    [
        (True, ["send"]),
        (False, ["receive"]),
        (False, ["destroy"]),
        (False, ["rename"]),
        (True, ["destroy"]),
        (True, ["rename"]),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else ("target", "source")[one],
)
def test_a_run_that_is_killed_is_mended_by_the_next(
    one_target: World, at_source: bool, words: list[str]
) -> None:
    world = eight(one_target)
    world.source.write(f"{world.src}/c", "file", b"second")
    node = world.source if at_source else world.target
    do = shlex.join(switch(FAMILY, world.target))
    # After the first of them, so that one dataset has it behind it, and the other not.
    fault = node.fault("zfs", words, do, when="after")
    running = world.source.popen(
        world.source.python("zfs_sync_agent", "syncupdate"),
        env={MARKER: "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    running.communicate(timeout=60 * PATIENCE)
    assert fault.fired
    all_ended(world)
    world.assert_check(OK, "--verify")
    world.sync()
    in_order(world)


@pytest.mark.parametrize("rotated", ["nothing", "sent", "renamed"])
def test_b_of_some_that_a_cut_run_left_is_finished_and_one_of_all_comes_after_it(
    one_node: World, rotated: str
) -> None:
    world, node = one_node, one_node.source
    for child in ("b", "c"):
        node.zfs("create", f"{world.src}/{child}")
    world.sync()
    for name in ("", "/c", "/a"):
        node.write(f"{world.src}{name}", "file", b"second")
    mark = f"zfs_sync:rid={world.service}/{world.rid}"
    for name in ("", "/c"):
        node.zfs("snapshot", "-o", mark, f"{world.src}{name}@tosend")
    if rotated != "nothing":
        pipe = f"zfs send -p -i {world.src}@sent {world.src}@tosend | zfs receive {world.dst}"
        node.run(["/bin/sh", "-c", pipe])
    if rotated == "renamed":
        node.zfs("destroy", f"{world.dst}@sent")
        node.zfs("rename", f"{world.dst}@tosend", f"{world.dst}@sent")
    world.watch()
    world.sync()
    assert sent(world) == ([] if rotated != "nothing" else [""]) + [" -R", "/c"]
    world.assert_equal()
    assert not world.full_streams()
    world.assert_check(OK, "--verify")
