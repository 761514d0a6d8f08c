"""Decides what a service file says: one value per sync resource, or every error at once.

It never runs a command, never asks the network for a name and never writes a file.

The dialect is zfs_sync.conf(5): configparser's, with a value per node (`src@node`) and sections
that inherit (`[sync#2:sync#1]`).
"""
# pathlib would slow every start of the check, in which nothing else needs it.
# ruff: noqa: PTH110, PTH113, PTH118, PTH119, PTH120, PTH122, PTH123, PTH208

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeVar

NODE_CONF = "node.conf"
SUFFIXES = (".conf", ".env")

_T = TypeVar("_T")


# --- What the file says -----------------------------------------------------------------------


class Problem(NamedTuple):
    """One thing that is wrong, where it stands, and what to write instead.

    `line` is 0 and `section` empty where the problem is not that of one line or one section.
    """

    file: str
    section: str
    line: int
    text: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: [{self.section}] {self.text}" if self.section else f"{place}: {self.text}"


class ServiceError(Exception):
    """A service file that cannot be used; `str()` has every problem of it, one per line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Target(NamedTuple):
    """A node that receives; `group` is what named it: nodes, drpnodes, local or named."""

    node: str
    group: str


class SyncResource(NamedTuple):
    """A zfs sync section as it applies on the node `nodename`.

    Node names are those of the file: the full name wherever the file has one. `src` is None on a
    node that is no source of it; `dst` is then None too, and `targets` empty. The mappings `zfs`,
    `sudo` and `buffer` have this node and every target; `sources` has the src of every node that
    has one.
    """

    service: str
    rid: str
    file: str
    line: int
    nodename: str
    src: str | None
    dst: str | None
    targets: tuple[Target, ...]
    recursive: bool
    intermediary: bool
    sync_max_delay: int  # seconds
    snap_prefix: str
    on_divergence: str
    on_child_gone: str
    replica_readonly: bool
    skip_unchanged: bool
    send_changed: bool
    only_if: str | None
    send_options: tuple[str, ...]
    receive_options: tuple[str, ...]
    stall_timeout: int  # seconds
    compress: str | None
    buffer: Mapping[str, int | None]  # bytes
    rate_limit: int | None  # bytes per second
    ssh: tuple[str, ...]
    zfs: Mapping[str, tuple[str, ...]]
    sudo: Mapping[str, bool]
    sources: Mapping[str, str]


class Service(NamedTuple):
    """A service file as it applies on one node; `ignored` tells, per line, what was left alone."""

    name: str
    file: str
    resources: tuple[SyncResource, ...]
    ignored: tuple[str, ...]


# --- Values: each parser returns the value or raises ValueError with what is wrong -------------

# Patterns are compiled where they are first used: that is no part of every check's start.
_DURATION = r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?"
_UNIT_SECONDS = (86400, 3600, 60, 1)
_MAX_DURATION = 100 * 365 * 86400  # a century: longer is a slip of the finger, and no date any more
_BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
_COMPONENT = r"[A-Za-z0-9_.: -]+"
_MAX_DATASET = 255
COMPRESSORS = ("zstd", "lz4", "gzip")
_NONE = ("", "none")  # what is inherited has to be taken back somehow
_PREFIX = r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,31}"
_NODE = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_GROUPS = ("nodes", "drpnodes", "local")
# OpenSVC's other scopes. Taken for a node's name they would quietly match no node at all.
_NOT_NODES = (*_GROUPS, "encapnodes", "flex_primary")


def _is_node(name: str) -> bool:
    return name.lower() not in _NOT_NODES and re.fullmatch(_NODE, name) is not None


def duration_seconds(text: str) -> int:
    """Seconds in a duration: a bare number is minutes; `90m`, `26h`, `1d2h`, `45s`.

    Raises ValueError for any other text, and for more than a hundred years.
    """
    folded = text.strip().lower()
    if folded.isascii() and folded.isdigit():
        folded += "m"
    match = re.fullmatch(_DURATION, folded)
    if not folded or not match:
        raise ValueError("not a duration: a number is minutes, or 90m, 26h, 1d2h, 45s")
    # Nine digits are enough for a century of seconds; int() refuses thousands of them.
    if any(len(part or "") > 9 for part in match.groups()):  # noqa: PLR2004 - said above
        raise ValueError("longer than a hundred years")
    parts = (int(part or 0) for part in match.groups())
    seconds = sum(part * unit for part, unit in zip(parts, _UNIT_SECONDS, strict=True))
    if seconds > _MAX_DURATION:
        raise ValueError("longer than a hundred years")
    return seconds


def _delay(text: str) -> int:
    seconds = duration_seconds(text)
    if not seconds:
        raise ValueError("must be more than 0")
    return seconds


def _timeout(text: str) -> int:
    return _delay(f"{text}s" if text.isdigit() else text)


_SIZE = r"([0-9]{1,15})([KMG]?)"
_UNITS = "KMG"


def _size(text: str, least: int) -> int:
    match = re.fullmatch(_SIZE, text.upper())
    if not match:
        raise ValueError("not a size: a number is bytes, or 512K, 128M, 2G")
    number, unit = match.groups()
    size = int(number) << 10 * (_UNITS.index(unit) + 1 if unit else 0)
    if size < least:
        raise ValueError(f"must be at least {size_text(least)}")
    return size


def size_text(size: int) -> str:
    """A size as it is written in a service file.

    >>> size_text(128 << 20), size_text(1000)
    ('128M', '1000')
    """
    unit = ""
    for larger in _UNITS:
        if not size or size % 1024:
            break
        size, unit = size // 1024, larger
    return f"{size}{unit}"


def _buffer(text: str) -> int | None:
    return _size(text, 1 << 20) if text.lower() not in _NONE else None


def _rate(text: str) -> int | None:
    return _size(text, 1 << 10) if text.lower() not in _NONE else None


def _compressor(text: str) -> str | None:
    return _one_of(*COMPRESSORS)(text) if text.lower() not in _NONE else None


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise ValueError("neither True nor False")
    return _BOOLEANS[text.lower()]


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"must be {', '.join(words[:-1])} or {words[-1]}")
        return text.lower()

    return parse


def _lower(text: str) -> str:
    return text.lower()


def _metrics_file(text: str) -> str | None:
    """The path of a file for the node exporter, whose textfile collector takes *.prom alone."""
    if text and not (text.startswith("/") and text.endswith(".prom")):
        raise ValueError("must be an absolute path of a file whose name ends in .prom")
    return text or None


def _dataset(text: str) -> str:
    """The name of a filesystem or volume, by the rules of zfs(8) and zpool-create(8)."""
    if not text:
        raise ValueError("a dataset name is missing")
    if len(text) > _MAX_DATASET:
        raise ValueError(f"a dataset name has at most {_MAX_DATASET} characters")
    if text.startswith("/"):
        raise ValueError("a dataset name does not start with /: it is not a mountpoint")
    for component in text.split("/"):
        if not component:
            raise ValueError("empty component in a dataset name")
        if component in (".", "..") or component != component.strip():
            raise ValueError(f"{component!r} cannot be a component of a dataset name")
        if not re.fullmatch(_COMPONENT, component):
            raise ValueError("a dataset name has only letters, digits, spaces and _ . : - /")
    if not text[0].isalpha():
        raise ValueError("a pool name starts with a letter")
    return text


def _prefix(text: str) -> str:
    if text and not re.fullmatch(_PREFIX, text):
        raise ValueError("at most 32 letters, digits and _ . : - that start a snapshot name")
    # `tosend.` + `sent` would be the snapshot with which a node called sent joins.
    if "sent" in text or "tosend" in text:
        raise ValueError("must not contain sent or tosend, which are added to it")
    return text


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


def _node(name: str) -> str:
    if not _is_node(name):
        raise ValueError(f"{name!r} is not the name of a node")
    return name


def _nodes(text: str) -> tuple[str, ...]:
    return tuple(_node(word) for word in _words(text))


def _targets(text: str) -> tuple[str, ...]:
    words = _words(text)
    if not words:
        raise ValueError("names no target")
    return tuple(word.lower() if word.lower() in _GROUPS else _node(word) for word in words)


def _optional(text: str) -> str | None:
    return text or None


def _command(text: str) -> tuple[str, ...]:
    words = _split(text)
    if not words or not words[0]:
        raise ValueError("a command is missing")
    return words


def _split(text: str) -> tuple[str, ...]:
    if text.isalnum():  # the usual command is one word: shlex is not imported for it
        return (text,)
    import shlex  # noqa: PLC0415 - only few files need it

    return tuple(shlex.split(text))


def _flags(text: str, letters: str, refused: Mapping[str, str]) -> list[tuple[str, str]]:
    """Each flag with its argument, which is empty for a flag that takes none."""
    if not text:
        return []
    import getopt  # noqa: PLC0415 - only few files need it

    try:
        flags, rest = getopt.getopt(list(_split(text)), letters + "".join(refused))
    except getopt.GetoptError as error:
        raise ValueError(error.msg) from None
    if rest:
        raise ValueError(f"{rest[0]} is not a flag")
    reasons = {f"-{letter}": reason for key, reason in refused.items() for letter in key}
    for flag, _ in flags:
        if flag in reasons:
            raise ValueError(f"{flag} {reasons[flag]}: remove it")
    return flags


def _flat(flags: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(word for flag in flags for word in flag if word)


def _send_flags(text: str) -> tuple[str, ...]:
    flags = _flags(text, "wLcepbhDX:", {"RI:i:t:nvPVsSd:": "is the agent's own choice"})
    for flag, datasets in flags:
        if flag == "-X":
            for dataset in datasets.split(","):
                _dataset(dataset)
    return _flat(flags)


def _receive_flags(text: str) -> tuple[str, ...]:
    refused = {"F": "would destroy what the source lacks", "desAnv": "is the agent's own choice"}
    flags = _flags(text, "o:x:uM", refused)
    for flag, argument in flags:
        name, equals, _ = argument.partition("=")
        if flag == "-o" and not (name and equals):
            raise ValueError(f"-o {argument} sets no value")
        if name.startswith("zfs_sync:"):
            raise ValueError(f"{name} is the agent's own mark: remove it")
    return _flat(flags)


# --- Keys: all there are, each in one place ----------------------------------------------------


class _Key(Generic[_T]):
    """A key of a zfs sync section: how its text is read, and what it is without one."""

    name: str

    def __init__(
        self, parse: Callable[[str], _T], default: str, example: str, meaning: str
    ) -> None:
        self.parse, self.default, self.example, self.meaning = parse, default, example, meaning

    def __set_name__(self, owner: object, name: str) -> None:
        self.name = name


class _Keys:
    """The table of zfs_sync.conf(5); a test compares the two."""

    type = _Key(_lower, "required", "zfs", "zfs; a section of another type is left alone")
    src = _Key(_dataset, "required", "tank/data", "the dataset that is sent")
    dst = _Key(_dataset, "src", "tank/data", "where it goes when this node is the sender")
    target = _Key(_targets, "required", "nodes", "who receives: nodes, drpnodes, local, node names")
    nodes = _Key(_nodes, "the @nodes of the file", "db1 db2", "in [DEFAULT]: the nodes")
    drpnodes = _Key(_nodes, "none", "db3", "in [DEFAULT]: the nodes of the recovery site")
    disable = _Key(_boolean, "False", "True", "True: the section is skipped")
    recursive = _Key(_boolean, "True", "False", "the whole tree below src, not src alone")
    intermediary = _Key(_boolean, "False", "True", "the snapshots taken in between travel too")
    sync_max_delay = _Key(_delay, "1500", "26h", "the lag that is late, in minutes or as 26h, 1d2h")
    snap_prefix = _Key(_prefix, "", "sync.2.", "what the agent's own snapshot names start with")
    on_divergence = _Key(
        _one_of("discard", "refuse"), "discard", "refuse", "what to do with a replica written to"
    )
    on_child_gone = _Key(
        _one_of("follow", "keep", "stop"), "follow", "keep", "what a destroyed dataset means"
    )
    replica_readonly = _Key(_boolean, "True", "False", "the replica becomes readonly")
    skip_unchanged = _Key(_boolean, "False", "True", "send nothing where nothing was written")
    send_changed = _Key(_boolean, "False", "True", "send no dataset to which nothing was written")
    only_if = _Key(_optional, "", "test -e /etc/active", "a command that must exit 0 to send")
    send_options = _Key(_send_flags, "", "-w -L", "flags for zfs send")
    receive_options = _Key(_receive_flags, "", "-x mountpoint", "flags for zfs receive")
    compress = _Key(_compressor, "", "zstd", "compress streams: zstd, lz4 or gzip")
    buffer = _Key(_buffer, "", "128M", "the buffer before zfs receive, by mbuffer")
    rate_limit = _Key(_rate, "", "10M", "bytes per second that a stream may take of the link")
    ssh = _Key(_command, "ssh", "ssh -p 2222", "the command that reaches another node")
    zfs = _Key(_command, "zfs", "/usr/sbin/zfs", "the zfs command")
    sudo = _Key(_boolean, "False", "True", "zfs is run with sudo")
    stall_timeout = _Key(_timeout, "600", "600", "seconds without a byte before a send is given up")
    metrics_file = _Key(
        _metrics_file,
        "",
        "/var/lib/prometheus/node-exporter/zfs_sync.prom",
        "in node.conf: what Prometheus is to know of this node's replicas",
    )


_TABLE: dict[str, _Key[object]] = {
    name: key for name, key in vars(_Keys).items() if isinstance(key, _Key)
}

KEYS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {name: (key.default or "none", key.meaning) for name, key in _TABLE.items()}
)
"""Every key, with its default and its meaning, for the tests of the documentation."""

_NODE_LISTS = ("nodes", "drpnodes")
# OpenSVC's own keys of a sync section, which its agent reads and we do not.
_OPENSVC = (
    r"always_on|bwlimit|comment|delay_snap|dstfs|encap|monitor|non_disruptive|optional|options"
    r"|provision|restart|restart_delay|schedule|shared|snap_size|standby|subset|tags|timeout"
    r"|unprovision|user|sync_(?:days|interval|min_delay|period|schedule)"
    r"|(?:blocking_)?(?:pre|post)_\w+|\w+_(?:requires|trigger)"
)


# --- Text to sections --------------------------------------------------------------------------


class _Option(NamedTuple):
    """`name` is as written; `scope` is None for a bare option, which holds on every node."""

    name: str
    key: str
    scope: str | None
    value: str
    line: int


class _Section(NamedTuple):
    file: str
    name: str
    parent: str
    line: int
    options: tuple[_Option, ...]

    def problem(self, text: str, option: _Option | None = None) -> Problem:
        return Problem(self.file, self.name, option.line if option else self.line, text)


class _File(NamedTuple):
    """The sections of one file by name; a broken line costs itself and nothing else."""

    sections: Mapping[str, _Section]
    problems: tuple[Problem, ...]


_NAME = r"([^@\[\]]*?)\s*(?:@(.*)|\[(.*)\])?"
# What a continuation line must not look like: a setting lost in the value above it.
_SETTING = r"\[|\w+(?:@[^\s=]+|\[[^]=]+\])?\s*="


def _parse(file: str, text: str) -> _File:
    from check_zfs_sync import dialect  # noqa: PLC0415 - there may be no file to read, see there

    content = dialect.read(text)
    form = "not a line of the form key = value; a comment starts with ;"
    problems = [Problem(file, "", line, form) for line in content.broken]
    above = "stands before any section; write [DEFAULT] or [sync#1] above it"
    problems += [Problem(file, "", line, above) for line in content.outside]
    sections: dict[str, _Section] = {}
    for header, line, settings in content.sections:
        name, _, parent = (part.strip() for part in header.partition(":"))
        name = "DEFAULT" if name.upper() == "DEFAULT" else name
        options = tuple(_option(*setting) for setting in settings if setting.name)
        section = _Section(file, name, parent, line, options)
        if name in sections:
            text = f"this section is also on line {sections[name].line}; keep one of them"
            problems.append(section.problem(text))
        sections.setdefault(name, section)
        for option in options:
            if option.name.startswith("["):  # taken for an option, it would hide a section
                problems.append(section.problem("a header stands alone on its line", option))
    return _File(sections, tuple(problems))


def _option(name: str, value: str, line: int) -> _Option:
    match = re.fullmatch(_NAME, name)
    key, at, brackets = match.groups() if match else (name, None, None)
    scope = at if brackets is None else brackets
    scope = None if scope is None else scope.strip()
    return _Option(name, key.lower(), scope, value, line)


def _read(file: str) -> _File:
    shown = _shown(file)
    try:
        if not os.path.isfile(file) and os.path.exists(file):  # a pipe would block, for ever
            return _File({}, (Problem(shown, "", 0, "not a regular file; move it elsewhere"),))
        with open(file, "rb") as stream:
            data = stream.read()
    except OSError as error:
        return _File({}, (Problem(shown, "", 0, f"cannot be read: {error.strerror}"),))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return _File({}, (Problem(shown, "", line, "not UTF-8 text; save the file as UTF-8"),))
    return _parse(shown, text.replace("\r\n", "\n").replace("\r", "\n"))


# --- Nodes -------------------------------------------------------------------------------------


def _short(name: str) -> str:
    """The name without its domain, folded; an address has none."""
    folded = name.lower()
    return folded if folded.replace(".", "").isdigit() else folded.partition(".")[0]


def same_node(one: str, other: str) -> bool:
    """Whether names from two files mean one node: a short name fits a full one."""
    if "." in one and "." in other:
        return one.lower() == other.lower()
    return _short(one) == _short(other)


class _Nodes:
    """The nodes that a file names, each under one spelling: the full name if there is one."""

    def __init__(self, mentioned: Iterable[str]) -> None:
        self._spelling: dict[str, str] = {}
        self._full: dict[str, list[str]] = {}
        for name in mentioned:
            if name.lower() not in self._spelling:
                self._spelling[name.lower()] = name
                if _short(name) != name.lower():
                    self._full.setdefault(_short(name), []).append(name)

    def fits(self, name: str) -> list[str]:
        """The nodes that a name may mean; more than one is an error of the file."""
        folded = name.lower()
        return self._full.get(folded) or [self._spelling.get(folded, name)]

    def spelled(self, name: str) -> str:
        """The one spelling of a node's name."""
        return self.fits(name)[0]

    def this_node(self, nodename: str) -> str:
        """The file's name for the node that calls itself `nodename`."""
        known = nodename.lower() in self._spelling or _short(nodename) in self._full
        return self.spelled(nodename if known else self._spelling.get(_short(nodename), nodename))

    def namesake(self, nodename: str) -> str | None:
        """A node of the file that differs from an unknown `nodename` in the domain only."""
        if nodename.lower() in self._spelling:
            return None
        return next((full for full in self._full.get(_short(nodename), ())), None)


