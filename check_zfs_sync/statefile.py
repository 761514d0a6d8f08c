"""Decides what a state file says: its name, its text and what each field may hold.

It never writes a file, never looks at a clock and never trusts a value that it has not checked: the
file may have been torn by a full disk, edited by hand or written by another version.
"""

import json
import os
import stat
from collections.abc import Iterable, Mapping
from typing import NamedTuple

FORMAT = 1
MAX_FILE_BYTES = 16 * 1024 * 1024
SUFFIX = "_zfs_state"

STATUSES = ("ok", "failed", "refused", "broken", "never")
MODES = ("full", "incremental", "resume", "none")
RESULTS = ("ok", "failed", "refused", "broken")

# Epochs, delays and counts. Beyond it lies no date that a calendar knows, only a damaged file.
_MAX_INT = 2**40
# Bytes need more room: a first synchronization of several TiB is an ordinary one.
_MAX_BYTES = 2**63


class StateFileError(Exception):
    """A state file that is there and cannot be believed; the text has the path and the reason."""


class Snapshot(NamedTuple):
    """The snapshot that a target was shown to hold, on every dataset of its tree."""

    guid: str
    creation: int
    datasets: int
    digest: str


class Success(NamedTuple):
    """The last synchronization that a listing of the target confirmed; epochs are UTC seconds."""

    started: int
    finished: int
    bytes: int
    mode: str


class Attempt(NamedTuple):
    """The last synchronization that was tried, whatever came of it; epochs are UTC seconds."""

    started: int
    finished: int
    result: str
    error: str | None


class KeptBase(NamedTuple):
    """A snapshot that the source keeps for a target that missed some, and the bytes it holds.

    `creation` is a UTC epoch: since then the source keeps what was freed or overwritten.
    """

    snapshot: str
    creation: int
    bytes: int


class TargetState(NamedTuple):
    """What is known of one target; `clock_offset` is its clock minus the source's, in seconds.

    `equal_as_of` is the epoch at which the target was shown equal without a new snapshot, `alerted`
    the epoch of the last alert that the agent printed, `alert_reason` what that one was about.
    """

    dst: str
    status: str
    clock_offset: int | None
    snapshot: Snapshot | None
    equal_as_of: int | None
    flags: tuple[str, ...]
    last_success: Success | None
    last_attempt: Attempt | None
    alerted: int | None = None
    alert_reason: str | None = None
    kept_bases: tuple[KeptBase, ...] = ()


class State(NamedTuple):
    """One sync resource as one node knows it; `here` is the node that this copy was written for.

    `sync_max_delay` is in seconds, `targets` goes by node name.
    """

    service: str
    rid: str
    source: str
    here: str
    src: str
    sync_max_delay: int
    agent: str
    targets: Mapping[str, TargetState]


def state_path(state_dir: str, service: str, rid: str) -> str:
    """Returns the path of the state file of one sync resource.

    Raises ValueError for a name with a slash, which would lead out of the directory.

    >>> state_path("/var/lib/zfs_sync", "z3.opensvc.com", "sync#1")
    '/var/lib/zfs_sync/z3.opensvc.com_sync#1_zfs_state'
    """
    for name in (service, rid):
        if "/" in name:
            raise ValueError(f"{name!r} cannot be part of a file name")
    return os.path.join(state_dir, f"{service}_{rid}{SUFFIX}")  # noqa: PTH118 - no pathlib: start-up


def format_state(state: State) -> str:
    """Returns the text of the state file: one JSON object, keys sorted, a newline at the end.

    Everything outside ASCII is escaped, so the file reads the same in every locale.
    """
    document = {"format": FORMAT, **state._asdict()}
    document["targets"] = {node: _target_document(it) for node, it in state.targets.items()}
    return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _target_document(target: TargetState) -> dict[str, object]:
    document: dict[str, object] = target._asdict()
    for name, part in (
        ("snapshot", target.snapshot),
        ("last_success", target.last_success),
        ("last_attempt", target.last_attempt),
    ):
        document[name] = None if part is None else part._asdict()
    document["kept_bases"] = [base._asdict() for base in target.kept_bases]
    return document


def read_state(path: str) -> State | None:
    """Returns the state in the file, None only if there is no such file.

    Raises StateFileError if the file is unreadable, torn, no UTF-8, too large or of a newer format.
    """
    try:
        # Without O_NONBLOCK a FIFO of that name would block the check for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateFileError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise StateFileError(f"{path!r}: no path: {error}") from error
    try:
        with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor, not a path
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise StateFileError(f"{path}: not a regular file")
            # Asked for before it is read: to read at most so many bytes is to allocate them all.
            content = file.read() if status.st_size <= MAX_FILE_BYTES else b""
            if max(status.st_size, len(content)) > MAX_FILE_BYTES:
                raise StateFileError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    except OSError as error:
        raise StateFileError(f"{path}: {error.strerror}") from error
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StateFileError(f"{path}: not UTF-8 at byte {error.start}") from error
    return parse_state(text, path)


