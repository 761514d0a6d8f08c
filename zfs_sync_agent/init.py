"""Tries what service files need of their nodes, and writes a new one for this node.

It never changes a service file that is there, writes nothing on another node, and nothing to ZFS.
"""

import argparse
import contextlib
import os
import pwd
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from check_zfs_sync.service import (
    KEYS,
    NODE_CONF,
    SERVICE_NAME,
    SUFFIXES,
    SyncResource,
    load_services,
    same_node,
)
from zfs_sync_agent import trial
from zfs_sync_agent.errors import EXIT_OK, EXIT_USAGE, NoAnswer, UsageError
from zfs_sync_agent.transport import Shell, quote
from zfs_sync_agent.trial import Item, Place

# What a person is asked on a terminal, with what no answer stands for; `{me}` is this node.
_QUESTIONS = {
    "nodes": "nodes, {me} among them",
    "src": "src, the dataset that {me} sends",
    "dst": "dst, its name on the others [the same]",
    "recursive": "recursive, all that is below src too [True]",
    "sync_max_delay": "sync_max_delay, the age that is late, in minutes or as 26h, 1d2h [1500]",
}
_EXAMPLES = {"nodes": "'db1 db2'", "src": "tank/data"}
_IN_DEFAULT = ("nodes", "drpnodes")
_OF_NODE = ("metrics_file",)  # in node.conf alone
_FIRST = ("type", "src", "dst", "target")  # what every section has, or inherits

RID = "sync#1"
_PAIR = 2
_NAME = re.compile(r"\w+(?:@[^\s=\[\]]+|\[[^\s=\[\]]+\])?")

Values = dict[str, str]


@dataclass
class Wish:
    """What the new file is to say; `values` are by key, or by key@node.

    `asked` tells whether a person was asked for some of it.
    """

    service: str = ""
    rid: str = RID
    values: Values = field(default_factory=dict)
    asked: bool = False

    def has(self, key: str) -> bool:
        """Tell whether a key is set, on whichever node."""
        return any(_key(name) == key for name in self.values)

    def requires(self, key: str) -> bool:
        """Tell whether a key is missing that this file cannot do without."""
        if key == "nodes":  # with src@node these are the nodes
            scoped = self.has("src") and "src" not in self.values
            return "nodes" in self.targets and not self.has("nodes") and not scoped
        return key == "src" and not self.has("src")

    @property
    def targets(self) -> list[str]:
        """Return the words of target."""
        return _words(self.values.get("target", "nodes"))

    def command(self) -> str:
        """Return the command line that asks for the same without a question."""
        rid = () if self.rid == RID else ("--rid", self.rid)
        pairs = (f"{name}={value}" for name, value in self.values.items())
        return quote(("zfs_sync_agent", "-s", self.service, *rid, "init", *pairs))


# --- the trial --------------------------------------------------------------------------------


def is_fit(
    resources: Sequence[SyncResource],
    state_dir: str,
    nodes: Sequence[str] = (),
    *,
    new_texts: Mapping[str, str] | None = None,
) -> bool:
    """Try what the resources need of this node and of the others, or of `nodes` among them.

    Prints a line for each item, on stderr where it is wrong; tells whether none is. `new_texts` has
    the text of service files that are not written yet, by path.
    """
    texts = new_texts or {one.file: _read(one.file) for one in resources}
    places = trial.places(resources, texts, state_dir, new=new_texts is not None)
    chosen = [one for one in places if not one.ssh or not nodes or one.node in nodes]
    fit = True
    for item in _try(chosen):
        print(item, file=sys.stderr if item.advice else sys.stdout, flush=True)
        fit = fit and not item.advice
    return fit


def _try(places: Sequence[Place]) -> Iterator[Item]:
    shells = [Shell(place.node, place.ssh) for place in places]
    try:
        for shell in shells:  # the handshakes go on at the same time
            with contextlib.suppress(NoAnswer):
                shell.open()
        standbys: frozenset[str] = frozenset()
        for place, shell in zip(places, shells, strict=True):
            before = time.time()
            try:
                answers = shell.ask(trial.questions(place))
            except NoAnswer as error:
                yield trial.unreached(place, error)
                continue
            if not place.ssh:
                standbys = trial.standing_by(place, answers)
            yield from trial.findings(place, answers, (before + time.time()) / 2, standbys)
    finally:
        for shell in shells:
            shell.close()


def _read(path: str) -> str:
    """Return a file's text as a shell answers it."""
    return Path(path).read_bytes().decode(errors="replace")


# --- a new file -------------------------------------------------------------------------------


def run(args: argparse.Namespace, folders: Sequence[str]) -> int:
    """Write a service file, if it is right and its nodes are; return the exit status.

    `folders` are the options that name other folders than the usual ones.
    """
    wish = Wish()
    try:
        _take_words(args, wish)
        if sys.stdin.isatty():
            _ask(args, wish)
        _check_whole(args, wish)
        _make(args, wish, folders)
    except (UsageError, OSError) as error:
        problems = error.problems if isinstance(error, UsageError) else (error,)
        for line in (*problems, "nothing was written"):
            print(f"zfs_sync_agent: init: {line}", file=sys.stderr)
        if wish.asked:
            print(f"the same without questions: {wish.command()}", file=sys.stderr)
        return EXIT_USAGE
    return EXIT_OK