# --- Sections to values ------------------------------------------------------------------------


class _Levels(NamedTuple):
    """Where a value may come from, the nearest first.

    The section itself, the sections that it inherits from, [DEFAULT], [DEFAULT] of node.conf.
    """

    sections: tuple[_Section, ...]
    nodes: _Nodes

    def find(self, key: str, node: str) -> tuple[_Section, _Option] | None:
        """The setting that holds on a node: the nearest level decides, there its @node first."""
        for section in self.sections:
            bare = None
            for option in section.options:
                if option.key == key and option.scope is None:
                    bare = option
                elif option.key == key and self.nodes.spelled(option.scope or "") == node:
                    return section, option
            if bare:
                return section, bare
        return None

    def value(self, key: _Key[_T], node: str) -> _T | None:
        """The value on a node; None if it is not set, or is one of the problems of the file."""
        found = self.find(key.name, node)
        try:
            return key.parse(_joined(found[1].value)) if found else None
        except ValueError:
            return None

    def get(self, key: _Key[_T], node: str) -> _T:
        """The value on a node, or the default."""
        value = self.value(key, node)
        return key.parse(key.default) if value is None else value

    def scopes(self, key: str) -> list[str]:
        """The nodes for which a key has a value of their own."""
        return [
            option.scope
            for section in self.sections
            for option in section.options
            if option.key == key and option.scope is not None
        ]


