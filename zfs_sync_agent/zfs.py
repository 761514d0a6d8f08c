"""Decides the words of every zfs command and what its output means; pure, it never runs one.

It never builds a shell string: a command is a tuple of words, quoted once, by the transport.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from zfs_sync_agent.errors import NoAnswer
from zfs_sync_agent.model import (
    MARK,
    RETAINED,
    RID,
    ROOT,
    SWAP,
    TARGETS,
    Capabilities,
    Dataset,
    Partial,
    Snapshot,
    Tree,
)

Argv = tuple[str, ...]

TOKEN = "receive_resume_token"  # noqa: S105 - a property of a dataset with a receive that was cut
RID_SOURCE = f"{RID}:source"  # beside the value of RID: local or received

# What `zfs send -nvt TOKEN` prints of a token.
_TOKEN_GUID = re.compile(r"^\s*toguid = 0x([0-9a-f]+)$", re.MULTILINE)
_TOKEN_NAME = re.compile(r"^\s*toname = (.+)$", re.MULTILINE)

# "cannot open 'tank/a@sent': dataset does not exist": the one complaint that means "absent".
_ABSENT = re.compile(r"cannot open '(?P<name>[^']*)': (?:dataset|snapshot) does not exist")


# --- commands that only read ------------------------------------------------------------------


def list_datasets_argv(root: str, *, recursive: bool) -> Argv:
    """List filesystems and volumes, parents first."""
    depth = ("-r",) if recursive else ()
    return ("list", "-H", *depth, "-t", "filesystem,volume", "-o", "name", root)


def list_pool_argv(dataset: str) -> Argv:
    """Ask for the pool itself: a missing dataset of a pool that is not imported says nothing."""
    return ("list", "-H", "-o", "name", dataset.split("/", 1)[0])


def get_root_argv(root: str) -> Argv:
    """Read the marks of a root."""
    keys = ",".join((MARK, RETAINED, SWAP, TARGETS))
    return ("get", "-Hp", "-o", "property,value,source", keys, root)


def get_names_argv(can: Capabilities) -> Argv:
    """Read guid, age and mark of the datasets and snapshots named on standard input.

    `zfs list` of old ZFS prints a guid as 15.1E, so it is always `zfs get -p`. createtxg is hidden
    from the usage text of every ZFS and known to all of them.
    """
    properties = f"guid,creation,createtxg,{RID}" + (",written" if can.written else "")
    properties += f",{TOKEN}" if can.resumes else ""
    return ("get", "-Hp", "-o", "name,property,value,source", properties)


def list_snapshots_argv() -> Argv:
    """List all snapshots of the datasets named on standard input (a deep listing)."""
    return ("list", "-H", "-d", "1", "-t", "snapshot", "-o", "name")


def get_mountpoints_argv() -> Argv:
    """Read the mountpoints of the datasets named on standard input."""
    return ("get", "-H", "-o", "name,value,source", "mountpoint")


def list_mountpoints_argv() -> Argv:
    """List the mountpoints of all filesystems of a node."""
    return ("list", "-H", "-t", "filesystem", "-o", "name,mountpoint")


def get_values_argv(properties: str) -> Argv:
    """Read properties of the names on standard input."""
    return ("get", "-Hp", "-o", "name,property,value,source", properties)


def list_children_argv(parent: str) -> Argv:
    """List a dataset and what is directly below it."""
    return ("list", "-H", "-d", "1", "-t", "filesystem,volume", "-o", "name", parent)


def read_token_argv(token: str) -> Argv:
    """Ask what a token is for; it can be read whether or not its snapshot is still there."""
    return ("send", "-nvt", token)


def estimate_argv(send: Argv) -> Argv:
    """Ask how large the stream of a send would be.

    >>> estimate_argv(("send", "-R", "-i", "tank@a", "tank@b"))
    ('send', '-nvPR', '-i', 'tank@a', 'tank@b')
    """
    first = send[1].removeprefix("-")  # -R, -p or -t: each goes with the others in one word
    return ("send", f"-nvP{first}", *send[2:])


# --- commands that change ---------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One zfs command that changes something on one side, atomic or harmless to repeat.

    `why` is logged where the command discards something.
    """

    argv: Argv
    why: str = ""

    @property
    def verb(self) -> str:
        """Return the zfs subcommand."""
        return self.argv[0]


