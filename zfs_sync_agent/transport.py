"""Runs commands on this node and on others: the one door to the outside, the only user of plumbum.

It never interprets what zfs says and never retries. What it starts inherits the lock's descriptor,
so an orphan still holds it, and leads a process group of its own, so all of it can be ended.
"""

import contextlib
import os
import secrets
import select
import selectors
import shlex
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from plumbum import CommandNotFound, local

from zfs_sync_agent.errors import Interrupted, NoAnswer, Stalled

# cron's PATH is /usr/bin:/bin, and sshd's for a command is no longer; zfs lives in sbin.
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"

# A dead link ends a connection after ServerAliveInterval * ServerAliveCountMax seconds.
SSH_OPTIONS = (
    *("-o", "BatchMode=yes"),
    *("-o", "ConnectTimeout=15"),
    *("-o", "ServerAliveInterval=15"),
    *("-o", "ServerAliveCountMax=4"),
)
SSH_FAILED = 255  # ssh's own failure; a remote command that exits 255 is as good as no answer

CHUNK = 1 << 20

# A command that says nothing for so long has no answer: a suspended pool blocks zfs for ever, and
# one such target must not hold up the others.
ANSWER_SECONDS = 900

Words = Sequence[str]


def quote(words: Words) -> str:
    """Return words as one shell command; the one function that quotes."""
    return shlex.join(words)


_KEEPER = ("sh", "-c", '"$@"; exit $?', "sh")

# The remote side of a transfer, before the word that is its command. An sshd whose peer is gone
# without a word does not see it while it only listens, and its receive keeps the replica busy for
# hours; one that says something every few seconds is told, or gives up after a quarter of an hour.
BEAT_SECONDS = 5
_BEATING = quote(
    (
        *("sh", "-c"),
        f"while sleep {BEAT_SECONDS} >/dev/null 2>&1; do echo; done </dev/null 2>/dev/null &"
        ' eval "$0"; s=$?; kill $!; exit $s',
    )
)


@dataclass(frozen=True)
class Answer:
    """What a command said, once it had ended."""

    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Stage:
    """One half of a transfer: its words as they can be pasted, its exit status, its last words."""

    command: str
    status: int
    stderr: str


@dataclass(frozen=True)
class Transfer:
    """A transfer that came to its end, whatever that was; `size_bytes` is what passed through."""

    size_bytes: int
    stages: tuple[Stage, ...]

    @property
    def failed(self) -> tuple[Stage, ...]:
        """Return the stages that failed, a receiver before the sender that it broke."""
        return tuple(stage for stage in reversed(self.stages) if stage.status != 0)