def _joined(value: str) -> str:
    return " ".join(value.split("\n"))


class _Resource:
    """One zfs sync section on one node: what must hold between its values."""

    def __init__(self, levels: _Levels, me: str, scoped_nodes: tuple[str, ...]) -> None:
        self.section = levels.sections[0]
        self.levels = levels
        self.defaults = levels._replace(sections=levels.sections[-2:])
        self.me = me
        self.problems: list[Problem] = []
        self.scoped_nodes = scoped_nodes

    def _report(self, key: str, text: str) -> None:
        found = self.levels.find(key, self.me)
        section, option = found or (self.section, None)
        said = f"{option.name} = {_joined(option.value)}: {text}" if option else text
        self.problems.append(section.problem(said, option))

    def members(self, word: str) -> tuple[str, ...]:
        """The nodes that one word of `target` stands for."""
        if word == "local":
            return (self.me,)
        if word == "nodes":
            listed = self.defaults.value(_Keys.nodes, self.me)
            names = self.scoped_nodes if listed is None else listed
        elif word == "drpnodes":
            names = self.defaults.value(_Keys.drpnodes, self.me) or ()
        else:
            names = (word,)
        return tuple(self.levels.nodes.spelled(name) for name in names)

    def targets(self) -> tuple[Target, ...]:
        targets: dict[str, Target] = {}
        words = self.levels.value(_Keys.target, self.me) or ()
        for word in words:
            group = word if word in _GROUPS else "named"
            for node in self.members(word):
                if node != self.me or group == "local":
                    targets.setdefault(node, Target(node, group))
        return tuple(targets.values())

    def check(self) -> list[Problem]:
        """Report what is missing, and what contradicts on this node."""
        if self.levels.find("src", self.me):
            self._check_targets()
            self._check_local()
        elif not self.levels.scopes("src"):
            self._report("src", "src is missing; write for example: src = tank/data")
        return self.problems

    def _check_targets(self) -> None:
        if not self.levels.find("target", self.me):
            self._report("target", "target is missing; write for example: target = nodes")
            return
        words = self.levels.value(_Keys.target, self.me) or ()
        targets = self.targets()
        for word in words:
            if word in _NODE_LISTS and not self.members(word):
                text = f"there are no {word}; write in [DEFAULT] or node.conf: {word} = db1 db2"
                self._report("target", text)
                return
        if words and not targets:
            text = (
                f"no node is left that receives: {self.me} is this node itself; write another"
                f" node, or src@NODE = ... for the node that sends"
            )
            self._report("target", text)
        namesake = self.levels.nodes.namesake(self.me)
        if namesake in {target.node for target in targets}:
            text = f"is {namesake} this node, {self.me}? write the same name, or add {self.me}"
            self._report("target", text + " to nodes")

    def _check_local(self) -> None:
        if "local" not in {target.group for target in self.targets()}:
            return
        src = self.levels.value(_Keys.src, self.me)
        dst = self.levels.value(_Keys.dst, self.me)
        if not self.levels.find("dst", self.me):
            self._report("target", "needs a dst; write for example: dst = backup/data")
        elif src and dst and (src in _lineage(dst) or dst in _lineage(src)):
            text = f"a local dst and its src = {src} must not share a tree; write for example:"
            self._report("dst", f"{text} dst = backup/data")

    def value(self, service: str) -> SyncResource:
        get, me = self.levels.get, self.me
        src = self.levels.value(_Keys.src, me)
        targets = self.targets() if src else ()
        everyone = (me, *(target.node for target in targets))
        return SyncResource(
            service=service,
            rid=self.section.name,
            file=self.section.file,
            line=self.section.line,
            nodename=me,
            src=src,
            dst=self._dst() if src else None,
            targets=targets,
            recursive=get(_Keys.recursive, me),
            intermediary=get(_Keys.intermediary, me),
            sync_max_delay=get(_Keys.sync_max_delay, me),
            snap_prefix=get(_Keys.snap_prefix, me),
            on_divergence=get(_Keys.on_divergence, me),
            on_child_gone=get(_Keys.on_child_gone, me),
            replica_readonly=get(_Keys.replica_readonly, me),
            skip_unchanged=get(_Keys.skip_unchanged, me),
            send_changed=get(_Keys.send_changed, me),
            only_if=get(_Keys.only_if, me),
            send_options=get(_Keys.send_options, me),
            receive_options=get(_Keys.receive_options, me),
            stall_timeout=get(_Keys.stall_timeout, me),
            compress=get(_Keys.compress, me),
            buffer=MappingProxyType({node: get(_Keys.buffer, node) for node in everyone}),
            rate_limit=get(_Keys.rate_limit, me),
            ssh=get(_Keys.ssh, me),
            zfs=MappingProxyType({node: get(_Keys.zfs, node) for node in everyone}),
            sudo=MappingProxyType({node: get(_Keys.sudo, node) for node in everyone}),
            sources=self._sources(),
        )

    def _dst(self) -> str | None:
        is_set = self.levels.find("dst", self.me)
        return self.levels.value(_Keys.dst if is_set else _Keys.src, self.me)

    def _sources(self) -> Mapping[str, str]:
        words = self.levels.value(_Keys.target, self.me) or ()
        known = [node for word in ("nodes", "drpnodes", *words) for node in self.members(word)]
        known += [self.levels.nodes.spelled(scope) for scope in self.levels.scopes("src")]
        pairs = ((node, self.levels.value(_Keys.src, node)) for node in (*known, self.me))
        return MappingProxyType({node: src for node, src in pairs if src})


