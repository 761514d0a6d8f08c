"""What stands between zfs send and zfs receive: compressors, a buffer, a limit, and who looks on.

Each is the real program on both sides. What dies amid a stream fails the run and is named; what is
left behind is mended by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import OSOL1, OSOL2, TO_LOCAL
from tests.e2e.test_resume import PART, WHOLE, assert_the_rest_was_sent, cut_after, token
from tests.e2e.world import OK, World, ended, workers
from tests.lab import Node
from tests.lab.process import eventually

pytestmark = pytest.mark.zfs

PROGRAMS = ("zstd", "lz4", "gzip", "mbuffer")
SIZE = 8 << 20
KEYS = ("compress = zstd", "buffer = 1M", "rate_limit = 4M")
GO_ON = "/run/zfs_sync/go-on"

# Stands for a program that dies once it has read so much, each time that it is run.
MORTAL = """\
#!/bin/sh
exec 3<&0
REAL "$@" <&3 &
program=$!
{ while [ -e /proc/$program ]; do
    read=$(sed -n 's/^rchar: //p' /proc/$program/io)
    if [ "${read:-0}" -gt 1000000 ]; then kill -9 $program; break; fi
done; } 2>/dev/null >&2 &
wait $program
status=$?
kill $! 2>/dev/null
exit $status
"""
# Kills a program once it has read so much.
KILL = """\
until [ "$(sed -n 's/^rchar: //p' /proc/$FAULT_CHILD/io)" -gt 1000000 ]; do :; done
kill -9 $FAULT_CHILD"""


def connections(node: Node) -> int:
    """Return how many connections the node's sshd has accepted so far."""
    return (node.root / "log" / "sshd").read_text().count("Accepted publickey")


def stages(node: Node) -> list[str]:
    """Return the command lines of the stages of a stream that are running on a node."""
    found = []
    for pid in node.strays():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            found.append(" ".join(words))
    names = (*(f"{name} -" for name in PROGRAMS), "zfs send", "zfs receive")
    return [line for line in found if any(name in line for name in names)]


def assert_all_ended(world: World) -> None:
    def none_left() -> bool:
        return not any(stages(node) for node in world.nodes)

    eventually("no stage is left on either side", none_left, 30)


def assert_mended_by_the_next_run(world: World) -> None:
    for node in world.nodes:
        node.clear_faults()
    world.watch(*PROGRAMS)
    for _ in range(2):
        # zfs-fuse keeps the holds of a killed send, and now and then those of the next one, too.
        world.source.release_holds()
        world.sync()
    world.assert_equal()
    world.assert_tidy(world.target)
    world.assert_check(OK)
    assert not world.full_streams()


def guids(world: World) -> list[dict[str, str]]:
    """Return all snapshots on both sides."""
    return [world.source.guids(world.src), world.target.guids(world.dst)]


@contextlib.contextmanager
def without(node: Node, program: str) -> Iterator[None]:
    """Hide a program from a node."""
    real = node.program(program)
    node.run(["mount", "--bind", "/dev/null", real])
    try:
        yield
    finally:
        node.run(["umount", real])


@pytest.fixture
def world(one_target: World) -> World:
    """A target in sync, and more to send than all buffers on the way hold."""
    one_target.add_keys(*KEYS)
    one_target.sync()
    one_target.source.write(one_target.src, "large", os.urandom(SIZE))
    return one_target


@pytest.mark.parametrize("compressor", ["zstd", "lz4", "gzip"])
def test_a_compressed_stream_arrives_full_and_incremental(
    one_target: World, compressor: str
) -> None:
    world = one_target
    # With older history each dataset has a stream of its own, all through one connection.
    world.source.zfs("snapshot", "-r", f"{world.src}@old")
    world.add_keys(f"compress = {compressor}", "buffer = 1M")
    world.watch(*PROGRAMS)
    for number in range(2):
        text = f"{number} of {compressor}\n".encode() * 200_000
        world.source.write(f"{world.src}/a", f"large{number}", text)
        before = connections(world.target)
        world.sync()
        assert connections(world.target) - before == 2
        world.assert_equal()
        sent = re.findall(rf" (\d+) bytes \((\d+) by {compressor}\), \d+ s", world.log())
        size, on_link = map(int, sent[-1])
        assert on_link * 10 < size == world.entry(world.target)["last_success"]["bytes"]
        assert size > len(text)
    compressed, expanded = (node.calls(compressor) for node in world.nodes)
    assert len(compressed) == 4  # three datasets, then the tree as a whole
    assert [call[-2:] for call in expanded] == [["-d", "-c"]] * 2
    assert (world.source.calls("mbuffer"), len(world.target.calls("mbuffer"))) == ([], 2)
    world.assert_check(OK)


