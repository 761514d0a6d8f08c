"""Runs commands in the guest for the host: the far end of client.py, on the guest's second disk.

One connection is one command: frames of kind, length and data both ways. R or N comes first, with
the command's words (R: it reads its standard input), then I and E, its input and the end of that;
back go O and E, its output and its errors, and X, its exit status. T, with the
time and random bytes in hex, wakes a guest.

A client that is gone takes its command with it, as a killed process would be gone; a new
command starts only after that. It never interprets a command.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import ClassVar

PORT = 4747
HEAD = struct.Struct("!cI")
CHUNK = 1 << 16
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207  # linux/random.h


class Command:
    """One connection, and the command that it asked for."""

    guard = threading.Lock()
    live: ClassVar[set[Command]] = set()

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.stream = connection.makefile("rb")
        self.writing = threading.Lock()
        self.child: subprocess.Popen[bytes] | None = None

    def serve(self) -> None:
        """Run the command to its end, or to the client's."""
        first = self.frame()
        if first is None:
            return
        kind, data = first
        if kind == b"T":
            wake(*data.decode().split())
            self.send(b"X", b"0")
            return
        with Command.guard:
            for other in [one for one in Command.live if one.is_left()]:
                other.kill()
            words = data.decode(errors="surrogateescape").split("\0")
            self.child = start(words, reads=kind == b"R")
            Command.live.add(self)
        try:
            self.talk(self.child)
        finally:
            with Command.guard:
                Command.live.discard(self)

    def talk(self, child: subprocess.Popen[bytes]) -> None:
        """Pass everything on, both ways, until the command has ended."""
        feeder = threading.Thread(target=self.feed, args=(child,))
        feeder.start()
        assert child.stdout
        assert child.stderr
        open_streams = {child.stdout.fileno(): b"O", child.stderr.fileno(): b"E"}
        poll = select.poll()
        for descriptor in open_streams:
            poll.register(descriptor, select.POLLIN)
        while open_streams:
            for descriptor, _ in poll.poll():
                if data := os.read(descriptor, CHUNK):
                    self.send(open_streams[descriptor], data)
                else:
                    poll.unregister(descriptor)
                    del open_streams[descriptor]
        self.send(b"X", str(child.wait()).encode())
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
        feeder.join()  # reads what the client still sends: a reset would take the status away
        for stream in (child.stdout, child.stderr):
            stream.close()

    def feed(self, child: subprocess.Popen[bytes]) -> None:
        """Pass input on; the end of the frames is the end of the client, and of its command."""
        sink = child.stdin
        while (frame := self.frame()) is not None:
            kind, data = frame
            if sink is None:
                continue
            with contextlib.suppress(OSError, ValueError):  # it has ended, or been killed
                if kind == b"I":
                    sink.write(data)
                    continue
            with contextlib.suppress(OSError):
                sink.close()
            sink = None
        self.kill()

    def frame(self) -> tuple[bytes, bytes] | None:
        """Return the next frame; None at the client's end."""
        try:
            head = self.stream.read(HEAD.size)
            if len(head) < HEAD.size:
                return None
            kind, size = HEAD.unpack(head)
            return kind, self.stream.read(size)
        except OSError:
            return None

    def send(self, kind: bytes, data: bytes) -> None:
        """Send one frame; a client that is gone needs none."""
        try:
            self.connection.sendall(HEAD.pack(kind, len(data)) + data)
        except OSError:
            self.kill_group()

    def is_left(self) -> bool:
        """Tell whether the client is gone: the kernel knows before feed has read to the end."""
        poll = select.poll()
        poll.register(self.connection, select.POLLRDHUP)
        return bool(poll.poll(0))

    def kill(self) -> None:
        """End the command and wait for it.

        A zfs receive was seen to sleep on with SIGKILL pending, in its read of a pipe: it needs the
        end of its input, too, which a client that was killed would have given it.
        """
        if self.child is None:
            return
        if self.child.poll() is None:
            self.kill_group()
        if self.child.stdin is not None:
            with contextlib.suppress(OSError):
                self.child.stdin.close()
        self.child.wait()

    def kill_group(self) -> None:
        """End the command and what it started."""
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)


def wake(now: str, noise: str) -> None:
    """Set the clock, and be like no other guest of the same saved state: ZFS draws its guids."""
    time.clock_settime(time.CLOCK_REALTIME, float(now))
    data = bytes.fromhex(noise)
    with Path("/dev/random").open("wb") as device:
        fcntl.ioctl(device, RNDADDENTROPY, struct.pack("ii", 8 * len(data), len(data)) + data)
        fcntl.ioctl(device, RNDRESEEDCRNG)


def start(words: list[str], *, reads: bool) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own; what cannot be started says why and exits 127."""
    try:
        return _popen(words, reads=reads)
    except OSError as error:
        return _popen(["/bin/sh", "-c", 'echo "$0" >&2; exit 127', str(error)], reads=reads)


def _popen(words: list[str], *, reads: bool) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    stdin = pipe if reads else subprocess.DEVNULL
    return subprocess.Popen(
        words, bufsize=0, stdin=stdin, stdout=pipe, stderr=pipe, start_new_session=True
    )


def serve(connection: socket.socket) -> None:
    """Serve one connection."""
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Command(connection).serve()


def main() -> None:
    """Serve every connection in a thread of its own."""
    # init ignores SIGCHLD, so that orphans go by themselves; here an exit status is wanted.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    listener = socket.create_server(("", PORT), backlog=64)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