# --- One file ----------------------------------------------------------------------------------

_RID = r"sync#[A-Za-z0-9_.-]+"
_NO_SECTION = _Section("", "DEFAULT", "", 0, ())


class _Reading:
    """The reading of one service file: what it finds, and all that is wrong on the way."""

    def __init__(self, path: str, file: _File, node_conf: _File) -> None:
        self.path = path
        self.sections = file.sections
        self.problems = [*node_conf.problems, *file.problems]
        self.ignored: list[Problem] = []
        self.defaults = tuple(
            sections.get("DEFAULT", _NO_SECTION) for sections in (file.sections, node_conf.sections)
        )
        for name, section in node_conf.sections.items():
            if name != "DEFAULT":
                self.ignored.append(section.problem("left alone: only [DEFAULT] is read here"))

    def service(self, name: str, nodename: str) -> Service:
        lineages = list(self._zfs_lineages())
        nodes = _Nodes(self._mentioned(lineages))
        if len(nodes.fits(nodename)) > 1:
            text = (
                f"this node is called {nodename}, which fits {' and '.join(nodes.fits(nodename))}"
            )
            self.problems.append(Problem(self.path, "", 0, text + "; use its full name"))
        me = nodes.this_node(nodename)
        levels = [_Levels(sections, nodes) for sections in lineages]
        active = [each for each in levels if not self._is_disabled(each, me)]
        for section in dict.fromkeys(section for each in active for section in each.sections):
            self._check_section(section, nodes)
        scoped = tuple(dict.fromkeys(map(nodes.spelled, self._scopes(lineages))))
        found = [_Resource(each, me, scoped) for each in active]
        for resource in found:
            self.problems.extend(resource.check())
        resources = tuple(resource.value(name) for resource in found)
        self.problems.extend(clash.problem for clash in _clashes(resources))
        if self.problems:
            raise ServiceError(_in_order(self.problems))
        return Service(name, self.path, resources, tuple(map(str, _in_order(self.ignored))))

    def _zfs_lineages(self) -> Iterator[tuple[_Section, ...]]:
        """Each zfs sync section, followed by the levels that it inherits from."""
        parents = {section.parent for section in self.sections.values()}
        for name, section in self.sections.items():
            if name == "DEFAULT" or (name in parents and not re.fullmatch(_RID, name)):
                continue
            if re.fullmatch(_RID, name):
                ancestry = self._ancestry(section)
                if ancestry and self._is_zfs((*ancestry, *self.defaults)):
                    yield (*ancestry, *self.defaults)
            elif name.lower().startswith("sync"):
                text = "not the name of a sync section; write for example: [sync#1]"
                self.problems.append(section.problem(text))
            else:
                self.ignored.append(section.problem("left alone: not a sync section"))

    def _ancestry(self, section: _Section) -> tuple[_Section, ...]:
        """The section and those that it inherits from; nothing if these cannot be told."""
        line = {section.name: section}
        while section.parent:
            parent = self.sections.get(section.parent)
            if parent and parent.name not in line:
                line[parent.name] = section = parent
                continue
            text = f"inherits from [{section.parent}], which is not in this file; write it"
            if parent:
                text = f"inherits from itself: {' from '.join((*line, parent.name))}"
            self.problems.append(section.problem(f"{text}, or remove :{section.parent}"))
            return ()
        return tuple(line.values())

    def _is_zfs(self, sections: tuple[_Section, ...]) -> bool:
        settings = (option for section in sections for option in section.options)
        word = next((each.value for each in settings if each.key == "type" and not each.scope), "")
        if not word:
            text = "has no type; write: type = zfs"
            self.problems.append(sections[0].problem(text))
        elif word.lower() != "zfs":
            self.ignored.append(sections[0].problem(f"left alone: type = {_joined(word)}"))
        return word.lower() == "zfs"

    def _is_disabled(self, levels: _Levels, me: str) -> bool:
        disabled = levels.get(_Keys.disable, me)
        if disabled:
            self.ignored.append(levels.sections[0].problem("skipped: disable = True"))
        return disabled

    def _scopes(self, lineages: Iterable[tuple[_Section, ...]]) -> Iterator[str]:
        """The nodes that this file has as @node: these are `nodes`, if nothing sets it."""
        sections = [section for lineage in lineages for section in lineage[:-1]]
        for section in dict.fromkeys((*sections, self.defaults[0])):
            for option in section.options:
                if option.scope and option.key in _TABLE and _is_node(option.scope):
                    yield option.scope

    def _mentioned(self, lineages: Sequence[tuple[_Section, ...]]) -> Iterator[str]:
        sections = [section for lineage in lineages for section in lineage]
        for section in dict.fromkeys(reversed(sections)):  # [DEFAULT] decides the spelling
            for option in section.options:
                if option.key in (*_NODE_LISTS, "target"):
                    yield from filter(_is_node, _words(option.value))
        yield from self._scopes(lineages)

    def _check_section(self, section: _Section, nodes: _Nodes) -> None:
        """Report the settings that are wrong on any node, not only on this one."""
        first: dict[tuple[str, str], _Option] = {}
        for option in section.options:
            if option.key not in _TABLE:
                self._unknown(section, option)
                continue
            same = first.setdefault((option.key, nodes.spelled(option.scope or "")), option)
            if same is not option:
                text = f"{option.name} is also set on line {same.line}"
                text += f", as {same.name}" if same.name != option.name else ""
                self.problems.append(section.problem(text + "; keep one of them", option))
            for text in _setting_problems(section, option, nodes):
                self.problems.append(section.problem(text, option))
            self.problems.extend(_swallowed(section, option))

    def _unknown(self, section: _Section, option: _Option) -> None:
        if section.name == "DEFAULT" or re.fullmatch(_OPENSVC, option.key):
            text = f"left alone: {option.name} is not a key of zfs_sync"
            self.ignored.append(section.problem(text, option))
        elif not option.name.startswith("["):  # that one is reported as what it is
            import difflib  # noqa: PLC0415 - only a wrong file needs it

            close = difflib.get_close_matches(option.key, _TABLE, 1)
            advice = f"did you mean {close[0]}?" if close else "see zfs_sync.conf(5)"
            text = f"{option.name} is not a key of a zfs sync section; {advice}"
            self.problems.append(section.problem(text, option))