def test_what_stays_on_this_node_is_buffered_and_not_compressed(one_node: World) -> None:
    one_node.configure(f"{TO_LOCAL}compress = zstd\nbuffer = 1M\n", one_node.source)
    one_node.watch(*PROGRAMS)
    one_node.sync()
    one_node.sync()
    one_node.assert_equal()
    assert (one_node.source.calls("zstd"), len(one_node.source.calls("mbuffer"))) == ([], 2)


def test_the_pipe_that_is_shown_can_be_pasted(one_target: World) -> None:
    world = one_target
    world.add_keys("compress = zstd", "buffer = 1M")
    world.sync()
    world.source.write(world.src, "new", b"new" * 1000)
    lines = world.agent("--dry-run", "syncupdate").stdout.splitlines()
    snapshot, pipe = (line for line in lines if "zfs snapshot" in line or "zfs send" in line)
    assert pipe.count("zstd") == 2
    for line in (snapshot, pipe):
        world.source.run(["/bin/sh", "-c", line])
    held = world.target.guids(world.dst)
    assert held[f"{world.dst}@tosend"] == world.source.guids(world.src)[f"{world.src}@tosend"]
    world.sync()
    world.assert_equal()
    logged = [line for line in world.log().splitlines() if "zfs send" in line]
    assert all(line.endswith(shlex.split(pipe)[-1] + "'") for line in logged)


@pytest.mark.parametrize("lacking", [OSOL1, OSOL2])
@pytest.mark.parametrize("program", ["zstd", "mbuffer"])
def test_a_missing_program_is_refused_by_its_name_before_anything_is_written(
    one_target: World, lacking: str, program: str
) -> None:
    world = one_target
    world.add_keys("compress = zstd", "buffer = 1M")
    world.sync()
    before = guids(world)
    (node,) = (one for one in world.nodes if one.name == lacking)
    key = {"zstd": "compress", "mbuffer": "buffer"}[program]
    with without(node, program):
        if (program, lacking) == ("mbuffer", OSOL1):  # the source needs none
            world.sync()
            return
        stderr = world.sync(expect=3).stderr
        assert f"{key} needs {program}, which {lacking} does not have" in stderr
        assert f"install the package {program} on {lacking}, or take {key} out" in stderr
        assert world.agent("--dry-run", "syncupdate", expect=3).stderr
    assert guids(world) == before
    assert world.entry(world.target)["status"] == "refused"
    world.sync()
    world.assert_equal()


@pytest.mark.parametrize(
    ("number", "program", "words"),
    [
        pytest.param(0, "zstd", "zstd -q -c", id="compressor"),
        pytest.param(1, "zstd", "zstd -q -d -c", id="decompressor"),
        pytest.param(1, "mbuffer", "mbuffer -q -s 128k -m 1M", id="buffer"),
    ],
)
def test_a_stage_that_dies_amid_a_stream_fails_the_run_and_is_named(
    world: World, number: int, program: str, words: str
) -> None:
    node = world.nodes[number]
    mortal = node.root / "bin" / program
    mortal.write_text(MORTAL.replace("REAL", node.program(program)))
    mortal.chmod(0o755)
    before = guids(world)[1]
    _, stderr = ended(world.start(), 1)
    assert f"the transfer to {world.target.name} failed" in stderr
    assert re.search(rf"answer: .*{words}: exit {128 + signal.SIGKILL}: ", stderr)
    assert world.entry(world.target)["status"] == "failed"
    held = guids(world)[1]
    assert before.items() <= held.items()
    assert f"{world.dst}@tosend" not in held
    mortal.unlink()
    assert_all_ended(world)
    assert_mended_by_the_next_run(world)


def test_a_stage_that_dies_once_is_told_in_the_log_and_the_run_goes_on(world: World) -> None:
    struck = world.target.fault("zstd", ["-d"], KILL, when="during")
    world.sync()
    assert struck.fired
    (told,) = re.findall(r"WARNING - (.*); sending again", world.log())
    assert f"zstd -q -d -c: exit {128 + signal.SIGKILL}: " in told
    assert_all_ended(world)
    assert_mended_by_the_next_run(world)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_no_stage_outlives_an_agent_that_is_killed(world: World, signum: signal.Signals) -> None:
    expanding = world.target.fault("zstd", ["-d"], "", when="during")
    running = world.start()
    expanding.wait()
    running.send_signal(signum)
    running.communicate(timeout=60)
    assert_all_ended(world)
    assert workers(world.source) == []
    assert_mended_by_the_next_run(world)