def snapshot(root: str, name: str, rid: str, *, recursive: bool) -> Change:
    """Take the snapshot and its mark in one transaction."""
    depth = ("-r",) if recursive else ()
    return Change(("snapshot", *depth, "-o", f"{RID}={rid}", f"{root}@{name}"))


def snapshot_some(datasets: Iterable[str], name: str, rid: str) -> Change:
    """Take the snapshot of these datasets of one pool and its mark in one transaction."""
    return Change(("snapshot", "-o", f"{RID}={rid}", *(f"{one}@{name}" for one in datasets)))


def rename_snapshot(dataset: str, old: str, new: str, *, recursive: bool) -> Change:
    """Rename a snapshot; with -r it is all or nothing."""
    depth = ("-r",) if recursive else ()
    return Change(("rename", *depth, f"{dataset}@{old}", f"{dataset}@{new}"))


def destroy_snapshot(dataset: str, name: str, *, recursive: bool) -> Change:
    """Destroy a snapshot; with -r it is not atomic over the tree."""
    depth = ("-r",) if recursive else ()
    return Change(("destroy", *depth, f"{dataset}@{name}"))


def rename_dataset(old: str, new: str, why: str) -> Change:
    """Move a dataset aside."""
    return Change(("rename", old, new), why)


def destroy_dataset(name: str, why: str) -> Change:
    """Destroy a dataset with all that is below it."""
    return Change(("destroy", "-r", name), why)


def rollback(dataset: str, name: str, why: str) -> Change:
    """Discard what was written since; without -r it refuses where newer snapshots exist."""
    return Change(("rollback", f"{dataset}@{name}"), why)


def clone(dataset: str, name: str, new: str, properties: Sequence[str]) -> Change:
    """Make a dataset of a snapshot; `properties` are key=value."""
    options = [word for one in properties for word in ("-o", one)]
    return Change(("clone", *options, f"{dataset}@{name}", new))


def promote(dataset: str) -> Change:
    """Move the snapshots up to its origin to a clone, which then depends on nothing."""
    return Change(("promote", dataset))


def rename_tree(old: str, new: str) -> Change:
    """Move a dataset with all that is below it."""
    return Change(("rename", old, new))


def set_property(dataset: str, key: str, value: str) -> Change:
    """Set a local property; an empty value takes the local one away."""
    return Change(("set", f"{key}={value}", dataset) if value else ("inherit", key, dataset))


def create_parent(dataset: str) -> Change:
    """Create a missing parent of dst; canmount=off, so that it covers no directory."""
    return Change(("create", "-o", "canmount=off", dataset))


def set_readonly(dataset: str) -> Change:
    """Keep the replica from being written to."""
    return Change(("set", "readonly=on", dataset))


def drop_partial(dataset: str, why: str) -> Change:
    """Give up a receive that was cut; a dataset that it was to create goes with it."""
    return Change(("receive", "-A", dataset), why)


def mark_snapshots_argv(rid: str) -> Argv:
    """Mark as own the snapshots named on standard input: a stream without -R carries no mark."""
    return ("set", f"{RID}={rid}")