def _in_order(problems: Iterable[Problem]) -> list[Problem]:
    return sorted(dict.fromkeys(problems), key=lambda problem: (problem.file, problem.line))


def _swallowed(section: _Section, option: _Option) -> Iterator[Problem]:
    """Settings that configparser takes for more of the value above, as they are indented."""
    # Blank lines and comments end a value, so its lines stand one below the other.
    for line, more in enumerate(option.value.split("\n")[1:], option.line + 1):
        if re.match(_SETTING, more):
            text = f"indented, this line continues {option.name}; start it where others start"
            yield section.problem(text)._replace(line=line)


def _misplaced(section: _Section, option: _Option) -> Iterator[str]:
    if option.key in _NODE_LISTS and section.name != "DEFAULT":
        yield f"{option.name} belongs to [DEFAULT]; write it there, or name the nodes in target"
    if option.key == "metrics_file" and os.path.basename(section.file) != NODE_CONF:
        yield f"{option.name} belongs to [DEFAULT] of {NODE_CONF}: one file tells of all services"
    if option.key == "type" and option.scope is not None:
        said = f"{option.name} = {_joined(option.value)}"
        yield f"{said}: the type is the same on every node; write: type = zfs"


def _setting_problems(section: _Section, option: _Option, nodes: _Nodes) -> Iterator[str]:
    key, value = _TABLE[option.key], _joined(option.value)
    said = f"{option.name} = {value}"
    if not (option.name + value).replace("\t", " ").isprintable():
        yield f"{option.key} has a character that cannot be seen: write the line again"
        return
    yield from _misplaced(section, option)
    names: Sequence[str] = ()
    try:
        key.parse(value)
        if option.key in (*_NODE_LISTS, "target"):
            names = _words(value)
    except ValueError as error:
        hint = ' (a comment after a value starts with " ;")' if "#" in value else ""
        yield f"{said}: {error}{hint}; write for example: {option.key} = {key.example}"
    try:
        if option.scope is not None:
            names = (*names, _node(option.scope))
    except ValueError as error:
        yield f"{said}: {error}; write for example: {option.key}@db1 = {value}"
    for name in names:
        if len(nodes.fits(name)) > 1:
            yield f"{said}: {name} fits {' and '.join(nodes.fits(name))}; write the full name"