def parse_state(text: str, path: str) -> State:
    """Returns the state in the text of a state file; `path` is for the message only.

    Unknown fields are ignored, since a newer agent of the same format may add some. A nullable
    field that is missing reads as null. Raises StateFileError, and nothing else.
    """
    try:
        # RecursionError: a text of a hundred thousand brackets is no reason for a traceback.
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StateFileError(f"{path}: torn or not JSON: {error}") from error
    fields = _Fields(document, "", path)
    version = fields.integer("format")
    if version > FORMAT:
        raise StateFileError(
            f"{path}: format {version} is newer than {FORMAT}, the one that this version reads; "
            "upgrade it"
        )
    if version != FORMAT:
        raise StateFileError(f"{path}: unknown format {version}")
    targets = fields.nested("targets")
    return State(
        service=fields.name("service"),
        rid=fields.name("rid"),
        source=fields.name("source"),
        here=fields.name("here"),
        src=fields.name("src"),
        sync_max_delay=fields.integer("sync_max_delay"),
        agent=fields.text("agent"),
        targets={node: _parse_target(targets.nested(node)) for node in targets.names()},
    )


def digest(pairs: Iterable[tuple[str, str]]) -> str:
    """Returns the sha256, in hex, of a snapshot's tree, given as (relative name, guid) pairs.

    The root's relative name is empty. The order of the pairs does not matter.
    """
    import hashlib  # noqa: PLC0415 - needs OpenSSL's start-up time; only --verify and the agent do

    lines = sorted(f"{name}\0{guid}\n".encode("utf-8", "surrogateescape") for name, guid in pairs)
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _parse_target(fields: "_Fields") -> TargetState:
    snapshot = fields.optional("snapshot")
    success = fields.optional("last_success")
    attempt = fields.optional("last_attempt")
    return TargetState(
        dst=fields.name("dst"),
        status=fields.word("status", STATUSES),
        clock_offset=fields.integer_or_none("clock_offset", lowest=-_MAX_INT),
        snapshot=None if snapshot is None else _parse_snapshot(snapshot),
        equal_as_of=fields.integer_or_none("equal_as_of"),
        flags=fields.texts("flags"),
        last_success=None if success is None else _parse_success(success),
        last_attempt=None if attempt is None else _parse_attempt(attempt),
        alerted=fields.integer_or_none("alerted"),
        alert_reason=fields.text_or_none("alert_reason"),
        kept_bases=tuple(_parse_base(base) for base in fields.objects("kept_bases")),
    )


def _parse_base(fields: "_Fields") -> KeptBase:
    return KeptBase(
        snapshot=fields.name("snapshot"),
        creation=fields.integer("creation"),
        bytes=fields.integer("bytes", highest=_MAX_BYTES),
    )


def _parse_snapshot(fields: "_Fields") -> Snapshot:
    return Snapshot(
        guid=fields.name("guid"),
        creation=fields.integer("creation"),
        datasets=fields.integer("datasets"),
        digest=fields.text("digest"),
    )


def _parse_success(fields: "_Fields") -> Success:
    return Success(
        started=fields.integer("started"),
        finished=fields.integer("finished"),
        bytes=fields.integer("bytes", highest=_MAX_BYTES),
        mode=fields.word("mode", MODES),
    )


def _parse_attempt(fields: "_Fields") -> Attempt:
    return Attempt(
        started=fields.integer("started"),
        finished=fields.integer("finished"),
        result=fields.word("result", RESULTS),
        error=fields.text_or_none("error"),
    )


class _Fields:
    """One JSON object of a state file; hands out checked values, or says which field is wrong."""

    def __init__(self, document: object, where: str, path: str) -> None:
        self._where = where
        self._path = path
        if not isinstance(document, dict):
            raise StateFileError(f"{path}: {where or 'the file'} is not an object")
        self._document: dict[str, object] = document

    def names(self) -> list[str]:
        return list(self._document)

    def nested(self, key: str) -> "_Fields":
        if key not in self._document:
            raise self._error(key, "is missing")
        return _Fields(self._document[key], self._name(key), self._path)

    def optional(self, key: str) -> "_Fields | None":
        return None if self._document.get(key) is None else self.nested(key)

    def objects(self, key: str) -> "list[_Fields]":
        value = self._document.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._error(key, "is not a list")
        name = self._name(key)
        return [_Fields(one, f"{name}[{at}]", self._path) for at, one in enumerate(value)]

    def text(self, key: str) -> str:
        value = self._document.get(key)
        if not isinstance(value, str):
            raise self._error(key, "is not a string")
        return value

    def name(self, key: str) -> str:
        value = self.text(key)
        if not value:
            raise self._error(key, "is empty")
        return value

    def text_or_none(self, key: str) -> str | None:
        return None if self._document.get(key) is None else self.text(key)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._document.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._error(key, "is not a list of strings")
        return tuple(value)

    def word(self, key: str, words: tuple[str, ...]) -> str:
        value = self.text(key)
        if value not in words:
            raise self._error(key, f"is none of {', '.join(words)}")
        return value

    def integer(self, key: str, lowest: int = 0, highest: int = _MAX_INT) -> int:
        value = self._document.get(key)
        # True is an int to Python; NaN and 1.5 are floats, and a lag of NaN would pass every range.
        if type(value) is not int:
            raise self._error(key, "is not an integer")
        if not lowest <= value <= highest:
            raise self._error(key, "is out of bounds")
        return value

    def integer_or_none(self, key: str, lowest: int = 0) -> int | None:
        return None if self._document.get(key) is None else self.integer(key, lowest)

    def _name(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def _error(self, key: str, reason: str) -> StateFileError:
        reason = reason if key in self._document else "is missing"
        return StateFileError(f"{self._path}: field {self._name(key)} {reason}")