class _Children:
    """All running children of this process, so that a signal ends every one of them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may come while it is held
        self._running: set[Any] = set()
        self._ended = False
        self._starting = False  # the main thread is between starting a child and noting it
        self._noted: int | None = None

    def start(self, words: Words, fds: Sequence[int], **streams: Any) -> Any:
        """Start a command in a group of its own; NoAnswer where there is no such program."""
        try:
            command = local[words[0]][tuple(words[1:])] if len(words) > 1 else local[words[0]]
        except CommandNotFound:
            raise NoAnswer(
                f"there is no program {words[0]} on this node",
                hint="install it, or name it in the service file (ssh =, zfs =)",
            ) from None
        with self._lock:
            if self._ended:
                raise NoAnswer("the run is being ended by a signal")
            self._starting = main = threading.current_thread() is threading.main_thread()
            try:
                child = command.popen(new_session=True, pass_fds=tuple(fds), **streams)
                self._running.add(child)
            finally:
                self._starting = False
        if main and self._noted is not None:
            kill_group(child)
            raise Interrupted(self._noted)
        return child

    def interrupt(self, signum: int) -> None:
        """End every child and raise Interrupted: a signal's handler.

        In the middle of a start it is only noted: the child that is being started has to be known.
        """
        self.kill_all()
        if self._starting:
            self._noted = signum
            return
        raise Interrupted(signum)

    def forget(self, child: Any) -> None:
        with self._lock:
            self._running.discard(child)

    def kill_all(self) -> None:
        """End every child with its descendants, and let none be started any more."""
        with self._lock:
            self._ended = True
            for child in self._running:
                kill_group(child)


def kill_group(child: Any) -> None:
    """End a child with its descendants; one that has ended by itself is no failure."""
    # PermissionError: sudo runs it as root; then its closed pipes end it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


children = _Children()


def extend_path() -> None:
    """Let this process find what lives in sbin, and make every command speak English."""
    local.env["PATH"] = f"{local.env.get('PATH', '')}:{SBIN}".lstrip(":")
    local.env["LC_ALL"] = "C"


def run_user_command(command: str) -> int:
    """Run the operator's own shell command (only_if) quietly; return its exit status."""
    child = children.start(
        ("sh", "-c", command),
        (),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    status = int(child.wait())
    children.forget(child)
    return status


class Shell:
    """An open `sh` on a node: commands go in one by one, each answered with status and output.

    `ssh` holds the words of ssh, empty for this node itself. A new ssh connection per command would
    cost a handshake each.
    """

    def __init__(self, node: str, ssh: Words, fds: Sequence[int] = ()) -> None:
        self.node = node
        self.ssh = tuple(ssh)
        self.fds = tuple(fds)
        self._lock = threading.Lock()
        self._child: Any = None
        self._pending = b""
        self._dead: NoAnswer | None = None
        self._answered = False

    def open(self) -> None:
        """Start to connect; the handshake goes on while the caller does something else."""
        words = self._ssh_words("sh") if self.ssh else ("sh",)
        pipe = subprocess.PIPE
        self._child = children.start(words, self.fds, stdin=pipe, stdout=pipe, stderr=pipe)
        os.set_blocking(self._child.stdin.fileno(), False)
        os.set_blocking(self._child.stderr.fileno(), False)
        self._send(f"PATH=$PATH:{SBIN}; export PATH; LC_ALL=C; export LC_ALL\n".encode())

    def close(self) -> None:
        """Let the remote sh see the end of its input, and end what does not."""
        if self._child is None:
            return
        for stream in (self._child.stdin, self._child.stdout, self._child.stderr):
            with contextlib.suppress(OSError):
                stream.close()
        try:
            self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            kill_group(self._child)
            self._child.wait()
        children.forget(self._child)
        self._child = None

    def shown(self, words: Words) -> str:
        """Return a command as it can be pasted into a shell on this node."""
        return (
            f"{quote(self.ssh)} {self.node} {quote((quote(words),))}" if self.ssh else quote(words)
        )

    def data_words(self, commands: Sequence[Words]) -> tuple[str, ...]:
        """Return the words that run commands, each if the one before it did well, on one stdin."""
        if not self.ssh and len(commands) == 1:
            return tuple(commands[0])
        script = " && ".join(quote(words) for words in commands)
        if not self.ssh:
            return ("sh", "-c", script)
        return self._ssh_words(f"{_BEATING} {quote((script,))}")

    def _ssh_words(self, script: str) -> tuple[str, ...]:
        """Return ssh below a shell that keeps the lock's descriptor: ssh itself closes it."""
        return (*_KEEPER, *self.ssh, *SSH_OPTIONS, "-T", self.node, script)

    def run(self, words: Words, names: Words | None = None, text: str | None = None) -> Answer:
        """Run a command; `text` (whole lines) is its standard input.

        `names` reach it as arguments by way of xargs, however many there are. Raises NoAnswer where
        the connection does not answer: whether the command ran is then unknown.
        """
        token = f"zfs_sync_{secrets.token_hex(12)}"
        return self._exchange(self._script(words, names, text, token), [token], words)[0]

    def ask(self, commands: Sequence[Words]) -> list[Answer]:
        """Run commands that only read, in one round trip; raises as `run` does.

        Never for what changes something: after a kill the rest of them would still run.
        """
        tokens = [f"zfs_sync_{secrets.token_hex(12)}" for _ in commands]
        scripts = [
            self._script(words, None, None, token)
            for words, token in zip(commands, tokens, strict=True)
        ]
        return self._exchange("".join(scripts), tokens, commands[0])

    def _exchange(self, script: str, tokens: Sequence[str], words: Words) -> list[Answer]:
        with self._lock:
            if self._dead is not None:
                raise self._dead
            if self._child is None:
                self.open()
            self._send(script.encode())
            out, err = self._read_until(tokens[-1].encode(), words)
        self._answered = True
        answers = []
        for token in tokens:
            body, _, out = out.partition(f"\n{token} ")
            status, _, out = out.partition("\n")
            text, _, err = err.partition(f"{token}\n")
            answers.append(Answer(int(status), body, text))
        return answers

    @staticmethod
    def _script(words: Words, names: Words | None, text: str | None, token: str) -> str:
        command = f"{quote(words)} </dev/null\n"
        if names is not None:
            # A command string over 128 KiB fails, so a long list goes through standard input.
            listed = "\n".join(names)
            command = f"tr '\\n' '\\0' <<'{token}' | xargs -0 {quote(words)}\n{listed}\n{token}\n"
        if text is not None:
            command = f"{quote(words)} <<'{token}'\n{text}{token}\n"
        # In braces, since a sh whose input is cut runs what it has of a line: @sent of a destroy
        # could be missing. What lacks the closing brace it does not run.
        return f"{{ {command}s=$?; echo; echo {token} $s; echo {token} >&2\n}}\n"

    def _send(self, data: bytes) -> None:
        """Leave it to the reading loop to write: a peer may write to us at the same time."""
        self._pending += data

    def _read_until(self, token: bytes, words: Words) -> tuple[str, str]:
        child = self._child
        out, err = bytearray(), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdin, selectors.EVENT_WRITE)
            selector.register(child.stdout, selectors.EVENT_READ, out)
            selector.register(child.stderr, selectors.EVENT_READ, err)
            while not (token in out[-80:] and out.endswith(b"\n") and token in err[-80:]):
                ready = selector.select(ANSWER_SECONDS)
                if not ready:
                    self._dead = self._lost(f"silent for {ANSWER_SECONDS} s", words)
                    raise self._dead
                for key, _ in ready:
                    if key.fileobj is child.stdin:
                        if not self._flush(key.fd):
                            selector.unregister(child.stdin)
                    elif data := os.read(key.fd, CHUNK):
                        key.data.extend(data)
                    else:
                        selector.unregister(key.fileobj)
                        if key.data is out:
                            self._dead = self._lost(err.decode(errors="replace"), words)
                            raise self._dead
        return out.decode(errors="replace"), err.decode(errors="replace")

    def _flush(self, fd: int) -> bool:
        """Write what fits; tell whether there is more to write."""
        try:
            written = os.write(fd, self._pending[:CHUNK])
        except BlockingIOError:
            return True
        except BrokenPipeError:  # the end of its output says what happened
            self._pending = b""
            return False
        self._pending = self._pending[written:]
        return bool(self._pending)

    def _lost(self, stderr: str, words: Words) -> NoAnswer:
        with contextlib.suppress(OSError):
            stderr += os.read(self._child.stderr.fileno(), CHUNK).decode(errors="replace")
        kill_group(self._child)
        status = self._child.wait()
        children.forget(self._child)
        last = stderr.strip().splitlines()[-3:] or ["the connection ended"]
        untouched = f"whether this command ran on {self.node} is unknown; nothing came after it"
        return NoAnswer(
            f"no answer from {self.node}",
            command=self.shown(words),
            detail="\n".join([f"exit {status}", *last]),
            untouched=untouched if self._answered else f"everything on {self.node}",
            hint=f"try: {quote(self.ssh)} -o BatchMode=yes {self.node} true" if self.ssh else "",
        )