# --- Resources that must not meet --------------------------------------------------------------


class _Clash(NamedTuple):
    """Two resources that would spoil each other's snapshots or replicas; `second` is to change."""

    first: SyncResource
    second: SyncResource
    text: str

    @property
    def problem(self) -> Problem:
        text = f"{_place(self.second)} and {_place(self.first)} {self.text}"
        return Problem(self.second.file, self.second.rid, self.second.line, text)


_Index = dict[tuple[str, str], list[SyncResource]]


def _place(resource: SyncResource) -> str:
    return f"{resource.service}/{resource.rid} ({resource.file}:{resource.line})"


def _lineage(dataset: str) -> list[str]:
    """The dataset and all those above it."""
    components = dataset.split("/")
    return ["/".join(components[:count]) for count in range(len(components), 0, -1)]


def _holders(
    index: _Index, node: str, dataset: str, but: SyncResource
) -> Iterator[tuple[SyncResource, bool]]:
    """The other resources that have this dataset in their tree, and whether as its root."""
    for name in _lineage(dataset):
        for other in index.get((node, name), ()):
            if other is not but and (other.recursive or name == dataset):
                yield other, name == dataset


def _clashes(resources: Iterable[SyncResource]) -> Iterator[_Clash]:
    """Resources of this node, of one file or of many, that must not run beside each other."""
    sending = [resource for resource in resources if resource.src and resource.dst]
    by_src: _Index = {}
    by_dst: _Index = {}
    for one in sending:
        by_src.setdefault(("", one.src or ""), []).append(one)
        for target in one.targets:
            by_dst.setdefault((_short(target.node), one.dst or ""), []).append(one)
    for one in sending:
        yield from _src_clashes(by_src, one)
        for target in one.targets:
            yield from _dst_clashes(by_dst, target, one)
            if target.group == "local":
                for other, _ in _holders(by_src, "", one.dst or "", one):
                    text = f"meet: the local dst {one.dst} lies in src = {other.src}"
                    yield _Clash(other, one, text + "; write a dst outside of it")


