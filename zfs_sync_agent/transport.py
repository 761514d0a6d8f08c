"""Runs commands on this node and on others: the one door to the outside, the only user of plumbum.

It never interprets what zfs says and never retries. What it starts inherits the lock's descriptor,
so an orphan still holds it, and leads a process group of its own, so all of it can be ended.

A stream passes through this process: zfs send | compress | here | ssh | decompress | mbuffer | zfs
receive. With a compressor it passes twice, before it and behind it: what is counted and foretold is
the stream, what a link has to carry is what is behind. So the limit of the rate is kept here, too,
and needs no program. The one buffer stands before zfs receive, the stage that pauses: it keeps the
link busy meanwhile, and on the source it would take bytes that the stall timer takes for moved.
"""

import contextlib
import fcntl
import os
import re
import secrets
import select
import selectors
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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

# Names of so many bytes are arguments of the command itself; more of them reach it by xargs.
ARGUMENT_BYTES = 16 * 1024

Words = Sequence[str]


def fit(names: Words) -> bool:
    """Tell whether names are few enough to be arguments, however they have to be quoted."""
    return sum(map(len, names)) + 3 * len(names) <= ARGUMENT_BYTES


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


# The remote side of a data connection that was made before its command was known. Of a line that is
# cut, `read` says so, and nothing of it is run.
_AWAITING = quote(("sh", "-c", 'IFS= read -r it && eval "exec $it"'))


# What feeds a receive stands before it in a pipe: "$0" is the receive, the arguments are the rest.
# POSIX's sh tells the status of the last stage only. One before it that failed is told on stderr,
# behind all that was said, by a line with its status, its command and its words. It is one line,
# since csh, which may be the login shell, takes no other.
_FED_MARK = "zfs_sync: failed before it:"
_FED = (
    *("sh", "-c"),
    "receive=$0; exec 3>&1;"
    ' stage() { { words=$(eval "$1" 2>&1 >&5 3>&- 4>&- 5>&-); } 5>&1 || tell $? "$1"; };'
    ' tell() { status=$1 stage=$2; set -f; set -- $words; printf "%s\\t%s\\t%s\\n" $status'
    ' "$stage" "$*" >&4; };'
    ' fed() { if [ $# = 0 ]; then eval "$receive" 3>&- 4>&-; else'
    ' first=$1; shift; stage "$first" | fed "$@"; fi; };'
    ' failed=$({ fed "$@"; } 4>&1 >&3); status=$?;'
    f' [ -z "$failed" ] || printf "\\n%s\\n%s\\n" "{_FED_MARK}" "$failed" >&2; exit $status',
)


@dataclass(frozen=True)
class Answer:
    """What a command said, once it had ended."""

    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Stage:
    """One part of a transfer: its words as they can be pasted, its exit status, its last words."""

    command: str
    status: int
    stderr: str


