"""Runs the contenders through a work on real ZFS, and keeps what each run took.

Decides the order and what counts as done: in each round every contender has its turn, the first one
another each time; a tree of its own is changed, what waits to be written is written, and nothing is
left of the connections of the run before. At the end the snapshots of what changed must be on the
target, by guid, or the contender has failed. It never judges a figure.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tests.lab.errors import LabError

from .peers import CONNECTION, OURS, SEQUENCE, TOOLS, Contender
from .place import Place
from .works import RATE_MBIT, Work

# An emulated machine needs almost a second for a dataset, and a fifth of one for a megabyte.
FIRST_SECONDS, FIRST_SECONDS_EACH = 600, 4  # for a first synchronization, which is not measured
RUN_SECONDS, RUN_SECONDS_EACH = 300, 2

GROW = """
set -e
zfs list $SRC >/dev/null 2>&1 && exit
zfs create -p $SRC
for i in $(seq 2 $DATASETS); do zfs create $HOW $SRC/c$i; done
"""
# zfs-fuse hangs at its thousandth mount: of large trees only what is written to is mounted.
MANY_MOUNTS = 400
UNMOUNTED = "-o canmount=noauto"
# The last of them first, so that "one" is a leaf. What is written where nothing is mounted is in no
# stream.
CHANGE = """
set -e
for i in $(seq $DATASETS -1 $((DATASETS - CHANGED + 1))); do
    case $i in 1) place=/run/pools/$SRC ;; *) place=/run/pools/$SRC/c$i ;; esac
    mountpoint $place || zfs mount ${place#/run/pools/}
    head -c ${KIB}K /dev/urandom >$place/file
done
sync
"""
FOREIGN = 'for i in $(seq "$0"); do zfs snapshot -r $SRC@daily$i || exit; done'
NEWEST = "zfs get -rHp -o name,value guid"
DEVICE = "for d in /sys/class/net/e*; do d=${d##*/}; done;"
NO_LINK = f"{DEVICE} tc qdisc del dev $d root 2>/dev/null || :"
RATE = """ tc qdisc add dev $d root handle 1: htb && n=0
for a in $ADDRESSES; do
    n=$((n + 1))
    tc class add dev $d parent 1: classid 1:$n htb rate ${RATE}mbit burst 15k || exit
    tc filter add dev $d parent 1: protocol ip u32 match ip dst $a flowid 1:$n || exit
done"""

ACCOUNT = f"python3 -IS {TOOLS}/account.py"
# What a run started may end after it: here that of a connection, there what serves one.
# What is dead, and was not asked for its status, has ended.
ENDED_HERE = "while pgrep -r D,R,S -x ssh >/dev/null; do sleep 0.05; done"
ENDED_THERE = "while pgrep -r D,R,S -P $(cat /run/sshd.pid) >/dev/null; do sleep 0.05; done"


@dataclass
class Result:
    """What became of one contender at one work."""

    runs: list[dict[str, float]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)  # where the time of one run went
    failed: str = ""
    uncounted: str = ""  # why there are no counts; what was measured stands all the same


Results = dict[str, Result]


def say(text: str) -> None:
    """Tell whoever waits."""
    sys.stderr.write(f"bench: {text}\n")


class Turn:
    """One contender at one work."""

    def __init__(
        self, work: Work, who: Contender, source: Place, targets: Sequence[Place], tree: str
    ) -> None:
        self.work, self.who, self.source = work, who, source
        self.targets = targets[: work.targets]
        self.result = Result()
        self.take(tree)

    def take(self, tree: str) -> None:
        """Work on this tree from here on."""
        who, name = self.who, f"{self.who.name}-{tree}"
        self.src = f"tank/{who.name}/{tree}"
        self.dst = f"backup/{who.below.format(tree=name)}{who.name}/{tree}"
        self.env = {
            "SRC": self.src,
            "DST": self.dst,
            "POOL": "backup",
            "TREE": name,
            "T": self.targets[0].name,
            "TARGETS": " ".join(one.name for one in self.targets),
            "DATASETS": str(self.work.datasets),
            "HOW": UNMOUNTED if self.work.datasets > MANY_MOUNTS else "",
            "CHANGED": str(self.work.changed),
            "KIB": str(self.work.kib),
        }

    @property
    def over(self) -> bool:
        """Tell whether it is out."""
        return bool(self.result.failed)

    @property
    def run_seconds(self) -> float:
        """Return the seconds after which a run is given up."""
        written = self.work.changed * self.work.kib / 1000
        return RUN_SECONDS + RUN_SECONDS_EACH * (self.work.datasets + written)

    @property
    def spent(self) -> float:
        """Return the seconds that its runs took so far."""
        return sum(one["wall"] for one in self.result.runs)

    def sh(self, script: str, *words: str) -> str:
        """Run a script on the source that is not measured."""
        return self.source.sh(script, *words, env=self.env)

    def first(self) -> None:
        """Make its tree and bring it to the targets."""
        if self.who is CONNECTION:
            return
        self.sh(GROW)
        self.source.sh(CHANGE, env={**self.env, "KIB": "4"})  # the first stream is not measured
        for one in self.targets:
            one.sh(f"zfs list {self.dst} >/dev/null 2>&1 || zfs create -p ${{0%/*}}", self.dst)
        seconds = FIRST_SECONDS + FIRST_SECONDS_EACH * self.work.datasets
        self.probe(self.who.first or self.who.run, seconds)
        if self.work.foreign:
            self.sh(FOREIGN, str(self.work.foreign))

    def probe(self, script: str, seconds: float) -> dict[str, Any]:
        """Run a script on the source under probe.py."""
        call = f'exec python3 -IS {TOOLS}/probe.py {seconds} "$0"'
        said = self.source.sh(call, script, env=self.env, seconds=seconds + 60)
        found: dict[str, Any] = json.loads(said)
        for one in (self.source, *self.targets):
            one.forget_connections()
        if found["status"]:
            raise LabError(f"exit {found['status']}: {found['said']}")
        return found

    def run(self) -> None:
        """Measure one run; where trips are counted, right after one without the link."""
        near = {}
        if self.work.trips:
            self.source.sh(NO_LINK)
            near["near"] = self._one()["wall"]
            set_link(self.work, self.source, self.targets)
        self.result.runs.append({**self._one(), **near})

    def _one(self) -> dict[str, float]:
        """Change the tree, run once, and return what it took."""
        self.ready()
        found = self.probe(self.who.run, self.run_seconds)
        self.sh(self.who.after or ":")
        return {key: found[key] for key in ("wall", "cpu", "memory")}

    def ready(self) -> None:
        """Do what comes before a run and is not measured."""
        if self.work.changed and self.who is not CONNECTION:
            self.sh(CHANGE)
        self.sh(self.who.before or ":")

    def count(self) -> None:
        """Count the processes of one run on both sides, and its connections."""
        (target,) = self.targets
        nothing = self._started(":")
        self.ready()
        before = target.connections()
        started = self._started(self.who.run)
        self.result.counts = dict(started - nothing)
        self.result.counts["connections"] = target.connections() - before
        self.sh(self.who.after or ":")

    def divide(self) -> None:
        """Ask one run of the agent where its time goes."""
        self.ready()
        said = self.probe(self.who.parts, self.run_seconds)["said"]
        self.result.parts = json.loads(said.splitlines()[-1])
        self.sh(self.who.after or ":")

    def _started(self, script: str) -> Counter[str]:
        """Run a script and return what was started on both sides, by account.py's names.

        The shell that the script is run by counts as well, and what asks for the count.
        """
        (target,) = self.targets
        places = (self.source, target)
        for place in places:
            place.sh(f"{ACCOUNT} on")
        self.probe(script, self.run_seconds)
        self.source.sh(ENDED_HERE, seconds=60)
        target.sh(ENDED_THERE, seconds=60)
        counts = Counter[str]()
        for place in places:
            counts.update(json.loads(place.sh(f"{ACCOUNT} off")))
        return counts

    def verify(self) -> None:
        """Fail unless the targets hold the newest snapshot of all that changed."""
        if self.who is CONNECTION:
            return
        newest = _guids(self.sh(f"{NEWEST} {self.src}"))
        first = self.work.datasets - self.work.changed + 1
        numbers = range(first, self.work.datasets + 1)
        for name in (self.src if n == 1 else f"{self.src}/c{n}" for n in numbers):
            for target in self.targets:
                there = set(_all_guids(target.sh(f"{NEWEST} {self.dst}")))
                if newest.get(name, "none") not in there:
                    raise LabError(f"exit 0, yet {target.name} lacks the newest snapshot of {name}")

    def clean(self) -> None:
        """Remove the tree from both sides."""
        self.sh("zfs destroy -r $SRC; rm -rf /run/conf/$TREE")
        for one in self.targets:
            one.sh(f"zfs destroy -r {self.dst}; rm -f /var/lib/zfs_sync/*$TREE*", env=self.env)
        self.sh("rm -f /var/lib/zfs_sync/*$TREE*")

    def attempt(self, *steps: str) -> None:
        """Do steps; what goes wrong is the contender's failure, with its words."""
        for step in steps:
            if self.over:
                return
            try:
                getattr(self, step)()
            except LabError as error:
                self.result.failed = _last_words(str(error))
                say(f"{self.work.name}: {self.who.name} failed: {self.result.failed}")

    def try_to_count(self) -> None:
        """Count; what was measured stands without it."""
        try:
            if not self.over:
                self.count()
        except LabError as error:
            self.result.uncounted = _last_words(str(error))
            say(f"{self.work.name}: {self.who.name} was not counted: {self.result.uncounted}")


class Bench:
    """All that is measured on one source and its targets; first synchronizations are kept."""

    def __init__(self, source: Place, targets: Sequence[Place], rounds: int, budget: float) -> None:
        self.source, self.targets = source, targets
        self.rounds, self.budget = rounds, budget
        self._there: dict[tuple[str, str], str] = {}

    def measure(self, work: Work, contenders: Sequence[Contender]) -> Results:
        """Let all contenders do one work, in turns."""
        turns = [
            Turn(work, who, self.source, self.targets, work.family)
            for who in _fitting(work, contenders)
        ]
        if not work.fresh:
            for turn in turns:
                self._first(turn)
        try:
            set_link(work, self.source, self.targets)
            self._rounds(work, turns)
        except LabError as error:  # no kernel has every kind of link
            for turn in turns:
                turn.result.failed = turn.result.failed or _last_words(str(error))
        finally:
            self.source.sh(NO_LINK)
        for turn in turns:
            if not work.fresh:
                turn.attempt("verify")
            if turn.result.runs:
                time = median(one["wall"] for one in turn.result.runs)
                say(f"{work.name}: {turn.who.name}: {time:.2f} s, n {len(turn.result.runs)}")
        return {turn.who.name: turn.result for turn in turns}

    def _rounds(self, work: Work, turns: Sequence[Turn]) -> None:
        for number in range(self.rounds):
            shift = number % len(turns)
            for turn in (*turns[shift:], *turns[:shift]):
                if turn.spent < self.budget:
                    if (
                        work.fresh
                    ):  # zfs-fuse unmounts by path, and late: a new one of that name too
                        turn.take(f"{work.family}{number}")
                    turn.attempt(*(("first", "run", "verify", "clean") if work.fresh else ("run",)))
        if work.counted:
            for turn in turns:
                turn.try_to_count()
                turn.attempt(*(["divide"] if turn.who.parts else []))

    def _first(self, turn: Turn) -> None:
        key = (turn.who.name, turn.work.family)
        if key not in self._there:
            say(f"{turn.work.family}: {turn.who.name} synchronizes for the first time")
            turn.attempt("first")
            self._there[key] = turn.result.failed
        turn.result.failed = self._there[key]


def set_link(work: Work, source: Place, targets: Sequence[Place]) -> None:
    """Make the link what a work wants, if it wants anything."""
    if work.link == "rate":
        addresses = " ".join(one.node.address for one in targets)
        source.sh(DEVICE + RATE, env={"ADDRESSES": addresses, "RATE": str(RATE_MBIT)})
    elif work.link:
        source.sh(f"{DEVICE} tc qdisc add dev $d root {work.link}")


def _fitting(work: Work, contenders: Sequence[Contender]) -> list[Contender]:
    """Return who can do a work, and who is of interest there."""
    if work.trips:
        return [*(one for one in contenders if one in (SEQUENCE, OURS)), CONNECTION]
    fitting = [one for one in contenders if one.many or work.targets == 1]
    return [*fitting, CONNECTION] if work.kind in {"one", "delay"} else fitting


def _all_guids(said: str) -> Sequence[str]:
    return [line.split("\t")[1] for line in said.splitlines() if "@" in line]


def _guids(said: str) -> Mapping[str, str]:
    """Return the guid of each dataset's newest snapshot: zfs lists them by age."""
    pairs = (line.split("\t") for line in said.splitlines())
    return {name.partition("@")[0]: guid for name, guid in pairs if "@" in name}


def _last_words(text: str) -> str:
    """Return what a failure said, without what led to it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-400:]