def _later(one: SyncResource, other: SyncResource) -> bool:
    """Whether `one` stands behind `other`: two equal names meet twice and are told once."""
    return (one.file, one.line) > (other.file, other.line)


def _src_clashes(by_src: _Index, one: SyncResource) -> Iterator[_Clash]:
    for other, same in _holders(by_src, "", one.src or "", one):
        if other.snap_prefix == one.snap_prefix and (not same or _later(one, other)):
            text = f"both take @{one.snap_prefix}sent of {one.src}; write for example:"
            yield _Clash(other, one, f"{text} snap_prefix = {_other_prefix(one)}")


def _dst_clashes(by_dst: _Index, target: Target, one: SyncResource) -> Iterator[_Clash]:
    for other, same in _holders(by_dst, _short(target.node), one.dst or "", one):
        if not any(same_node(target.node, each.node) for each in other.targets):
            continue
        if same and _later(one, other):
            yield _Clash(other, one, f"both write to {one.dst} on {target.node}; write another dst")
        elif not same and other.snap_prefix == one.snap_prefix:
            text = f"both keep @{one.snap_prefix}sent of {one.dst} on {target.node}; write for"
            yield _Clash(other, one, f"{text} example: snap_prefix = {_other_prefix(one)}")


def _other_prefix(resource: SyncResource) -> str:
    prefix = resource.rid.replace("#", ".") + "."
    return prefix if prefix != resource.snap_prefix else f"b.{prefix}"