@dataclass(frozen=True)
class Stream:
    """One zfs send and the place where it is received; `base` None is a full stream.

    `replicate` sends the whole tree (-R). `relative` names the dataset on the source. `token` is
    that of a transfer which was cut: the rest of it is sent.
    """

    relative: str
    base: str | None
    goal: str
    into: str
    replicate: bool
    intermediary: bool
    pool: str | None = None  # receive -d POOL, where that maps src to dst exactly
    token: str | None = None

    def send_argv(self, tree: Tree, options: Sequence[str]) -> Argv:
        """Return the words after `zfs`; a token holds the flags that it was begun with."""
        if self.token:
            return ("send", "-t", self.token)
        dataset = tree.full(self.relative)
        base = (
            (("-I" if self.intermediary else "-i"), f"{dataset}@{self.base}") if self.base else ()
        )
        # -p without -R: user properties and sizes travel as they do with -R.
        return ("send", "-R" if self.replicate else "-p", *options, *base, f"{dataset}@{self.goal}")

    def receive_argv(self, can: Capabilities, options: Sequence[str], *, resumes: bool) -> Argv:
        """Return the words after `zfs`; never -F, see zfs_sync(7).

        `resumes`: the sender can go on with it, if it is cut.
        """
        resumable = ("-s",) if resumes and can.resumes else ()
        unmounted = ("-u",) if "u" in can.receive and "-u" not in options else ()
        where = ("-d", self.pool) if self.pool else (self.into,)
        return ("receive", *resumable, *unmounted, *options, *where)


def rest(token: str, relative: str, goal: Snapshot, into: str) -> Stream:
    """Return what is left of a transfer of one dataset that was cut."""
    return Stream(relative, None, goal.name, into, False, False, token=token)


# --- output -----------------------------------------------------------------------------------


def check_absent_only(stderr: str, what: str, command: str, status: int) -> None:
    """Raise NoAnswer unless each line of stderr says that a dataset does not exist.

    Only that is "absent"; a suspended pool or a missing right is "no answer".
    """
    if bad := [line for line in stderr.splitlines() if line.strip() and not _ABSENT.search(line)]:
        raise NoAnswer(what, command=command, detail=f"exit {status}: {bad[-1]}")