def test_a_receive_that_hangs_is_found_behind_a_full_buffer(world: World) -> None:
    world.add_keys("stall_timeout = 2")
    hang = f'{{ head -c 100000; while [ ! -e {GO_ON} ]; do sleep 0.05; done; cat; }} | "$0" "$@"'
    world.target.fault("zfs", ["receive", "-d"], hang, when="instead")
    _, stderr = ended(world.start(), 1)
    assert "the transfer stalled: no byte for 2 s" in stderr
    eventually("no stage is left on the source", lambda: not stages(world.source))
    world.target.path(GO_ON).touch()
    assert_all_ended(world)
    assert_mended_by_the_next_run(world)


@pytest.mark.needs("resume")
def test_a_compressed_stream_that_was_cut_goes_on_where_it_stopped(one_target: World) -> None:
    world = one_target
    # zstd and lz4 hold back megabytes while the sender is silent.
    world.add_keys("compress = gzip", "buffer = 1M")
    world.sync()
    world.source.write(f"{world.src}/b", "large", os.urandom(WHOLE))
    cut_after(world, PART)
    assert token(world, "/b") != "-"
    world.watch(*PROGRAMS)
    world.sync()
    assert world.sends()[0][1] == "-t"
    assert_the_rest_was_sent(world)
    assert len(world.source.calls("gzip")) == len(world.sends())
    world.assert_equal()
    world.assert_tidy(world.target)
    world.assert_check(OK)


def drawn(terminal: int) -> str:
    """Return what was written to a terminal whose other end is closed."""
    parts = []
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while part := os.read(terminal, 1 << 16):
            parts.append(part)
    return b"".join(parts).decode()


def test_the_rate_limit_holds_and_a_terminal_shows_the_progress(one_target: World) -> None:
    world, rate, size = one_target, 2 << 20, 12 << 20
    world.add_keys("rate_limit = 2M")
    world.sync()
    world.source.write(world.src, "large", os.urandom(size))
    timed = '{ dd bs=64k iflag=fullblock 2>/run/zfs_sync/dd; } | "$0" "$@"'
    world.target.fault("zfs", ["receive", "-d"], timed, when="instead")
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    running = world.source.popen(
        world.source.python("zfs_sync_agent", "-v", "syncupdate"),
        env={"TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    text = drawn(ours)
    os.close(ours)
    assert running.wait(timeout=60) == 0, text

    told = world.target.path("/run/zfs_sync/dd").read_text()
    moved, seconds = re.findall(r"^(\d+) bytes .* copied, ([\d.]+) s", told, re.MULTILINE)[0]
    assert int(moved) > size
    assert float(seconds) > 4
    assert 0.9 < int(moved) / float(seconds) / rate < 1.1, told

    label = f"{world.service}/{world.rid} to {world.target.name}: "
    lines = re.split(r"\r?\n", text)
    running_lines = [line for line in lines if re.search(rf"{re.escape(label)}.*/s", line)]
    assert len(running_lines) > 5
    assert re.search(rf"{re.escape(label)}[\d.]+M( of 1[\d.]+M)?, [\d.]+M/s", running_lines[3])
    if f"{world.target.name}: about " in world.log():
        assert re.search(r", \d+%, 0:0\d left", running_lines[5])
    # Each line but the first takes the place of the one before it, and the log goes above them.
    assert all(line.startswith("\x1b[1A\r\x1b[J") for line in running_lines[1:])
    assert re.fullmatch(rf".*{re.escape(label)}12\.\d+M in 0:0\d, [\d.]+M/s", running_lines[-1])
    assert lines[-1] == ""
    assert all("\x1b" not in line for line in lines if line.startswith("* "))
    world.assert_equal()


def test_without_a_terminal_nothing_is_shown(world: World) -> None:
    pipe = subprocess.PIPE
    running = world.source.popen(
        world.source.python("zfs_sync_agent", "syncupdate"),
        env={"TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
    )
    assert ended(running) == ("", "")
    size = re.findall(r" (\d+) bytes \(\d+ by zstd\), (\d+) s", world.log())[-1]
    assert int(size[0]) > SIZE
    world.assert_equal()
