"""Decides what is asked of every node before it is relied on, and what the answers mean.

It is pure: it never asks by itself. What it asks only reads, all of it in one connection to a node.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

from check_zfs_sync.service import SyncResource
from zfs_sync_agent import judge, zfs
from zfs_sync_agent.errors import NoAnswer
from zfs_sync_agent.model import MARK, Standing, parse_standing
from zfs_sync_agent.transport import Answer
from zfs_sync_agent.zfs import Argv

CLOCK_SLACK_SECONDS = 60  # the check's

_SUDO = ("sudo", "-n")
_NOT_FOUND = 127  # sh's status for a program that is not there
_VERBS = {"src": "send", "dst": "receive"}

# Prints the folder, or the first one above it that is there: a run makes what is missing.
_FOLDER = (
    'd=$1; while [ ! -e "$d" ]; do d=$(dirname "$d"); done; echo "$d";'
    ' [ -d "$d" ] && [ -w "$d" ] && [ -x "$d" ]'
)
# Prints the path of a service file, whichever suffix it has there, then its text.
_FILE = 'for f in "$1.conf" "$1.env"; do [ ! -e "$f" ] || { echo "$f"; exec cat "$f"; }; done'


class Item(NamedTuple):
    """One thing that was tried on a node; `advice`, what to type, is empty where it is right."""

    node: str
    what: str
    said: str
    advice: str = ""

    def __str__(self) -> str:
        """Return the item on one line."""
        if self.advice:
            return f"{self.node}: {self.what}: {self.said}; next: {self.advice}"
        return f"{self.node}: {self.what}: ok: {self.said}"


@dataclass(frozen=True)
class Errand:
    """What a sync resource needs of a node: its src on this one, its dst on another.

    `key` is src or dst, `options` the flags of send_options or receive_options.
    """

    label: str
    key: str
    dataset: str
    zfs: Argv
    sudo: bool
    options: Argv

    @property
    def words(self) -> Argv:
        """Return the words that run zfs there."""
        return (*(_SUDO if self.sudo else ()), *self.zfs)


@dataclass(frozen=True)
class Copy:
    """A service file as it is on this node; where it is not `needed` another may have none."""

    path: str
    text: str
    needed: bool


@dataclass
class Place:
    """A node with all that is asked of it; `ssh` is empty for this node."""

    node: str
    ssh: Argv
    state_dir: str
    errands: list[Errand] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)


class _Said(NamedTuple):
    """The answers about one errand, in the order of its questions."""

    found: Answer
    usage: Answer
    pool: Answer
    dataset: Answer
    marks: Answer


# --- what is asked ----------------------------------------------------------------------------


def places(
    resources: Sequence[SyncResource], texts: Mapping[str, str], state_dir: str, *, new: bool
) -> list[Place]:
    """Return the nodes that the resources need, this node first.

    `texts` has the text of every service file by its path. `new`: they are not on the other nodes
    yet.
    """
    found: dict[tuple[str, ...], Place] = {}
    for one in resources:
        here = found.setdefault((), Place(one.nodename, (), state_dir))
        if one.src is not None:
            here.errands.append(_errand(one, one.nodename, "src", one.src, one.send_options))
        for node, group in one.targets:
            there = here
            if group != "local":
                there = found.setdefault((node, *one.ssh), Place(node, one.ssh, state_dir))
                copy = Copy(one.file, texts[one.file], needed=node in one.sources and not new)
                if copy not in there.copies:
                    there.copies.append(copy)
            there.errands.append(_errand(one, node, "dst", one.dst or "", one.receive_options))
    return list(found.values())


def _errand(one: SyncResource, node: str, key: str, dataset: str, options: Argv) -> Errand:
    label = f"{one.service}/{one.rid}"
    words, sudo = one.zfs.get(node, ("zfs",)), one.sudo.get(node, False)
    return Errand(label, key, dataset, words, sudo, options)


def questions(place: Place) -> list[Argv]:
    """Return the commands whose answers `findings` takes; none of them changes anything."""
    return [
        ("true",),  # what a login shell says of itself is in the first answer
        ("date", "+%s"),
        ("id", "-un"),
        ("sh", "-c", _FOLDER, "sh", place.state_dir),
        *(("sh", "-c", _FILE, "sh", _stem(copy.path)) for copy in place.copies),
        *(argv for errand in place.errands for argv in _questions_about(errand)),
    ]


def _questions_about(errand: Errand) -> tuple[Argv, ...]:
    return (
        ("command", "-v", errand.zfs[0]),
        errand.words,
        (*errand.words, *zfs.list_pool_argv(errand.dataset)),
        (*errand.words, *zfs.list_datasets_argv(errand.dataset, recursive=False)),
        (*errand.words, *zfs.get_root_argv(errand.dataset)),
    )


# --- what the answers mean --------------------------------------------------------------------


def standing_by(place: Place, answers: Sequence[Answer]) -> frozenset[str]:
    """Return the resources, as <service>/<rid>, whose src on this node is itself their replica."""
    return frozenset(
        errand.label
        for errand, said in _by_errand(place, answers)
        if errand.key == "src" and _is_replica(errand, _standing(said))
    )


def findings(
    place: Place, answers: Sequence[Answer], epoch: float, standbys: frozenset[str]
) -> Iterator[Item]:
    """Yield every item of a node that answered.

    `epoch` is what this node's clock said then, `standbys` what `standing_by` returned for it.
    """
    _, clock, user, folder, *more = answers
    if place.ssh:
        yield Item(place.node, "ssh", f"as {_last(user.stdout)}")
        yield _clock(place, clock, epoch)
    yield _folder(place, folder, _last(user.stdout))
    for copy, answer in zip(place.copies, more, strict=False):
        yield _copy(place, copy, answer)
    told = set()
    for errand, said in _by_errand(place, answers):
        stands_by = errand.label in standbys
        for item in _about(place, errand, said, _last(user.stdout), stands_by=stands_by):
            if item not in told:  # two resources by one zfs
                told.add(item)
                yield item


def unreached(place: Place, error: NoAnswer) -> Item:
    """Return the one item of a node that did not answer."""
    said = _last(error.detail or error.what)
    fits = (advice for pattern, advice in _SSH_ADVICE if re.search(pattern, error.detail))
    if advice := next(fits, None):
        ssh, copy_id = (
            shlex.join((word, *place.ssh[1:])) for word in (place.ssh[0], "ssh-copy-id")
        )
        advice = advice.format(node=place.node, ssh=ssh, copy_id=copy_id)
    return Item(place.node, "ssh", said, advice or error.hint or "look at what it says")


# By the words of OpenSSH's client, the first that fits.
_SSH_ADVICE = (
    ("Could not resolve", "write its address into /etc/hosts, or a Host entry into ~/.ssh/config"),
    (
        "has changed",
        "if it was installed anew: ssh-keygen -R {node}; then {ssh} {node} true, and compare the"
        " fingerprint",
    ),
    (
        "Host key verification failed|host key is known",
        "{ssh} {node} true, and compare the fingerprint with that of ssh-keygen -lf"
        " /etc/ssh/ssh_host_ed25519_key.pub there",
    ),
    ("Permission denied", "{copy_id} {node}; without a key: ssh-keygen -t ed25519 before it"),
    (
        "Connection refused",
        "start sshd there, or write its port into the service file: ssh = ssh -p PORT",
    ),
    ("timed out|No route|unreachable", "ping {node}: is it up, and does a firewall let port 22?"),
)


def _by_errand(place: Place, answers: Sequence[Answer]) -> Iterator[tuple[Errand, _Said]]:
    count = len(_Said._fields)
    start = len(answers) - count * len(place.errands)
    for number, errand in enumerate(place.errands):
        first = start + count * number
        yield errand, _Said(*answers[first : first + count])


def _clock(place: Place, answer: Answer, epoch: float) -> Item:
    said = _last(answer.stdout)
    if not said.isdecimal():
        return Item(place.node, "clock", f"date +%s says {said}", _shown(place, "date +%s"))
    offset = round(int(said) - epoch)
    if abs(offset) <= CLOCK_SLACK_SECONDS:
        return Item(place.node, "clock", "as this node's")
    said = f"{abs(offset)} s {'behind' if offset < 0 else 'ahead of'} this node's"
    return Item(
        place.node, "clock", said, "date on both; set the wrong one, keep it by ntpd or chrony"
    )


def _folder(place: Place, answer: Answer, user: str) -> Item:
    what, there = f"state folder {place.state_dir}", _last(answer.stdout)
    if answer.status == 0:
        is_there = there == place.state_dir
        return Item(place.node, what, "writable" if is_there else f"can be made in {there}")
    advice = f"make it writable: ls -ld {shlex.quote(there)}; df {shlex.quote(there)}"
    return Item(place.node, what, f"{user} cannot write to {there}", advice)


def _copy(place: Place, copy: Copy, answer: Answer) -> Item:
    """Judge another node's service file by this node's."""
    path, _, text = answer.stdout.partition("\n")
    what = f"service file {path or copy.path}"
    if not path and copy.needed:
        return Item(place.node, what, "is not there", copying(place, copy.path))
    if not path:
        return Item(place.node, what, "none there, and none needed")
    shown = _shown(place, f"cat {shlex.quote(path)}")
    if answer.status != 0:
        return Item(place.node, what, _last(answer.stderr), f"make it readable: {shown}")
    if text == copy.text:
        return Item(place.node, what, "the same as here")
    pairs = zip_longest(text.split("\n"), copy.text.split("\n"))
    line = next(number for number, (one, other) in enumerate(pairs, 1) if one != other)
    said = f"differs from the one here, first in line {line}"
    return Item(place.node, what, said, f"{shown}; keep the right one on both nodes")


def copying(place: Place, path: str) -> str:
    """Return the command that brings a file of this node to another one, whatever its ssh is."""
    folder, name = shlex.quote(path.rpartition("/")[0] or "."), shlex.quote(path)
    return f"{_shown(place, f'mkdir -p {folder} && cat >{name}')} <{name}"


def _about(
    place: Place, errand: Errand, said: _Said, user: str, *, stands_by: bool
) -> Iterator[Item]:
    """Yield what is to be told of one resource; nothing can be said of it without zfs."""
    found = _zfs(place, errand, said, user)
    yield found
    if found.advice:
        return
    yield _dataset(place, errand, said, stands_by=stands_by)
    if errand.options:
        yield _options(place, errand, said)


def _zfs(place: Place, errand: Errand, said: _Said, user: str) -> Item:
    path = _last(said.found.stdout)
    if said.found.status != 0:
        advice = f"install ZFS there, or name its command: zfs@{place.node} = /path/to/zfs"
        return Item(place.node, "zfs", f"there is no program {errand.zfs[0]}", advice)
    usage, complaint = said.usage, _last(said.usage.stderr)
    if errand.sudo and (usage.status == _NOT_FOUND or complaint.startswith("sudo: ")):
        advice = f"visudo there: {user} ALL=(root) NOPASSWD: {path}"
        return Item(place.node, "zfs", complaint, advice)
    pool = zfs.list_pool_argv(errand.dataset)[-1]
    if said.pool.status != 0 and not zfs.is_absent(said.pool.stderr, pool):
        shown = shlex.join((*errand.words, *zfs.list_pool_argv(errand.dataset)))
        advice = _shown(place, shown) if place.ssh else shown
        return Item(place.node, "zfs", _last(said.pool.stderr), f"mend what it says, try: {advice}")
    return Item(place.node, "zfs", f"{path}, {'by sudo' if errand.sudo else f'as {user}'}")


def _dataset(place: Place, errand: Errand, said: _Said, *, stands_by: bool) -> Item:
    name, what = errand.dataset, f"{errand.label}: {errand.key} {errand.dataset}"
    pool = zfs.list_pool_argv(name)[-1]
    if said.pool.status != 0:
        advice = f"zpool import {pool} there, or write another {errand.key}"
        return Item(place.node, what, f"there is no pool {pool}", advice)
    if said.dataset.status == 0:
        told = _src if errand.key == "src" else _dst
        return Item(place.node, what, *told(errand, _standing(said), stands_by))
    if not zfs.is_absent(said.dataset.stderr, name):
        return Item(place.node, what, _last(said.dataset.stderr), "mend what it says")
    if errand.key == "dst":
        return Item(place.node, what, "not there yet; its pool is")
    advice = f"zfs create -p {shlex.quote(name)}; or, if another node is to send first, run"
    return Item(place.node, what, "does not exist", f"{advice} zfs_sync_agent syncupdate there")


def _src(errand: Errand, standing: Standing, _: bool) -> tuple[str, ...]:
    return ("a replica; this node stands by" if _is_replica(errand, standing) else "there",)


def _dst(errand: Errand, standing: Standing, stands_by: bool) -> tuple[str, ...]:
    """Return what is to be told of a dst that exists, and what to type where it is wrong."""
    if standing.repair or _is_replica(errand, standing):
        return ("the replica",)
    if standing.replica_of:
        return f"the replica of {standing.replica_of}", "write another dst"
    if stands_by or standing.source_since is not None:
        return ("the source",)
    advice = f"write another dst, or move it away: zfs rename {shlex.quote(errand.dataset)} NAME"
    return "exists, and is not a replica of this resource", advice


def _options(place: Place, errand: Errand, said: _Said) -> Item:
    verb = _VERBS[errand.key]
    what, given = f"{errand.label}: {verb}_options", " ".join(errand.options)
    can = zfs.parse_capabilities(said.usage.stderr + said.usage.stdout, "", errand.zfs)
    absent = judge.lacking(errand.options, can.send if verb == "send" else can.receive)
    if not absent:
        return Item(place.node, what, given)
    advice = f"take it out of the service file, or update ZFS there; zfs {verb} shows what it has"
    return Item(place.node, what, f"zfs {verb} does not have {' '.join(absent)}", advice)


def _standing(said: _Said) -> Standing:
    return parse_standing(zfs.parse_root(said.marks.stdout).get(MARK))


def _is_replica(errand: Errand, standing: Standing) -> bool:
    return (standing.replica_of or "").endswith(f"/{errand.label}")


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no answer"


def _shown(place: Place, command: str) -> str:
    return shlex.join((*place.ssh, place.node, command))


def _stem(path: str) -> str:
    return path.rpartition(".")[0]