def _make(args: argparse.Namespace, wish: Wish, folders: Sequence[str]) -> None:
    """Try and write what is wished for. Raises UsageError, OSError."""
    text = compose(wish, args.nodename)
    path, resource = _read_back(args, wish, text)
    if not is_fit([resource], args.state_dir, new_texts={path: text}):
        raise UsageError(("what is told above is not as it has to be",))
    if args.dry_run or wish.asked:
        print(f"\n{text}")
    if args.dry_run:
        return
    if wish.asked and _answer(f"write this to {path}? [y/N]").lower() not in ("y", "yes"):
        raise UsageError(("as you say",))
    _write(Path(path), text)
    _tell(args, path, resource, folders)


def _take_words(args: argparse.Namespace, wish: Wish) -> None:
    """Take what the command line says. Raises UsageError."""
    problems = []
    for option, given in (("-s", args.service), ("--rid", args.rid)):
        if len(given) > 1:
            problems.append(f"{option}: one only, a file for each service")
    if args.node:
        problems.append("it takes no --node: write nodes='db1 db2'")
    for word in args.words:
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals or not _NAME.fullmatch(name):
            problems.append(f"{word}: write KEY=VALUE, or KEY@NODE=VALUE; see zfs_sync.conf(5)")
        elif name in wish.values:
            problems.append(f"{name} is given twice")
        wish.values[name] = value
    wish.service, wish.rid = "".join(args.service[:1]), "".join(args.rid[:1]) or RID
    if problems:
        raise UsageError(tuple(problems))


def _ask(args: argparse.Namespace, wish: Wish) -> None:
    """Ask for everything, where the command line lacks what is required. Raises UsageError."""
    wish.asked = not wish.service or wish.requires("nodes") or wish.requires("src")
    if not wish.asked:
        return
    if not wish.service:
        wish.service = _answer("service, whose name the file gets")
    _check_service(args, wish)
    for key, question in _QUESTIONS.items():
        if wish.has(key) or (key == "nodes" and not wish.requires(key)):
            continue
        if value := _answer(question.format(me=args.nodename)):
            wish.values[key] = value


def _answer(question: str) -> str:
    try:
        return input(f"{question}: ").strip()
    except EOFError:
        print()
        raise UsageError(("no answer",)) from None


def _check_service(args: argparse.Namespace, wish: Wish) -> None:
    """Raise UsageError where the file cannot have this name, or is there."""
    name = f"{wish.service}{SUFFIXES[0]}"
    if not re.fullmatch(SERVICE_NAME, wish.service) or name == NODE_CONF:
        text = "no name for a service: letters, digits and _ . + -, but not node"
        raise UsageError((f"-s {wish.service}: {text}",))
    for suffix in SUFFIXES:
        path = Path(args.config_dir, f"{wish.service}{suffix}")
        if os.path.lexists(path):
            text = f"{path} is there, and init changes no file: edit it, then type zfs_sync_agent"
            raise UsageError((f"{text} validate --deep; or name another service with -s",))


def _check_whole(args: argparse.Namespace, wish: Wish) -> None:
    """Raise UsageError for all that is missing, or cannot be written as it is."""
    problems = [] if wish.service else ["-s is missing: write -s SERVICE, as -s z3.opensvc.com"]
    problems += [
        f"{key} is missing: write {key}={example}, or call it on a terminal"
        for key, example in _EXAMPLES.items()
        if wish.requires(key)
    ]
    for name, value in wish.values.items():
        if not value.isprintable() or re.search(r"(^|\s);", value):
            problems.append(f"{name}: the rest of the value would be a comment or another line")
    if problems:
        raise UsageError(tuple(problems))
    _check_service(args, wish)


def compose(wish: Wish, nodename: str) -> str:
    """Return the text of the service file. Raises UsageError."""
    values = {"type": "zfs", "target": "nodes", **_spread(wish, nodename)}
    lines = [
        f"; {wish.service}: zfs_sync_agent(8) sends it, check_zfs_sync(1) tells when it is late.",
        "; The same file can lie on all of its nodes. All keys are explained in zfs_sync.conf(5).",
        "; After a change: zfs_sync_agent validate --deep",
        "",
    ]
    if defaults := [name for name in values if _key(name) in _IN_DEFAULT]:
        lines += ["[DEFAULT]", *(f"{name} = {values.pop(name)}" for name in defaults), ""]
    lines += [f"[{wish.rid}]"]
    order = (*_FIRST, *KEYS, *map(_key, values))  # a key that is none is told by who reads it
    for key in dict.fromkeys(order):
        set_here = [name for name in values if _key(name) == key]
        if set_here and key in KEYS and key != "type":
            lines.append(f"; {KEYS[key][1]}")
        lines += [f"{name} = {values[name]}" for name in set_here]
    lines += ["", "; What else there is, with its default:"]
    for key, (default, meaning) in KEYS.items():
        if key not in (*_FIRST, *_IN_DEFAULT, *_OF_NODE) and not wish.has(key):
            setting = f";{key} = {default}" if default != "none" else f";{key} ="
            lines.append(f"{setting:<28}; {meaning}")
    return "\n".join((*lines, ""))