def is_absent(stderr: str, name: str) -> bool:
    """Tell whether stderr says, and says nothing else, that this dataset does not exist."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    found = [_ABSENT.search(line) for line in lines]
    return bool(found) and all(hit and hit["name"] == name for hit in found)


def parse_capabilities(usage: str, properties: str, zfs: tuple[str, ...]) -> Capabilities:
    """Read flags from the usage text of `zfs`, properties from that of `zfs get`.

    >>> usage = "  send [-DLw] [-i snap] <snap>\\n  receive [-vMu] [-x <property>] <fs>"
    >>> can = parse_capabilities(usage, "  written NO NO <size>", ("zfs",))
    >>> sorted(can.send), sorted(can.receive), can.written
    (['D', 'L', 'i', 'w'], ['M', 'u', 'v', 'x'], True)
    """
    flags: dict[str, set[str]] = {"send": set(), "receive": set()}
    verb = ""
    for line in usage.splitlines():
        words = re.sub(r"<[^>]*>", "", line).split()
        if not words or not words[0].startswith(("[", "<")):  # else the line before goes on
            verb = words.pop(0) if words else ""
        for found in re.findall(r"(?:^|[\[| ])-\[?(\w+)", " ".join(words)):
            flags.get(verb, set()).update(found)
    names = {line.split()[0] for line in properties.splitlines() if line.split()}
    return Capabilities(
        zfs, frozenset(flags["send"]), frozenset(flags["receive"]), "written" in names
    )


def parse_token(output: str) -> tuple[str | None, str]:
    """Return guid and full name of the snapshot that a token is for; None where it says nothing.

    >>> parse_token("resume token contents:\\n\\ttoguid = 0x1f\\n\\ttoname = tank/a@b\\n")
    ('31', 'tank/a@b')
    """
    guid, name = _TOKEN_GUID.search(output), _TOKEN_NAME.search(output)
    return (str(int(guid[1], 16)) if guid else None), (name[1] if name else "")


def parse_estimate(output: str) -> int | None:
    """Return the bytes that `zfs send -nvP` foretells, None where it does not.

    >>> parse_estimate("full\\ttank@b\\t12624\\nsize\\t12624\\n")
    12624
    """
    rows = [line.split() for line in output.splitlines()]
    sizes = [row[1] for row in rows if row[:1] == ["size"] and len(row) == 2]  # noqa: PLR2004 - the word and the number
    return int(sizes[-1]) if sizes and sizes[-1].isdecimal() else None


def parse_root(output: str) -> dict[str, str]:
    """Return the marks of a root whose source is `local`; -R carries others along as `received`.

    >>> parse_root("zfs_sync:replica\\tosol1/web/sync#1\\treceived\\n")
    {}
    """
    rows = [line.split("\t") for line in output.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 3 and row[2] == "local"}  # noqa: PLR2004 - the three columns asked for


def parse_names(output: str) -> dict[str, dict[str, str]]:
    """Return name -> property -> value of `zfs get -Hp -o name,property,value,source`.

    A snapshot inherits a user property of its dataset: that one says nothing of the snapshot.

    >>> parse_names("tank@a\\tzfs_sync:rid\\tweb/sync#1\\tinherited from tank\\n")
    {}
    """
    found: dict[str, dict[str, str]] = {}
    for line in output.splitlines():
        name, key, value, source = [*line.split("\t"), "", "", ""][:4]
        if value not in ("", "-") and not source.startswith("inherited"):
            found.setdefault(name, {})[key] = value
            if key == RID:
                found[name][RID_SOURCE] = source
    return found


def parse_stream_mountpoints(output: str) -> dict[str, str]:
    """Return dataset -> path of the mountpoints that a stream with properties carries.

    An inherited one is not in it.

    >>> parse_stream_mountpoints("tank/a\\t/srv\\tlocal\\ntank/b\\t/tank/b\\tdefault\\n")
    {'tank/a': '/srv'}
    """
    rows = [line.split("\t") for line in output.splitlines()]
    return {
        row[0]: row[1]
        for row in rows
        if len(row) == 3 and row[2] in ("local", "received") and row[1].startswith("/")  # noqa: PLR2004 - the columns asked for
    }


def parse_mountpoints(output: str) -> dict[str, str]:
    """Return path -> dataset of what is or may be mounted on a node."""
    rows = [line.split("\t") for line in output.splitlines()]
    return {row[1]: row[0] for row in rows if len(row) == 2 and row[1].startswith("/")}  # noqa: PLR2004 - the columns asked for


def parse_values(output: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Return name -> property -> (value, source)."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for line in output.splitlines():
        name, key, value, source = [*line.split("\t"), "", "", ""][:4]
        found.setdefault(name, {})[key] = (value, source)
    return found


def relative_to(root: str, full: str) -> str:
    """Return the name of a dataset relative to the root of its tree."""
    return full[len(root) + 1 :]


def build_datasets(
    root: str,
    datasets: Iterable[str],
    properties: Mapping[str, Mapping[str, str]],
    complete: frozenset[str] = frozenset(),
) -> Iterator[Dataset]:
    """Put datasets (full names) and the properties of all names together.

    A dataset that vanished between the two readings is left out.
    """
    snapshots: dict[str, dict[str, Snapshot]] = {}
    for name, values in properties.items():
        dataset, at, short = name.partition("@")
        if at and "guid" in values:
            snapshots.setdefault(dataset, {})[short] = Snapshot(
                short,
                values["guid"],
                int(values.get("creation", 0)),
                int(values.get("createtxg", 0)),
                values.get(RID),
                values.get(RID_SOURCE) == "local",
                int(values["written"]) if "written" in values else None,
            )
    for full in datasets:
        own = properties.get(full)
        if own:
            yield Dataset(
                ROOT if full == root else relative_to(root, full),
                int(own.get("creation", 0)),
                int(own.get("createtxg", 0)),
                int(own["written"]) if "written" in own else None,
                snapshots.get(full, {}),
                full in complete,
                Partial(own[TOKEN]) if TOKEN in own else None,
            )