# --- transfers --------------------------------------------------------------------------------


def transfer(
    senders: Sequence[Words],
    receiver: Words,
    fds: Sequence[int],
    stall_timeout: int,
) -> Transfer:
    """Pass what the senders write, one after the other, to the receiver, and wait for all of them.

    Each stage's stderr goes to a file of its own: a pipe that nobody reads blocks its writer after
    64 KiB. Raises Stalled when no byte moved for stall_timeout seconds between the first byte of a
    sender and its end; a send that is slow to its first byte and a receive that is slow after the
    last are no stalls.
    """
    stages: list[Stage] = []
    total = 0
    with _started(receiver, fds, stdin=subprocess.PIPE) as (receive, receive_err):
        sink = receive.stdin.fileno()
        os.set_blocking(sink, False)
        for words in senders:
            with _started(words, fds, stdout=subprocess.PIPE) as (send, send_err):
                source = send.stdout.fileno()
                pump = _Pump(source, sink, stall_timeout)
                alive = pump.run(quote(words))
                total += pump.moved
                send.stdout.close()  # a sender whose receiver is gone has to see it
                stages.append(_stage(words, send, send_err))
            if not alive or stages[-1].status != 0:
                break
        receive.stdin.close()
        stages.append(_stage(receiver, receive, receive_err))
    return Transfer(total, tuple(stages))


