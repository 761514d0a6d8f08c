"""A link that hangs without a word: every packet is lost, and nobody is told.

Such a run ends and leaves nothing behind on either side; slow is not stalled.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.e2e.world import OK, World, ended, workers
from tests.lab import Node, Running
from tests.lab.process import PATIENCE, eventually
from zfs_sync_agent.transport import BEAT_SECONDS

pytestmark = pytest.mark.zfs

STALL_SECONDS = 2
# After so long ssh notices by itself that a link is dead.
SILENT_SECONDS = 4
KEYS = (
    f"stall_timeout = {STALL_SECONDS}",
    f"ssh = ssh -o ServerAliveInterval={SILENT_SECONDS // 2} -o ServerAliveCountMax=1",
)
HALF, GO_ON = "/run/zfs_sync/half", "/run/zfs_sync/go-on"
TIME_WAIT = "06"


@pytest.fixture
def world(two_targets: World) -> World:
    """Two targets in sync, and more to send than all buffers on the way hold."""
    two_targets.add_keys(*KEYS)
    two_targets.sync()
    two_targets.source.write(two_targets.src, "large", os.urandom(8 << 20))
    two_targets.watch()
    return two_targets


def hang_amid_transfer(world: World, *lost: Node) -> Running:
    """Start a run; when a target has got a part of its stream, its link dies without a word."""
    wait = f": >{HALF}; while [ ! -e {GO_ON} ]; do sleep 0.05; done"
    half_way = f'{{ head -c 2000000; {wait}; cat; }} | "$0" "$@"'
    for node in lost:
        node.fault("zfs", ["receive", "-d"], half_way, when="instead")
    running = world.start()
    for node in lost:
        eventually("half of the stream is there", node.path(HALF).exists, 30)
        node.drop()
        node.path(GO_ON).touch()
    return running


@contextmanager
def patience(node: Node, setting: str, retries: int) -> Iterator[None]:
    """Let a node's TCP give up sooner than after minutes."""
    file = f"/proc/sys/net/ipv4/{setting}"
    before = node.run(["cat", file]).stdout.strip()
    node.run(["sh", "-c", f"echo {retries} >{file}"])
    try:
        yield
    finally:
        node.run(["sh", "-c", f"echo {before} >{file}"])


def has_given_up(node: Node, peer: Node) -> bool:
    """Whether a node's TCP has nothing more to do with a peer."""
    address = f"{int.from_bytes(socket.inet_aton(peer.address), 'little'):08X}:"
    rows = [line.split() for line in node.run(["cat", "/proc/net/tcp"]).stdout.splitlines()[1:]]
    return all(row[3] == TIME_WAIT for row in rows if row[2].startswith(address))


def has_no_receive(node: Node) -> bool:
    return not any("zfs receive" in line for line in workers(node))


def is_mended_by_the_next_run(world: World, *lost: Node) -> None:
    world.sync()
    for node in lost:
        assert "large" in node.checksums(f"{world.dst}@sent")
    world.sync()
    world.assert_equal()
    world.assert_check(OK)
    assert not world.full_streams()


def test_a_link_that_hangs_ends_its_transfer_and_holds_up_no_other(world: World) -> None:
    other, lost = world.targets
    running = hang_amid_transfer(world, lost)
    began, limit = time.monotonic(), STALL_SECONDS + SILENT_SECONDS + 5 * PATIENCE
    _, stderr = ended(running, 1)
    assert STALL_SECONDS <= time.monotonic() - began < limit
    assert f"to {lost.name}: the transfer stalled: no byte for {STALL_SECONDS} s" in stderr
    assert "zfs send" in stderr
    assert workers(world.source) == []
    world.assert_equal(other)
    assert world.entry(other)["status"] == "ok"
    entry = world.entry(lost)
    assert (entry["status"], "stalled" in entry["last_attempt"]["error"]) == ("failed", True)
    assert world.check(other).code == OK
    lost.undrop()
    eventually("no receive is left on the target", partial(has_no_receive, lost), 30)
    is_mended_by_the_next_run(world, lost)


def test_a_receive_whose_source_has_given_up_ends(world: World) -> None:
    source, (back, dead) = world.source, world.targets
    with patience(source, "tcp_orphan_retries", 1), patience(dead, "tcp_retries2", 3):
        ended(hang_amid_transfer(world, back, dead), 1)
        for node in (back, dead):
            eventually("the source has given up", partial(has_given_up, source, node), 30)
        # Nothing that the source will ever send can end it.
        assert not has_no_receive(back)
        back.undrop()
        for node, link in ((back, "came back"), (dead, "stays dead")):
            # The outage is short: TCP tries again soon.
            reason = f"no receive is left where the link {link}"
            eventually(reason, partial(has_no_receive, node), 4 * BEAT_SECONDS)
        dead.undrop()
    is_mended_by_the_next_run(world, back, dead)


def test_slow_to_the_first_byte_and_slow_after_the_last_is_no_stall(world: World) -> None:
    slow = STALL_SECONDS + 1
    sent = world.source.fault("zfs", ["send"], f"sleep {slow}", when="before")
    after = f'"$0" "$@"; status=$?; sleep {slow}; exit $status'
    received = world.targets[0].fault("zfs", ["receive", "-d"], after, when="instead")
    world.sync()
    assert sent.fired
    assert received.fired
    world.assert_equal()


def test_a_command_on_a_link_that_hangs_ends_the_run(world: World) -> None:
    other, lost = world.targets
    gate = world.gate(lost, "zfs", ["rename"])
    running = world.start()
    gate.wait_until_reached()
    lost.drop()
    gate.open()
    began = time.monotonic()
    _, stderr = ended(running, 1)
    assert time.monotonic() - began < SILENT_SECONDS + 5 * PATIENCE
    assert f"no answer from {lost.name}" in stderr
    assert "rename" in stderr
    assert workers(world.source) == []
    world.assert_equal(other)
    lost.undrop()
    is_mended_by_the_next_run(world, lost)
