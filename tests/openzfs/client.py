"""Stands for a program of the guest in a node's PATH: `zfs` here is zfs in the guest.

It passes arguments, the streams and the exit status; killed, it takes the program with it. `guest`
runs any command there. It never interprets one. Runs as a script of its own, copied into the node,
in front of every command: what it imports is what costs.
"""

import _socket  # socket itself imports a dozen modules more
import os
import select
import signal
import struct
import sys

PORT = 4747
HEAD = struct.Struct("!cI")  # kind, length of what follows: see server.py
CHUNK = 1 << 16
GONE = 254

# Only these read their standard input; any other would take it from the shell that runs it.
READERS = {"receive", "recv", "create", "load-key", "change-key"}


# Of a stream (sys/zfs_ioctl.h, dmu_replay_record_t): the size of a record, its kinds, its magic.
RECORD = 312
BEGIN, OBJECT, WRITE, END, SPILL, WRITE_EMBEDDED = 0, 1, 3, 5, 7, 8
MAGIC = 0x2F5BACBAC
COMPOUND = 2


def number(form: str, record: bytes, at: int) -> int:
    """Return one number of a record."""
    (found,) = struct.unpack_from(form, record, at)
    return int(found)


def payload_size(record: bytes) -> int:
    """Return how many bytes follow a record."""
    kind = record[0]
    if kind == OBJECT:
        return number("<I", record, 36) or -(-number("<I", record, 28) // 8) * 8
    if kind == WRITE:
        return number("<Q", record, 96 if record[50] else 32)
    if kind == SPILL:
        return number("<Q", record, 40) or number("<Q", record, 16)
    if kind == WRITE_EMBEDDED:
        return -(-number("<I", record, 52) // 8) * 8
    return number("<I", record, 4) if kind == BEGIN else 0


class StreamEnd:
    """Finds the end of a stream: zfs does not read beyond it, and another may follow there."""

    def __init__(self) -> None:
        self.record = b""
        self.payload = 0
        self.compound = self.inside = False
        self.over = self.strange = False

    def most(self) -> int:
        """Return how many bytes may be read now; what is no stream is read to its end."""
        return CHUNK if self.strange else min(CHUNK, self.payload or RECORD - len(self.record))

    def saw(self, data: bytes) -> None:
        """Go on by what was read."""
        if self.strange:
            return
        if self.payload:
            self.payload -= len(data)
            return
        self.record += data
        if len(self.record) < RECORD:
            return
        kind, record = self.record[0], self.record
        self.record = b""
        self.payload = payload_size(record)
        if kind == BEGIN:
            magic, version = struct.unpack_from("<QQ", record, 8)
            self.strange = magic != MAGIC
            self.compound |= version & 3 == COMPOUND
            self.inside = True
        elif kind == END:
            self.over = not (self.compound and self.inside)
            self.inside = False


def write(descriptor: int, data: bytes) -> None:
    """Write all of it; a reader that is gone ends this process, as it would the real one."""
    while data:
        data = data[os.write(descriptor, data) :]


class Command:
    """One command in the guest; `outgoing` is what it has not been sent yet."""

    def __init__(self, words: "list[str]", *, reads: bool) -> None:
        self.link = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        self.link.connect(("127.0.0.1", PORT))
        self.link.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self.link.setblocking(False)
        argv = "\0".join(words).encode(errors="surrogateescape")
        self.outgoing = HEAD.pack(b"R" if reads else b"N", len(argv)) + argv
        self.incoming = b""
        self.reading = reads
        self.end = StreamEnd()
        self.end.strange = words[1:2] not in (["receive"], ["recv"])

    def run(self) -> int:
        """Pass everything on until the command has ended; return its exit status."""
        while True:
            poll = select.poll()
            poll.register(self.link, select.POLLIN | (select.POLLOUT if self.outgoing else 0))
            # Standard input is read once the piece before it has left: no more is held here.
            if self.reading and not self.outgoing:
                poll.register(0, select.POLLIN)
            for descriptor, event in poll.poll():
                if descriptor == 0:
                    data = os.read(0, self.end.most())
                    self.end.saw(data)
                    self.outgoing = HEAD.pack(b"I" if data else b"E", len(data)) + data
                    self.reading = bool(data) and not self.end.over
                elif event & select.POLLOUT:
                    self.send()
                elif (status := self.receive()) is not None:
                    return status

    def send(self) -> None:
        """Send what fits; a command that has ended says so itself."""
        try:
            self.outgoing = self.outgoing[self.link.send(self.outgoing) :]
        except ConnectionError:
            self.outgoing, self.reading = b"", False

    def receive(self) -> "int | None":
        """Write what the command said; return its exit status once that is known."""
        data = self.link.recv(CHUNK)
        if not data:
            raise ConnectionResetError("the connection ended")
        self.incoming += data
        while len(self.incoming) >= HEAD.size:
            kind, size = HEAD.unpack(self.incoming[: HEAD.size])
            if len(self.incoming) < HEAD.size + size:
                break
            body = self.incoming[HEAD.size : HEAD.size + size]
            self.incoming = self.incoming[HEAD.size + size :]
            if kind == b"X":
                status = int(body)
                return status if status >= 0 else 128 - status
            write(1 if kind == b"O" else 2, body)
        return None


def main() -> int:
    """Be the program, and return its exit status."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    name = sys.argv[0].rpartition("/")[2]
    if name == "guest":
        return Command(sys.argv[1:], reads=True).run()
    return Command([name, *sys.argv[1:]], reads=READERS.intersection(sys.argv[1:2]) != set()).run()


if __name__ == "__main__":
    try:
        os._exit(main())
    except ConnectionError as error:
        write(2, f"the guest does not answer: {error}\n".encode())
        os._exit(GONE)
