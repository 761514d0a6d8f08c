"""Failures of the field where something ends half-way: a run, a rotation, a stream, an answer.

Each is cut at the very place that the field's tools did not survive; test_kill.py cuts everywhere.
The table in field.py says which failure is meant.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence

import pytest

from tests.e2e.conftest import make_tree
from tests.e2e.kill_chain import switch
from tests.e2e.kill_switch import FAMILY, MARKER, RECEIVER
from tests.e2e.test_refusals import everything
from tests.e2e.world import OK, World, ended
from tests.lab import Node
from tests.lab.process import PATIENCE, eventually

pytestmark = pytest.mark.zfs

ALL = ("", "/a", "/b")
OF_FOUR = (*ALL, "/c")

CUT = "/run/zfs_sync/cut"
MEND = "/run/zfs_sync/mend"
STREAM = "/run/zfs_sync/stream"

# Stands for `zfs send`: passes on a stream up to a place inside its N-th dataset, then is silent.
# Every dataset's part begins with the magic number of ZFS, and so does the stream as a whole.
CUT_SEND = f"""\
"$0" "$@" >{STREAM} || exit
part=$(LC_ALL=C grep -obUaP '\\xac\\xcb\\xba\\xf5\\x02\\x00\\x00\\x00' {STREAM} | sed -n NTHp)
head -c $((${{part%%:*}} + 2000)) {STREAM}
touch {CUT}
while [ ! -e {MEND} ]; do sleep 0.05; done
exit 1
"""
# A part's beginning: the magic number, 40 bytes of numbers, the name of its snapshot.
PART = re.compile(rb"\xac\xcb\xba\xf5\x02\x00\x00\x00.{40}([^\x00]*)@", re.DOTALL)


def change(world: World, content: str, children: Sequence[str] = ALL) -> None:
    for child in children:
        world.source.write(world.src + child, "file", f"{content} of {child}".encode() * 500)


def guids_of(node: Node, root: str, snapshot: str, children: Sequence[str] = ALL) -> list[str]:
    """Return the guids of one snapshot name in the datasets of a tree; '' where it is not."""
    held = node.guids(root)
    return [held.get(f"{root}{child}@{snapshot}", "") for child in children]


def sent_datasets(world: World, sends: Sequence[Sequence[str]]) -> list[str]:
    """Return the relative names of the datasets that were sent, in order."""
    return [call[-1].partition("@")[0][len(world.src) :] for call in sends]


def partials(world: World, children: Sequence[str]) -> list[str]:
    """Return the datasets of which the target keeps a part, if its ZFS can.

    A receive that is killed before it has begun a dataset leaves nothing of it.
    """
    if "resume" not in world.target.features:
        return []
    listing = ("get", "-r", "-Hp", "-o", "name,value", "receive_resume_token", world.dst)
    rows = [line.split("\t") for line in world.target.zfs(*listing).splitlines()]
    held = {name[len(world.dst) :] for name, value in rows if value != "-"}
    return [child for child in children if child in held]


def all_ended(world: World) -> None:
    """Wait for what a cut run left behind, and release what zfs-fuse holds for a killed send."""
    for node in world.nodes:
        node.clear_faults()
    eventually("nothing is left running", lambda: not any(one.strays() for one in world.nodes), 30)
    if world.source.holds():
        world.source.release_holds()


def killed(world: World, verb: str) -> None:
    """Run the agent and kill it with all it started right before its first such command there."""
    do = shlex.join(switch(FAMILY, world.target))
    fault = world.source.fault("zfs", [verb], do, when="before")
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


def sever(world: World) -> None:
    """End every ssh session of the target, and what runs in it."""
    world.target.run(switch(RECEIVER, world.target))


def cut_inside(world: World, nth: int) -> tuple[list[str], list[str]]:
    """Run the agent and lose the target inside the n-th dataset of a stream of the tree.

    Returns the datasets that had arrived by then, and those that had not: their order in a stream
    is ZFS's own.
    """
    source, target = world.source, world.target
    for file in (CUT, MEND):
        source.path(file).unlink(missing_ok=True)
    do = CUT_SEND.replace("NTH", str(nth + 1))
    source.fault("zfs", ["send", "-R"], do, when="instead")
    running = world.start()
    eventually("the stream was passed on up to the cut", source.path(CUT).exists, 30)
    _, *parts = PART.findall(source.path(STREAM).read_bytes())
    order = [part.decode()[len(world.src) :] for part in parts]
    there, missing = order[: nth - 1], order[nth - 1 :]

    def arrived() -> bool:
        here = guids_of(source, world.src, "tosend", there)
        return here == guids_of(target, world.dst, "tosend", there)

    eventually(f"{there} arrived", arrived, 30)
    sever(world)
    source.path(MEND).touch()
    ended(running, 1)
    all_ended(world)
    assert not any(guids_of(target, world.dst, "tosend", missing))
    return there, missing


# --- a run that was killed ----------------------------------------------------------------------


def test_b05_what_the_target_has_rotated_is_not_sent_again_to_it(one_target: World) -> None:
    world = one_target
    world.sync()
    change(world, "second")
    killed(world, "destroy")
    b = guids_of(world.source, world.src, "tosend")
    assert guids_of(world.target, world.dst, "sent") == b
    assert guids_of(world.source, world.src, "sent") != b
    change(world, "third")
    world.watch()
    world.sync()
    # The one stream begins at B: B itself is on the target already.
    assert len(world.sends()) == 1
    assert not world.full_streams()
    world.assert_equal()
    world.assert_tidy(world.target)
    world.assert_check(OK)


def test_b06_a_target_cut_between_destroy_and_rename_keeps_what_it_received(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    change(world, "second")
    do = shlex.join(switch(RECEIVER, world.target))
    fault = world.target.fault("zfs", ["rename"], do, when="before")
    world.sync(expect=1)
    assert fault.fired
    all_ended(world)
    b = guids_of(world.source, world.src, "tosend")
    assert guids_of(world.target, world.dst, "tosend") == b
    assert guids_of(world.target, world.dst, "sent") == ["", "", ""]
    change(world, "third")
    world.watch()
    world.sync()
    assert len(world.sends()) == 1
    assert not world.full_streams()
    world.assert_equal()
    world.assert_tidy(world.target)
    world.assert_check(OK)


def test_b07_a_source_cut_between_destroy_and_rename_goes_on_incrementally(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    change(world, "second")
    killed(world, "rename")
    b = guids_of(world.source, world.src, "tosend")
    assert guids_of(world.source, world.src, "sent") == ["", "", ""]
    assert guids_of(world.target, world.dst, "sent") == b
    change(world, "third")
    world.watch()
    world.sync()
    assert len(world.sends()) == 1
    assert not world.full_streams()
    world.assert_equal()
    world.assert_tidy(world.target)
    world.assert_check(OK)


# --- a stream with a gap ------------------------------------------------------------------------


def test_b09_a_child_that_could_not_be_sent_is_told_and_nothing_is_rotated(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    change(world, "second")
    a = guids_of(world.target, world.dst, "sent")
    recorded = world.entry(world.target)["snapshot"]
    # Somebody's pruning, in the moment between the snapshot and the send.
    do = f"zfs destroy {world.src}/a@tosend"
    fault = world.source.fault("zfs", ["send"], do, when="before")
    stderr = world.sync(expect=1).stderr
    assert fault.fired
    world.source.clear_faults()
    assert f"{world.src}/a@tosend" in stderr
    assert guids_of(world.target, world.dst, "sent") == a
    assert guids_of(world.source, world.src, "sent") == a
    entry = world.entry(world.target)
    assert (entry["status"], entry["snapshot"]) == ("failed", recorded)
    change(world, "third")
    # The next run finishes what there is of the intent, and gets no further: a is as old as before.
    world.source.fault("zfs", ["snapshot"], "echo no room >&2; exit 1", when="instead")
    world.sync(expect=1)
    assert world.entry(world.target)["snapshot"] == recorded
    world.source.clear_faults()
    world.watch()
    world.sync()
    world.sync()
    world.assert_equal()
    world.assert_tidy(world.target)
    assert not world.full_streams()
    world.assert_check(OK)


def test_b23_a_receive_that_says_0_and_received_nothing_is_a_failure(one_target: World) -> None:
    world = one_target
    world.sync()
    change(world, "second")
    before = everything(world.target)
    recorded = world.entry(world.target)["snapshot"]
    world.target.fault("zfs", ["receive", "-d"], "cat >/dev/null; exit 0", when="instead")
    stderr = world.sync(expect=1).stderr
    assert "3 of 3 datasets did not arrive" in stderr
    assert everything(world.target) == before
    entry = world.entry(world.target)
    assert (entry["status"], entry["snapshot"]) == ("failed", recorded)
    world.target.clear_faults()
    world.sync()
    world.assert_equal()
    world.assert_tidy(world.target)
    world.assert_check(OK)


# --- a stream that was cut ----------------------------------------------------------------------


@pytest.mark.parametrize("nth", [1, 2, 4])
def test_b10_a_first_stream_of_the_tree_cut_inside_any_dataset_sends_the_rest_in_the_next_run(
    one_target: World, nth: int
) -> None:
    world = one_target
    make_tree(world.source, f"{world.src}/c")
    there, missing = cut_inside(world, nth)
    assert sorted([*there, *missing]) == list(OF_FOUR)
    kept = partials(world, missing) if world.exists(world.target, world.dst) else []
    world.watch()
    world.sync()
    # With nothing there it is the stream of the tree once more.
    lacking = sorted(set(missing) - set(kept)) if there or kept else [""]
    assert sent_datasets(world, world.full_streams()) == lacking
    assert world.resumed() == len(kept)
    world.assert_equal()
    world.assert_tidy(world.target)
    world.assert_check(OK)


def test_b10_a_first_sync_that_is_cut_after_each_dataset_sends_each_of_them_once(
    one_target: World,
) -> None:
    world = one_target
    make_tree(world.source, f"{world.src}/c")
    # With older history each dataset has a stream of its own.
    world.source.zfs("snapshot", f"{world.src}@old")
    lost = shlex.join(switch(RECEIVER, world.target))
    for number, child in enumerate(OF_FOUR[:-1]):
        into = f"{world.dst}{child}" if child else "-d"
        world.watch()
        fault = world.target.fault("zfs", ["receive", into], lost, when="after")
        world.sync(expect=1)
        assert fault.fired
        all_ended(world)
        sent = sent_datasets(world, world.sends())
        # The send of the next one may have begun by the time at which the target was lost.
        assert sent[0] == child
        assert not set(sent) & set(OF_FOUR[:number])
        held = guids_of(world.target, world.dst, "tosend", OF_FOUR)
        assert [bool(guid) for guid in held] == [n <= number for n in range(4)]
    world.watch()
    world.sync()
    assert sent_datasets(world, world.full_streams()) == ["/c"]
    world.assert_equal()
    assert world.snapshots(world.target, world.dst) == ["sent"]
    world.assert_check(OK)


@pytest.mark.lacks("resume")
def test_b11_a_transfer_cut_inside_a_dataset_leaves_no_token_and_begins_anew(
    one_target: World,
) -> None:
    world = one_target
    world.watch()
    world.sync()
    change(world, "second")
    held = guids_of(world.target, world.dst, "sent")
    cut_inside(world, 1)
    assert guids_of(world.target, world.dst, "sent") == held
    world.sync()
    for call in world.receives():
        assert "s" not in "".join(word for word in call if word.startswith("-")), call
    world.assert_equal()
    world.assert_tidy(world.target)
    world.assert_check(OK)


def test_b12_an_incremental_stream_cut_in_the_middle_leaves_some_at_b_and_the_rest_is_sent(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    change(world, "second")
    a = guids_of(world.target, world.dst, "sent")
    there, (lost,) = cut_inside(world, 3)
    assert len(there) == 2
    assert guids_of(world.target, world.dst, "sent") == a
    assert guids_of(world.source, world.src, "sent") == a
    assert world.entry(world.target)["snapshot"]["guid"] == a[0]
    kept = partials(world, [lost])
    world.watch()
    world.sync()
    first, *others = world.sends()
    rest = ["-p", "-i", f"{world.src}{lost}@sent", f"{world.src}{lost}@tosend"]
    assert first[1:] == (["-t", first[2]] if kept else rest)
    assert [call[1] for call in others] == ["-R"]
    assert not world.full_streams()
    world.assert_equal()
    world.assert_tidy(world.target)
    world.assert_check(OK)