@dataclass(frozen=True)
class Transfer:
    """A transfer that came to its end, whatever that was.

    `size_bytes` is what the senders wrote, `link_bytes` what the receiver was given of it: the same
    without a compressor. `stages` are in the order of the stream, of several senders the last;
    `feeders` are those of the receiver's side, as far as they failed.
    """

    size_bytes: int
    stages: tuple[Stage, ...]
    link_bytes: int = 0
    feeders: tuple[Stage, ...] = ()

    @property
    def failed(self) -> tuple[Stage, ...]:
        """Return the stages that failed, a receiver before the sender that it broke."""
        *before, receiver = self.stages
        stages = (*before, *self.feeders, receiver)
        return tuple(stage for stage in reversed(stages) if stage.status != 0)


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
        self._data: DataConnection | None = None

    def open(self) -> None:
        """Start to connect; the handshake goes on while the caller does something else."""
        words = self._ssh_words("sh") if self.ssh else ("sh",)
        pipe = subprocess.PIPE
        self._child = children.start(words, self.fds, stdin=pipe, stdout=pipe, stderr=pipe)
        os.set_blocking(self._child.stdin.fileno(), False)
        os.set_blocking(self._child.stderr.fileno(), False)
        self._send(f"PATH=$PATH:{SBIN}; export PATH; LC_ALL=C; export LC_ALL\n".encode())

    def open_data(self) -> None:
        """Start to connect for a transfer, too, whatever it will be."""
        if self.ssh:
            self._data = DataConnection(self._ssh_words(_AWAITING), self.fds)

    def take_data(self) -> "DataConnection | None":
        """Return the connection that was made for a transfer, once; it is the caller's then."""
        taken, self._data = self._data, None
        return taken

    def leave(self) -> None:
        """Let the remote sh see the end of its input; it needs no more of what was made for it."""
        if (unused := self.take_data()) is not None:
            unused.close()
        if self._child is not None:
            _close(self._child.stdin)

    def close(self) -> None:
        """Leave, and end what does not end by that."""
        self.leave()
        if self._child is None:
            return
        for stream in (self._child.stdout, self._child.stderr):
            _close(stream)
        try:
            self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            kill_group(self._child)
            self._child.wait()
        children.forget(self._child)
        self._child = None

    def shown(self, *stages: Words) -> str:
        """Return a command, or a pipe, as it can be pasted into a shell on this node."""
        script = " | ".join(quote(words) for words in stages)
        return f"{quote(self.ssh)} {self.node} {quote((script,))}" if self.ssh else script

    def data_words(
        self, commands: Sequence[Words], feeders: Sequence[Words] = ()
    ) -> tuple[str, ...]:
        """Return the words that run commands, each if the one before it did well, on one stdin.

        The stream comes to them through the `feeders`.
        """
        script = " && ".join(quote(words) for words in commands)
        fed = (*_FED, script, *(quote(words) for words in feeders)) if feeders else ()
        if self.ssh:
            return self._ssh_words(f"{_BEATING} {quote((quote(fed) if fed else script,))}")
        return fed or (tuple(commands[0]) if len(commands) == 1 else ("sh", "-c", script))

    def _ssh_words(self, script: str) -> tuple[str, ...]:
        """Return ssh below a shell that keeps the lock's descriptor: ssh itself closes it."""
        return (*_KEEPER, *self.ssh, *SSH_OPTIONS, "-T", self.node, script)

    def run(self, words: Words, names: Words | None = None, text: str | None = None) -> Answer:
        """Run a command; `text` (whole lines) is its standard input.

        `names` reach it as arguments, by way of xargs where they are many. Raises NoAnswer where
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
        few = names if names and fit(names) else ()
        command = f"{quote((*words, *few))} </dev/null\n"
        if names is not None and not few:
            # What is too much for one command line goes through standard input.
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


def _to_nobody(_: int) -> None:
    pass


@dataclass(frozen=True)
class Passage:
    """How a stream gets from its sender to its receiver.

    `compress` are the words that each sender's stream goes through, `rate_limit` holds for what is
    behind them, in bytes per second; `tell` is called with the bytes that the senders wrote so far.
    """

    stall_timeout: int
    compress: Words = ()
    rate_limit: int | None = None
    tell: Callable[[int], None] = _to_nobody
    connection: "DataConnection | None" = None  # one that was made before; it is used up


def transfer(
    senders: Sequence[Words],
    receiver: Words,
    fds: Sequence[int],
    passage: Passage,
) -> Transfer:
    """Pass what the senders write, one after the other, to the receiver, and wait for all of them.

    Each stage's stderr goes to a file of its own: a pipe that nobody reads blocks its writer after
    64 KiB. Raises Stalled when no byte moved for stall_timeout seconds between the first byte of a
    sender and its end; a send that is slow to its first byte and a receive that is slow after the
    last are no stalls.
    """
    size = link_size = 0
    stages: list[Stage] = []
    bucket = _Bucket(passage.rate_limit) if passage.rate_limit else None
    with _receiving(receiver, fds, passage.connection) as (receive, receive_err):
        for words in senders:
            pipe = (words, passage.compress) if passage.compress else (words,)
            with contextlib.ExitStack() as stack:
                running = [stack.enter_context(one) for one in _pipe(pipe, fds)]
                pump = _Pump([child for child, _ in running], receive, bucket, passage, size)
                alive = pump.run(quote(words))
                size += pump.links[0].moved
                link_size += pump.links[-1].moved
                for child, _ in running:  # one whose reader or writer is gone has to see it
                    _close(child.stdin)
                    _close(child.stdout)
                stages = [
                    _stage(each, child, err)
                    for each, (child, err) in zip(pipe, running, strict=True)
                ]
            if not alive or any(stage.status != 0 for stage in stages):
                break
        _close(receive.stdin)
        last, feeders = _without_feeders(_stage(receiver, receive, receive_err))
    return Transfer(size, (*stages, last), link_size, feeders)


def _receiving(
    receiver: Words, fds: Sequence[int], connection: "DataConnection | None"
) -> contextlib.AbstractContextManager[tuple[Any, IO[bytes]]]:
    """Start a receiver, over the connection that was made for it, if there is one."""
    if connection is not None:
        return connection.run(receiver[-1])
    return _started(receiver, fds, stdin=subprocess.PIPE)


def _pipe(
    commands: Sequence[Words], fds: Sequence[int]
) -> Iterator[contextlib.AbstractContextManager[tuple[Any, IO[bytes]]]]:
    """Start commands each of which is to feed the next; a pump will pass on what they write."""
    stdin = subprocess.DEVNULL
    for words in commands:
        yield _started(words, fds, stdin=stdin, stdout=subprocess.PIPE)
        stdin = subprocess.PIPE


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
            _close(child.stdin)
            _close(child.stdout)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=30)  # one that sudo runs ends by its closed pipes, or not at all
            children.forget(child)


class DataConnection:
    """An ssh that is told later what to run there, so that nobody waits for its handshake."""

    def __init__(self, words: Words, fds: Sequence[int]) -> None:
        self._held = contextlib.ExitStack()
        started = _started(words, fds, stdin=subprocess.PIPE)
        self._child, self._err = self._held.enter_context(started)

    @contextlib.contextmanager
    def run(self, command: str) -> Iterator[tuple[Any, IO[bytes]]]:
        """Run it there; what is written to the child after that is its input."""
        with self._held.pop_all():
            with contextlib.suppress(BrokenPipeError):  # its exit status says what happened
                self._child.stdin.write(f"{command}\n".encode())
                self._child.stdin.flush()
            yield self._child, self._err

    def close(self) -> None:
        """End one that was not needed."""
        kill_group(self._child)
        self._held.close()


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.close()


def _stage(words: Words, child: Any, err: IO[bytes]) -> Stage:
    status = int(child.wait())
    size = err.seek(0, os.SEEK_END)
    err.seek(max(0, size - 4096))
    said = err.read().decode(errors="replace").splitlines()
    return Stage(_pasteable(words), status, "\n".join(line for line in said if line.strip()))


def _without_feeders(receiver: Stage) -> tuple[Stage, tuple[Stage, ...]]:
    """Return a receiver by itself, and the feeders of which it told that they failed."""
    said, _, told = receiver.stderr.partition(_FED_MARK)
    rows = re.findall(r"^(\d+)\t([^\t]+)\t?(.*)$", told, re.MULTILINE)
    feeders = tuple(Stage(command, int(status), words) for status, command, words in rows)
    return replace(receiver, stderr=said.strip()), feeders


def _pasteable(words: Words) -> str:
    """Return a stage's words without the shells around them."""
    if tuple(words[: len(_KEEPER)]) == _KEEPER:
        *ssh, script = words[len(_KEEPER) :]
        (script,) = shlex.split(script.removeprefix(_BEATING))
        fed = script.startswith(quote(_FED))
        return quote((*ssh, _pasteable(shlex.split(script)) if fed else script))
    if tuple(words[: len(_FED)]) == _FED:
        receive, *feeders = words[len(_FED) :]
        return " | ".join((*feeders, f"{{ {receive}; }}" if " && " in receive else receive))
    return quote(words)


