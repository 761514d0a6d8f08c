"""The syslog of one node: a datagram socket and what was written to it.

Keeps every message as it came, priority included. Never filters, never forwards.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import threading
from pathlib import Path

MAX_DATAGRAM = 1 << 18


class Syslog:
    """Collects from a socket at `path`; a thread empties it, since its queue is short."""

    def __init__(self, path: Path) -> None:
        self._messages: list[str] = []
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._bind(path)
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def messages(self) -> list[str]:
        """Return all messages written so far, without the leading <priority>."""
        return [re.sub(r"^<\d+>", "", message) for message in self.raw()]

    def raw(self) -> list[str]:
        """Return all messages written so far, as they came."""
        self._drain()
        with self._lock:
            return list(self._messages)

    def clear(self) -> None:
        """Forget all messages."""
        self._drain()
        with self._lock:
            self._messages.clear()

    def close(self) -> None:
        """Stop collecting."""
        self._stop.close()
        self._thread.join()
        self._socket.close()
        self._stopped.close()

    def _bind(self, path: Path) -> None:
        # The path of a socket has at most 107 characters, that of a temporary folder may have more.
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        self._socket.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
        path.chmod(0o666)

    def _collect(self) -> None:
        while self._stopped not in select.select([self._socket, self._stopped], [], [])[0]:
            self._drain()

    def _drain(self) -> None:
        with self._lock, contextlib.suppress(BlockingIOError):
            while True:
                data = self._socket.recv(MAX_DATAGRAM, socket.MSG_DONTWAIT)
                self._messages.append(data.decode(errors="replace").rstrip("\0\n"))