@contextlib.contextmanager
def _started(words: Words, fds: Sequence[int], **streams: Any) -> Iterator[tuple[Any, IO[bytes]]]:
    """Start a stage with its stderr in a file; whatever happens, nothing of it is left running."""
    with tempfile.TemporaryFile() as err:
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": err, "stderr": err}
        child = children.start(words, fds, **(given | streams))
        try:
            yield child, err
        except BaseException:
            kill_group(child)
            raise
        finally:
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=30)  # one that sudo runs ends by its closed pipes, or not at all
            children.forget(child)


def _stage(words: Words, child: Any, err: IO[bytes]) -> Stage:
    status = int(child.wait())
    size = err.seek(0, os.SEEK_END)
    err.seek(max(0, size - 4096))
    said = err.read().decode(errors="replace").splitlines()
    return Stage(_pasteable(words), status, "\n".join(line for line in said if line.strip()))


def _pasteable(words: Words) -> str:
    """Return a stage's words without the shells around them."""
    if tuple(words[: len(_KEEPER)]) != _KEEPER:
        return quote(words)
    *ssh, script = words[len(_KEEPER) :]
    return quote((*ssh, *shlex.split(script.removeprefix(_BEATING))))


class _Pump:
    """Moves bytes from a pipe to a pipe, within the kernel where it can, and watches the clock."""

    def __init__(self, source: int, sink: int, stall_timeout: int) -> None:
        self.source, self.sink = source, sink
        self.stall_timeout = stall_timeout
        self.moved = 0
        self._waiting = b""
        self._splice = hasattr(os, "splice")

    def run(self, command: str) -> bool:
        """Return at the end of the source; False where the sink was gone before."""
        while True:
            limit = self.stall_timeout if self.moved else None
            try:
                if not self._waiting and not self._wait(self.source, select.POLLIN, limit):
                    raise self._stalled(command)
                if not self._wait(self.sink, select.POLLOUT, limit):
                    raise self._stalled(command)
                step = self._move()
            except BlockingIOError:
                continue
            except BrokenPipeError:
                return False
            if step == 0:
                return True
            self.moved += step

    def _wait(self, fd: int, event: int, limit: float | None) -> bool:
        """Wait for one end; a sink that breaks while the source is silent wakes it up too."""
        poll = select.poll()
        poll.register(self.sink, 0)
        poll.register(fd, event)
        ready = dict(poll.poll(None if limit is None else limit * 1000))
        if ready.get(self.sink, 0) & select.POLLERR:
            raise BrokenPipeError
        return bool(ready)

    def _move(self) -> int:
        if self._splice:
            try:
                return os.splice(self.source, self.sink, CHUNK)
            except (BlockingIOError, BrokenPipeError):
                raise
            except OSError:  # a kernel or a file that cannot: plain reads and writes
                self._splice = False
        if not self._waiting:
            self._waiting = os.read(self.source, CHUNK)
            if not self._waiting:
                return 0
        written = os.write(self.sink, self._waiting)
        self._waiting = self._waiting[written:]
        return written

    def _stalled(self, command: str) -> Stalled:
        return Stalled(
            f"the transfer stalled: no byte for {self.stall_timeout} s after {self.moved} bytes",
            command=command,
            untouched="nothing was rotated; the next run sends again what is missing",
            hint="look at the link and at the target's pool; stall_timeout sets the limit",
        )