def _spread(wish: Wish, nodename: str) -> Values:
    """Return the values with a src and a dst for each node that can be the sender."""
    values, nodes = dict(wish.values), list(dict.fromkeys(_words(wish.values.get("nodes", ""))))
    me = next((node for node in nodes if same_node(node, nodename)), nodename)
    if nodes and me not in nodes:
        text = f"nodes = {' '.join(nodes)}: this node, {nodename}, is not among them"
        raise UsageError((f"{text}; add it, or say with --nodename which one it is",))
    src, dst = values.get("src"), values.get("dst") or None
    if src is None or ("nodes" in wish.targets and dst in (None, src)):
        return values  # one name on all nodes, or as it was said
    there = {f"dst@{me}": dst} if dst else {}
    there |= {f"src@{me}": src}
    if "nodes" in wish.targets and dst and len(nodes) == _PAIR:  # the way back is as plain
        other = next(node for node in nodes if node != me)
        there |= {f"src@{other}": dst, f"dst@{other}": src}
    return {**{k: v for k, v in values.items() if k not in ("src", "dst")}, **there}


def _read_back(args: argparse.Namespace, wish: Wish, text: str) -> tuple[str, SyncResource]:
    """Return the path of the file and what it means beside the others of its folder.

    It is read where no run finds it. Raises UsageError with all that is wrong.
    """
    name = f"{wish.service}{SUFFIXES[0]}"
    with tempfile.TemporaryDirectory() as folder:
        for file in Path(args.config_dir).glob("*"):
            if file.suffix in SUFFIXES:
                Path(folder, file.name).symlink_to(file.absolute())
        Path(folder, name).write_text(text, encoding="utf-8")
        names = (wish.service,)
        services, problems = load_services(folder, nodename=args.nodename, names=names)
    if problems:
        own = str(Path(folder, name))
        told = (one.text if one.file == own else str(one) for one in problems)
        raise UsageError(tuple(one.replace(folder, args.config_dir) for one in told))
    found = [one for service in services for one in service.resources if one.rid == wish.rid]
    if not found:
        raise UsageError((f"--rid {wish.rid}: not the name of a sync section; write sync#1",))
    path = str(Path(args.config_dir, name))
    return path, found[0]._replace(file=path)


def _write(path: Path, text: str) -> None:
    """Write a file that is not there yet; no run sees half of it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), 0o644)
        os.link(file.name, path)


# --- what comes next --------------------------------------------------------------------------


def _tell(
    args: argparse.Namespace, path: str, resource: SyncResource, folders: Sequence[str]
) -> None:
    """Say what is left to do on the nodes."""
    print(f"\nwritten: {path}")
    others = [one for one in trial.places([resource], {path: ""}, "", new=True) if one.ssh]
    if others:
        print("\nThe same file on the others:")
        for place in others:
            print(f"    {trial.copying(place, path)}")
    program = _program("zfs_sync_agent")
    user = pwd.getpwuid(os.getuid()).pw_name
    me = () if args.nodename == os.uname().nodename else ("--nodename", args.nodename)
    agent = quote((program, *folders, *me))
    print("\nA line for cron, in /etc/cron.d/zfs_sync_agent on each node that may send:")
    print(f"    {schedule(resource.sync_max_delay)} {user} {agent} syncupdate")
    print("\nA line for NRPE, in /etc/nagios/nrpe.d/zfs_sync.cfg on each node:")
    print(f"    command[check_zfs_sync]={quote((_program('check_zfs_sync'), *folders))}")
    print("\nThen, once by hand:")
    for rest in ("validate --deep", "-n syncupdate", "-v syncupdate"):
        print(f"    {agent} -s {resource.service} {rest}")


def schedule(sync_max_delay: int) -> str:
    """Return the times of cron(8): hourly, or so often that one run may fail before it is late.

    >>> schedule(1500 * 60), schedule(30 * 60)
    ('0 * * * *', '*/15 * * * *')
    """
    if sync_max_delay >= 2 * 60 * 60:
        return "0 * * * *"
    minutes = next((n for n in (30, 20, 15, 10, 5, 2) if 2 * n * 60 <= sync_max_delay), None)
    return f"*/{minutes} * * * *" if minutes else "* * * * *"


def _program(name: str) -> str:
    """Return the path of a program that was installed beside the one that runs."""
    beside = Path(sys.argv[0]).absolute().with_name(name)
    return str(beside) if beside.is_file() else f"/usr/local/bin/{name}"


def _key(name: str) -> str:
    return re.split(r"[@\[]", name)[0].strip().lower()


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()