class _Bucket:
    """What may pass under a limit of the rate, in bytes per second."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        # What was missed while this process slept may be made up for, a quarter of a second of it.
        self._most, self._least = rate // 4, min(CHUNK, rate // 20)
        self._level, self._filled = 0.0, time.monotonic()

    @property
    def level(self) -> int:
        """Return how many bytes may pass now, as of the last look at the clock."""
        return int(self._level)

    def wait_seconds(self) -> float:
        """Return how long until something may pass; 0: now."""
        now = time.monotonic()
        self._level = min(self._most, self._level + (now - self._filled) * self._rate)
        self._filled = now
        return max(0.0, (self._least - self._level) / self._rate)

    def take(self, size: int) -> None:
        """Let so many bytes pass."""
        self._level -= size


class _Link:
    """A pipe to another: moves bytes, within the kernel where it can, and never waits."""

    def __init__(self, source: IO[bytes], sink: IO[bytes], bucket: _Bucket | None = None) -> None:
        self.source, self.sink, self.bucket = source.fileno(), sink.fileno(), bucket
        self.moved = 0
        self._waiting = b""
        self._splice = hasattr(os, "splice")
        for fd in (self.source, self.sink):
            os.set_blocking(fd, False)
            if self._splice:  # larger pipes: fewer turns; a user may have had his share of them
                with contextlib.suppress(OSError):
                    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, CHUNK)

    def held_seconds(self) -> float:
        """Return how long the limit of the rate holds it up."""
        return self.bucket.wait_seconds() if self.bucket else 0

    def move(self) -> int:
        """Move what there is; return how much, 0 at the end of the source.

        Raises BlockingIOError where nothing can be moved, BrokenPipeError where the sink is gone.
        """
        size = self._move(min(CHUNK, self.bucket.level) if self.bucket else CHUNK)
        self.moved += size
        if self.bucket:
            self.bucket.take(size)
        return size

    def _move(self, most: int) -> int:
        if self._splice:
            try:
                return os.splice(self.source, self.sink, most, None, None, os.SPLICE_F_NONBLOCK)
            except (BlockingIOError, BrokenPipeError):
                raise
            except OSError:  # a kernel or a file that cannot: plain reads and writes
                self._splice = False
        if not self._waiting:
            self._waiting = os.read(self.source, CHUNK)
            if not self._waiting:
                return 0
        written = os.write(self.sink, self._waiting[:most])
        self._waiting = self._waiting[written:]
        return written

    def awaited(self) -> tuple[int, int]:
        """Return the end that it waits for, and the event."""
        poll = select.poll()
        poll.register(self.source, select.POLLIN)
        if self._waiting or poll.poll(0):
            return self.sink, select.POLLOUT
        return self.source, select.POLLIN


class _Pump:
    """Passes a stream on from stage to stage, and watches the clock."""

    def __init__(
        self,
        stages: Sequence[Any],
        receiver: Any,
        bucket: _Bucket | None,
        passage: Passage,
        before: int,
    ) -> None:
        self.stall_timeout, self._tell, self._before = passage.stall_timeout, passage.tell, before
        self._sinks = [stage.stdin for stage in (*stages[1:], receiver)]
        self.links = [
            _Link(stage.stdout, sink, bucket if sink is receiver.stdin else None)
            for stage, sink in zip(stages, self._sinks, strict=True)
        ]
        self._left = list(self.links)
        self._moved_at = 0.0

    def run(self, command: str) -> bool:
        """Return at the end of the source; False where a sink was gone before."""
        try:
            while self._left:
                if self._step():
                    self._moved_at = time.monotonic()
                    self._tell(self._before + self.links[0].moved)
                elif not self._wait():
                    raise self._stalled(command)
        except BrokenPipeError:
            return False
        return True

    def _step(self) -> bool:
        """Move what can be moved; return whether there was anything."""
        moved = False
        for number, link in enumerate(self._left):
            if link.held_seconds():
                continue
            try:
                size = link.move()
            except BlockingIOError:
                continue
            moved = True
            if size == 0:
                if number:  # a compressor that ends before its own input does
                    raise BrokenPipeError
                self._end_first()
                break
        return moved

    def _end_first(self) -> None:
        """Let the next stage see the end; what feeds the receiver may not be the last sender."""
        self._left.pop(0)
        if self._left:
            self._sinks[0].close()

    def _wait(self) -> bool:
        """Wait until something can be moved; False where the transfer stalled.

        A sink that breaks while its source is silent wakes it up too.
        """
        poll = select.poll()
        now = time.monotonic()
        stalled_at = self._moved_at + self.stall_timeout if self.links[0].moved else None
        seconds = [] if stalled_at is None else [stalled_at - now]
        for link in self._left:
            poll.register(link.sink, 0)
            if held := link.held_seconds():
                seconds.append(held)
            else:
                poll.register(*link.awaited())
        ready = dict(poll.poll(max(0.0, min(seconds)) * 1000 if seconds else None))
        if any(ready.get(link.sink, 0) & select.POLLERR for link in self._left):
            raise BrokenPipeError
        return bool(ready) or stalled_at is None or time.monotonic() < stalled_at

    def _stalled(self, command: str) -> Stalled:
        return Stalled(
            f"the transfer stalled: no byte for {self.stall_timeout} s after"
            f" {self.links[0].moved} bytes",
            command=command,
            untouched="nothing was rotated; the next run sends again what is missing",
            hint="look at the link and at the target's pool; stall_timeout sets the limit",
        )
