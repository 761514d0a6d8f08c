"""A transfer that was cut goes on where it stopped: only what is missing travels again.

Needs a ZFS with `receive -s`. Where it is cut is decided by bytes, as a link or a target would.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

import pytest

from tests.e2e.test_field_cut import CUT, MEND, all_ended, sever
from tests.e2e.world import OK, World, ended
from tests.lab.process import eventually

pytestmark = [pytest.mark.zfs, pytest.mark.needs("resume")]

MIB = 1 << 20
WHOLE, PART = 12 * MIB, 7 * MIB

# Stands for `zfs send`: passes on so many bytes, then is silent.
CUT_AFTER = f"""\
"$0" "$@" | head -c SIZE
touch {CUT}
while [ ! -e {MEND} ]; do sleep 0.05; done
exit 1
"""


def token(world: World, dataset: str) -> str:
    return world.prop(world.target, "receive_resume_token", f"{world.dst}{dataset}").value


def cut_after(
    world: World, size: int, cut: Callable[[World], object] = sever, args: Sequence[str] = ()
) -> None:
    """Run the agent and lose the target after so many bytes of the first stream."""
    source, target = world.source, world.target
    pool = world.dst.partition("/")[0]

    def allocated() -> int:
        return int(target.zpool("list", "-Hp", "-o", "alloc", pool))

    for file in (CUT, MEND):
        source.path(file).unlink(missing_ok=True)
    before = allocated()
    source.fault("zfs", ["send", "-R"], CUT_AFTER.replace("SIZE", str(size)), when="instead")
    running = world.start(*args, "syncupdate")
    eventually("the stream was passed on up to the cut", source.path(CUT).exists, 60)
    eventually("most of it arrived", lambda: allocated() - before > size // 2, 60)
    cut(world)
    source.path(MEND).touch()
    ended(running, 1)
    all_ended(world)


def assert_the_rest_was_sent(world: World) -> None:
    """Assert it by the closing line: the same run took a new snapshot and sent that, too."""
    (size,) = re.findall(r"@sent: resume, \d+ datasets, (\d+) bytes", world.log())
    assert 0 < int(size) < WHOLE - PART + 2 * MIB


def test_a_first_sync_that_was_cut_sends_but_the_rest(one_target: World) -> None:
    world = one_target
    world.source.write(f"{world.src}/a", "large", os.urandom(WHOLE))
    cut_after(world, PART)
    assert token(world, "/a") != "-"
    world.watch()
    world.sync()
    first, *others = world.sends()
    assert first[1] == "-t"
    assert not [call for call in others if call[-1].startswith(f"{world.src}/a@")]
    assert_the_rest_was_sent(world)
    world.assert_equal()
    world.assert_tidy(world.target)
    world.assert_check(OK)
    world.sync()
    world.assert_equal()


def test_a_first_sync_that_was_cut_inside_its_root_goes_on(one_target: World) -> None:
    world = one_target
    world.source.write(world.src, "large", os.urandom(WHOLE))
    cut_after(world, PART)
    assert token(world, "") != "-"
    shown = world.agent("--dry-run", "syncupdate").stdout
    assert "zfs send -t " in shown
    world.watch()
    world.sync()
    assert world.sends()[0][1] == "-t"
    assert_the_rest_was_sent(world)
    world.assert_equal()
    world.assert_tidy(world.target)
    world.assert_check(OK)


def test_an_incremental_stream_that_was_cut_twice_goes_on(one_target: World) -> None:
    world = one_target
    world.sync()
    world.source.write(f"{world.src}/b", "large", os.urandom(WHOLE))
    cut_after(world, PART)
    begun = token(world, "/b")
    assert begun != "-"
    # The link is down for one run more: what was received is kept.
    world.target.stop_ssh()
    world.sync(expect=1)
    world.target.start_ssh()
    assert token(world, "/b") == begun
    world.watch()
    world.sync()
    assert world.sends()[0][1] == "-t"
    assert not world.full_streams()[1:]
    assert_the_rest_was_sent(world)
    world.assert_equal()
    world.assert_tidy(world.target)
    world.assert_check(OK)


def test_a_child_renamed_while_its_first_transfer_was_cut_is_not_sent_again(
    one_target: World,
) -> None:
    world = one_target
    world.source.write(f"{world.src}/a", "large", os.urandom(WHOLE))
    cut_after(world, PART)
    assert token(world, "/a") != "-"
    world.source.zfs("rename", f"{world.src}/a", f"{world.src}/moved")
    world.watch()
    world.sync()
    assert world.resumed() == 1
    assert_the_rest_was_sent(world)
    world.sync()
    world.assert_equal()
    world.assert_tidy(world.target)
    world.assert_check(OK)


def test_the_rest_goes_on_where_another_target_got_the_snapshot_meanwhile(
    two_targets: World,
) -> None:
    world = two_targets
    late, early = world.targets
    world.sync()
    world.source.write(f"{world.src}/a", "large", os.urandom(WHOLE))
    cut_after(world, PART, args=("--node", late.name))
    assert token(world, "/a") != "-"
    # Now the snapshot is @sent on the source, and the one before it is @sent on the late target.
    world.sync("--node", early.name)
    world.watch()
    world.sync()
    assert world.resumed() == 1
    assert not world.full_streams()
    world.sync()
    world.assert_equal()
    world.assert_tidy(*world.targets)
    world.assert_check(OK)


def test_a_power_cut_of_the_target_amid_a_transfer_loses_nothing(one_target: World) -> None:
    world = one_target
    world.sync()
    world.source.write(f"{world.src}/b", "large", os.urandom(WHOLE))
    cut_after(world, PART, lambda one: one.target.kill_zfs())
    world.target.start_zfs()
    world.watch()
    world.sync()
    assert not world.full_streams()
    world.assert_equal()
    world.assert_tidy(world.target)
    world.assert_check(OK)


def test_b11_what_was_received_of_a_snapshot_that_is_gone_is_given_up(one_target: World) -> None:
    world = one_target
    world.sync()
    world.source.write(f"{world.src}/b", "large", os.urandom(WHOLE))
    cut_after(world, PART)
    assert token(world, "/b") != "-"
    world.source.zfs("destroy", f"{world.src}/b@tosend")
    world.watch()
    world.sync()
    assert "tosend is given up: it is gone" in world.log()
    assert ["receive", "-A", f"{world.dst}/b"] in world.target.calls("zfs")
    assert not world.full_streams()
    world.sync()
    world.assert_equal()
    world.assert_tidy(world.target)
    world.assert_check(OK)


def test_what_somebody_else_receives_in_the_replica_is_left_to_him(one_target: World) -> None:
    world = one_target
    world.sync()
    pool = world.dst.partition("/")[0]
    world.target.zfs("create", "-o", f"mountpoint=/run/pools/{pool}", f"{pool}/other")
    world.target.write(f"{pool}/other", "large", os.urandom(WHOLE))
    world.target.zfs("snapshot", f"{pool}/other@mine")
    world.target.run(
        ["/bin/sh", "-c", f"zfs send {pool}/other@mine | head -c {PART} |"
         f" zfs receive -s {world.dst}/c; true"]
    )  # fmt: skip
    held = token(world, "/c")
    assert held != "-"
    world.source.zfs("create", f"{world.src}/c")
    block = world.sync(expect=3).stderr
    assert f"zfs receive -A {world.dst}/c" in block
    assert token(world, "/c") == held
    world.target.zfs("receive", "-A", f"{world.dst}/c")
    world.sync()
    world.assert_equal()
    world.assert_check(OK)