# --- Files -------------------------------------------------------------------------------------

SERVICE_NAME = r"[A-Za-z0-9][A-Za-z0-9_.+-]*"


def load_service(path: str, *, nodename: str) -> Service:
    """The service of one file, as it applies on a node; node.conf beside it has the defaults.

    Raises ServiceError with everything that is wrong in the file.
    """
    return _load(path, _node_conf(os.path.dirname(path)), nodename)


def load_services(
    config_dir: str, *, nodename: str, names: Sequence[str] = ()
) -> tuple[tuple[Service, ...], tuple[Problem, ...]]:
    """The services of a folder that can be used, and what is wrong with the others.

    With `names`, only these services and their problems; they are compared with all the others
    all the same. Files that start with a dot are no service files.
    """
    try:
        entries = sorted(os.listdir(config_dir))
    except OSError as error:
        text = f"cannot be read: {error.strerror}; service files belong in here"
        return (), (Problem(_shown(config_dir), "", 0, text),)
    files = {
        _service_name(entry): os.path.join(config_dir, entry)
        for entry in entries
        if entry.endswith(SUFFIXES) and entry != NODE_CONF and not entry.startswith(".")
    }
    unknown = [_unknown_service(config_dir, name, files) for name in names if name not in files]
    services, problems = _load_all(files, _node_conf(config_dir), nodename)
    clashes = [
        clash
        for clash in _clashes([each for service in services.values() for each in service.resources])
        if clash.first.service != clash.second.service  # those of one file are its own problems
    ]
    for clash in clashes:
        for name in (clash.first.service, clash.second.service):
            services.pop(name, None)
            problems.setdefault(name, []).append(clash.problem)
    wanted = dict.fromkeys(names) if names else files
    return (
        tuple(services[name] for name in wanted if name in services),
        (*unknown, *dict.fromkeys(each for name in wanted for each in problems.get(name, ()))),
    )


def metrics_file(config_dir: str, *, nodename: str) -> str | None:
    """The metrics_file of a node; None if node.conf has none, or one that cannot be used."""
    section = _node_conf(config_dir).sections.get("DEFAULT", _NO_SECTION)
    nodes = _Nodes(option.scope for option in section.options if option.scope)
    return _Levels((section,), nodes).value(_Keys.metrics_file, nodes.this_node(nodename))


def _load_all(
    files: Mapping[str, str], node_conf: _File, nodename: str
) -> tuple[dict[str, Service], dict[str, list[Problem]]]:
    services: dict[str, Service] = {}
    problems: dict[str, list[Problem]] = {}
    for name, path in files.items():
        try:
            services[name] = _load(path, node_conf, nodename)
        except ServiceError as error:
            problems[name] = list(error.problems)
    return services, problems


def _load(path: str, node_conf: _File, nodename: str) -> Service:
    name = _service_name(os.path.basename(path))
    file = _read(path)
    texts = []
    if not re.fullmatch(SERVICE_NAME, name):
        texts.append("a service name has only letters, digits and _ . + -; rename the file")
    for suffix in SUFFIXES:
        twin = os.path.join(os.path.dirname(path), name + suffix)
        if twin != path and os.path.exists(twin):
            texts.append(f"{name} also has the file {_shown(twin)}; remove one of the two")
    problems = (*(Problem(_shown(path), "", 0, text) for text in texts), *file.problems)
    reading = _Reading(_shown(path), file._replace(problems=problems), node_conf)
    return reading.service(name, nodename)


def _node_conf(config_dir: str) -> _File:
    path = os.path.join(config_dir, NODE_CONF)
    return _read(path) if os.path.lexists(path) else _File({}, ())


def _service_name(entry: str) -> str:
    stem, suffix = os.path.splitext(entry)
    return stem if suffix in SUFFIXES else entry


def _unknown_service(config_dir: str, name: str, files: Iterable[str]) -> Problem:
    text = f"no service {name}: there is no {name}.conf and no {name}.env"
    known = ", ".join(files)
    return Problem(config_dir, "", 0, f"{text}; there is {known}" if known else text)


def _shown(path: str) -> str:
    """The path, fit for a message: a file name can be any bytes."""
    return path if path.isprintable() else ascii(path)
