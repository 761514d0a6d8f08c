"""What breaks in a night: no ssh, a wrong key, a full or missing pool, locks, signals, cron."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.e2e.conftest import OSOL1, OSOL2, Nodes, make_tree
from tests.e2e.world import OK, STATE_DIR, WARNING, World, ended, workers
from tests.lab import Pool
from tests.lab.process import eventually

pytestmark = pytest.mark.zfs


class Trouble(NamedTuple):
    """How a target breaks and is mended, and what the failure must say."""

    start: Callable[[World], object]
    end: Callable[[World], object]
    words: tuple[str, ...]


def with_zfs(word: str) -> Callable[[World], object]:
    def use(world: World) -> None:
        text = world.source.path(f"/etc/zfs_sync/{world.service}.conf").read_text()
        lines = [line for line in text.splitlines() if not line.startswith("zfs")]
        world.configure("\n".join([*lines, f"zfs@{OSOL2} = {word}"]) + "\n")

    return use


TROUBLES = {
    "ssh is down": Trouble(
        lambda world: world.target.stop_ssh(),
        lambda world: world.target.start_ssh(),
        (OSOL2, "Connection refused"),
    ),
    "the host key is wrong": Trouble(
        lambda world: world.target.change_host_key(),
        lambda world: world.target.restore_host_key(),
        (OSOL2, "ost key verification failed"),
    ),
    "the pool is exported": Trouble(
        lambda world: world.target.export_pool("osol2_z3_root"),
        lambda world: world.target.import_pool("osol2_z3_root"),
        (OSOL2, "osol2_z3_root"),
    ),
    "zfs is not there": Trouble(
        with_zfs("/nonexistent/zfs"), with_zfs("zfs"), (OSOL2, "/nonexistent/zfs")
    ),
    "the link is down": Trouble(
        lambda world: world.target.cut(), lambda world: world.target.mend(), (OSOL2,)
    ),
}


@pytest.mark.parametrize("when", ["at the first sync", "later"])
@pytest.mark.parametrize("name", TROUBLES)
def test_a_target_in_trouble_is_told_and_recovers_in_the_next_run(
    one_target: World, name: str, when: str
) -> None:
    world, trouble = one_target, TROUBLES[name]
    world.add_keys("ssh = ssh -o ConnectTimeout=2")
    if when == "later":
        world.sync()
        world.source.write(world.src, "file", b"second")
    before = world.source.guids(world.src)
    trouble.start(world)
    stderr = world.sync(expect=1).stderr
    for word in (*trouble.words, "untouched:", "next:"):
        assert word in stderr, stderr
    entry = world.entry(world.target)
    assert entry["status"] == "failed"
    assert entry["last_attempt"]["result"] == "failed"
    assert entry["last_attempt"]["error"]
    # A failed attempt does not make the last success older or younger than it is.
    assert (entry["snapshot"] is None) == (when == "at the first sync")
    assert world.check(world.source).code == (OK if when == "later" else WARNING)
    assert world.check(world.source, "--failed", "warning").code == WARNING
    assert world.source.guids(world.src) == before
    assert world.sync(expect=1).stderr == ""
    trouble.end(world)
    world.sync()
    world.assert_equal()
    world.assert_tidy(world.target)
    world.assert_check(OK)
    assert world.check(world.source, "--failed", "warning").code == OK


@pytest.fixture
def small_target(lab: Nodes) -> World:
    """A target whose pool has room for little."""
    a, b = lab({"big.example.com": {"big": "source"}, "small.example.com": {"small": SMALL}})
    head = "[sync#1]\ntype = zfs\nsrc@big = big/data\ndst = small/data\n"
    text = f"{head}target = small.example.com\n"
    world = World(a, [b], text, src="big/data", dst="small/data")
    make_tree(a, world.src, "a")
    return world


SMALL = Pool(mount=False, size_mib=64)


@pytest.mark.parametrize("when", ["at the first sync", "later"])
def test_a_full_target_pool_is_told_and_recovers(small_target: World, when: str) -> None:
    world = small_target
    if when == "later":
        world.sync()
    world.source.write(f"{world.src}/a", "large", os.urandom(80 << 20))
    if when == "later":
        assert "out of space" in world.sync(expect=1).stderr
        assert world.entry(world.target)["status"] == "failed"
        world.sync(expect=1)
    else:
        stderr = world.sync(expect=3).stderr
        needed, available = re.findall(r"about (\d+) bytes, and (\d+) are available", stderr)[0]
        assert int(needed) > 70 << 20 > int(available)
        assert world.datasets(world.target, "small") == [""]
        assert not world.source.guids(world.src)
    held = world.target.guids(world.dst)
    if when == "later":
        last = world.entry(world.target)["snapshot"]["guid"]
        assert last in held.values()
    world.source.remove(f"{world.src}/a", "large")
    world.source.write(world.src, "file", b"second")
    # The snapshot that does not fit is already taken: a person has to make room on the target.
    world.target.zpool("add", "-f", "small", world.target.new_image("more", 256))
    world.sync()
    world.sync()
    world.assert_equal()
    world.assert_tidy(world.target)
    world.assert_check(OK)


def test_what_is_smaller_on_the_target_is_sent_where_a_person_says_so(small_target: World) -> None:
    world = small_target
    world.source.zfs("set", "compression=off", "big")
    world.target.zfs("set", "compression=on", "small")
    world.source.write(f"{world.src}/a", "large", bytes(range(256)) * (80 << 12))
    assert "syncfull" in world.sync(expect=3).stderr
    world.agent("--node", "small.example.com", "syncfull")
    world.assert_equal()
    world.sync()
    world.assert_check(OK)


# --- locks --------------------------------------------------------------------------------------


def lock_file(world: World) -> str:
    return f"{STATE_DIR}/.{world.service}_{world.rid}_zfs_state.lock"


def test_b20_a_second_run_leaves_the_first_alone_quietly(one_target: World) -> None:
    world = one_target
    world.sync()
    gate = world.gate(world.target, "zfs", ["receive", "-d"])
    world.source.write(world.src, "file", b"second")
    first = world.start()
    gate.wait_until_reached()
    before = world.picture(world.source)
    world.sync()
    assert world.picture(world.source) == before
    assert "another run has held the lock" in world.log()
    gate.open()
    ended(first)
    world.assert_equal()
    world.assert_tidy(world.target)


def test_a_lock_older_than_sync_max_delay_is_told(one_target: World) -> None:
    world = one_target
    world.add_keys("sync_max_delay = 90m")
    world.sync()
    gate = world.gate(world.target, "zfs", ["receive", "-d"])
    first = world.start()
    gate.wait_until_reached()
    lock = world.source.path(lock_file(world))
    for age, expect in ((80 * 60, 0), (100 * 60, 1)):
        then = time.time() - age
        os.utime(lock, (then, then))
        result = world.agent("syncupdate", expect=expect)
        assert ("sync_max_delay" in result.stderr) == bool(expect)
    gate.open()
    ended(first)
    world.assert_equal()


@pytest.mark.parametrize(
    ("sig", "first"),
    [
        pytest.param(signal.SIGTERM, True, id="TERM in a first sync"),
        pytest.param(signal.SIGTERM, False, id="TERM later"),
        pytest.param(signal.SIGINT, False, id="INT later"),
        pytest.param(signal.SIGHUP, False, id="HUP later"),
    ],
)
def test_a_signal_ends_the_agent_and_all_its_children(
    one_target: World, sig: signal.Signals, first: bool
) -> None:
    world = one_target
    if not first:
        world.sync()
    world.source.write(f"{world.src}/a", "large", os.urandom(16 << 20))
    idle = {node.name: workers(node) for node in world.nodes}
    gate = world.gate(world.target, "zfs", ["receive", "-d"])
    running = world.start()
    gate.wait_until_reached()
    assert any("send" in line for line in workers(world.source))
    running.send_signal(sig)
    ended(running, 128 + sig)
    eventually(
        "no zfs and no ssh is left on the source",
        lambda: workers(world.source) == idle[world.source.name],
    )
    gate.open()
    eventually(
        "no zfs is left on the target", lambda: workers(world.target) == idle[world.target.name]
    )
    # zfs-fuse keeps the holds of a killed send for ever; a kernel lets go of them.
    world.source.release_holds()
    world.watch()
    world.sync()
    world.assert_equal()
    world.sync()
    world.assert_tidy(world.target)
    world.assert_check(OK)


# --- cron ---------------------------------------------------------------------------------------


CRON = {"PATH": "/usr/bin:/bin", "HOME": "/root", "LOGNAME": "root", "SHELL": "/bin/sh"}


def from_cron(world: World, expect: int = 0) -> tuple[str, str]:
    """Run the agent with the environment that cron gives, and nothing else."""
    node = world.source
    environment = ["env", "-i", *(f"{key}={value}" for key, value in CRON.items())]
    result = node.run([*environment, *node.python("zfs_sync_agent", "syncupdate")], check=False)
    assert result.returncode == expect, result.stderr
    return result.stdout, result.stderr


def test_from_cron_a_success_is_silent_and_a_failure_is_one_block(one_target: World) -> None:
    world = one_target
    assert from_cron(world) == ("", "")
    world.source.write(world.src, "file", b"second")
    assert from_cron(world) == ("", "")
    world.assert_equal()
    world.target.stop_ssh()
    stdout, stderr = from_cron(world, expect=1)
    assert stdout == ""
    head, *rest = stderr.splitlines()
    assert head.startswith(f"{world.service}/{world.rid} to {OSOL2}: ")
    assert rest
    assert all(line.startswith("  ") for line in rest)
    assert [line.split()[0] for line in rest][-2:] == ["untouched:", "next:"]
    assert from_cron(world, expect=1) == ("", "")
    world.target.start_ssh()
    assert from_cron(world) == ("", "")
    world.assert_equal()


def test_the_block_comes_again_when_the_reason_changes(one_target: World) -> None:
    world = one_target
    world.sync()
    world.target.stop_ssh()
    assert "refused" in world.sync(expect=1).stderr
    assert not world.sync(expect=1).stderr
    world.target.start_ssh()
    world.target.export_pool("osol2_z3_root")
    assert "osol2_z3_root" in world.sync(expect=1).stderr
    assert not world.sync(expect=1).stderr
    world.target.import_pool("osol2_z3_root")
    world.sync()
    world.target.stop_ssh()
    assert "refused" in world.sync(expect=1).stderr


def test_the_commands_in_the_log_can_be_pasted(one_target: World) -> None:
    world = one_target
    world.sync()
    prefix = f"{world.service}.{world.rid}".upper()
    lines = [line.partition(f"{prefix} - INFO - ")[2] for line in world.source.log()]
    takes = [line for line in lines if " snapshot " in line]
    assert len(takes) == 1
    # What the log says takes a snapshot takes a snapshot.
    world.source.run(["/bin/sh", "-c", takes[0]])
    assert world.exists(world.source, f"{world.src}@tosend")
    renames = [line for line in lines if line.startswith("ssh") and " rename " in line]
    world.target.zfs("rename", "-r", f"{world.dst}@sent", f"{world.dst}@tosend")
    world.source.run(["/bin/sh", "-c", renames[0]])
    assert world.exists(world.target, f"{world.dst}@sent")
    assert OSOL1 not in renames[0]
