"""A chain of runs that are killed, and what must be true after each.

One case: a run is killed at one point, one run cannot reach the victim's target, then runs can.
At every stage the check is asked on every node, and where it says OK its state file is compared
with the test's own listing. A violation is noted and ends the case, not the test: the next case
then begins on nodes that are as good as new.
"""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e import kill_switch
from tests.e2e.kill_forks import Server
from tests.e2e.kill_ledger import ROOT, Ledger, Listing
from tests.e2e.kill_switch import AGENT, FAMILY, MARKER, RECEIVE, RECEIVER
from tests.e2e.world import CONFIG_DIR, OK, STATE_DIR, World
from tests.lab import LabError, Node
from tests.lab.host import Fault, When
from tests.lab.node import IMAGES
from tests.lab.process import eventually

RECEIVING = {RECEIVER, RECEIVE}
WAYS = (AGENT, FAMILY, RECEIVER)
CHANGING = {
    *("snapshot", "send", "receive", "set", "inherit", "rename", "destroy", "rollback", "create"),
}
KILLED = {-signal.SIGKILL, 128 + signal.SIGKILL}
AMID = "/run/node/log/amid"  # what was done amid a transfer
MOST_RUNS = 3  # that reach every target, until nothing of an interruption is left

# A wrapper that only counts: the lab's own costs a Python start per command.
COUNTER = """\
#!/bin/sh
printf '%s\\n' "$*" >>/run/node/calls/zfs.counted
exec {zfs} "$@"
"""


class Violation(AssertionError):
    """What must never be; it ends the case."""


@dataclass(frozen=True)
class Point:
    """The moment of a kill: before, during or after the n-th such command on a node."""

    node: Node
    program: str
    match: tuple[str, ...]
    nth: int
    when: When

    def __str__(self) -> str:
        words = " ".join((self.program, *self.match))
        return f"{self.when} `{words}` number {self.nth} on {self.node.short_name}"


def kill_points(world: World, way: str, everything: bool) -> tuple[list[Point], list[Point]]:
    """Return the points of a run that was watched: those around changes, those around readings.

    Without `everything` a kill before a command is left out where the command then runs all the
    same, as an orphan: that is a kill after it.
    """
    changing: list[Point] = []
    reading: list[Point] = []
    for node in world.nodes:
        prevented = way == (FAMILY if node is world.source else RECEIVER)
        moments: tuple[When, ...] = ("before", "after") if prevented or everything else ("after",)
        count = Counter[str]()
        for call in node.calls("zfs"):
            verb = call[0] if call else ""
            count[verb] += 1
            match = (verb,) if verb else ()
            if verb in CHANGING:
                changing += [Point(node, "zfs", match, count[verb], when) for when in moments]
            elif verb:
                reading.append(Point(node, "zfs", match, count[verb], "after"))
        for nth, _ in enumerate(node.calls("mv"), 1):
            changing += [Point(node, "mv", (), nth, when) for when in moments]
        for nth, _ in enumerate(node.calls("ssh"), 1):
            # Where ssh has not begun or has ended there is no receiving side to kill.
            around: tuple[When, ...] = ("during",) if way == RECEIVER else (*moments, "during")
            changing += [Point(node, "ssh", (), nth, when) for when in around]
    return changing, reading


@dataclass
class Chain:
    """The cases of one test on one world, and what they found."""

    world: World
    incremental: bool
    seed: int
    size: int = 100_000  # bytes that each dataset of a change gets
    way: str = ""
    points: int = 0
    struck: int = 0
    runs: int = 0
    amid: Counter[str] = field(default_factory=Counter)
    until_clean: Counter[int] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)  # noqa: S311 - a test's choice, not a secret
        file = self.world.source.path(f"{CONFIG_DIR}/{self.world.service}.conf")
        self.text = file.read_text()
        self.label = ""
        self.stale = True  # the nodes have to be made new before the next case
        self.broken = True  # and nothing that runs on them may live on
        self.ways: set[str] = set()
        self.servers: dict[str, Server] = {}

    # --- the world ------------------------------------------------------------------------------

    def fresh(self) -> None:
        """Begin anew: new nodes, a tree, and for an incremental chain a first synchronization."""
        world = self.world
        with ThreadPoolExecutor(len(world.nodes)) as pool:
            list(pool.map(self._renew, world.nodes))
        world.configure(self.text)
        self.ledger = Ledger()
        self.serial = 0
        self.old_names: dict[str, str] = {}
        self.young: list[str] = ["young"]
        self.moving = "moving"
        self.listings: dict[str, Listing] = {}
        unmounted = (self.moving, *self.young)
        for relative in ("", "/a", "/a/x", "/b", *(f"/{child}" for child in unmounted)):
            world.source.zfs("create", f"{world.src}{relative}")
            self._write(f"{world.src}{relative}")
        for child in unmounted:
            self._unmount(child)
        self.stale = self.broken = False
        if self.incremental:
            self._ordinary_run()
            if self._has_foreign:
                last = world.targets[-1]
                last.zfs("create", f"{world.dst}/foreign")
                last.zfs("snapshot", f"{world.dst}/foreign@sent")
                self.foreign_guids = last.guids(f"{world.dst}/foreign")
            self.change()
            self._ordinary_run()
            self._ordinary_run()

    def _renew(self, node: Node) -> None:
        """Make a node as good as new; as long as all went well its server may live on."""
        if self.broken or node.name not in self.servers:
            node.reset()
            if old := self.servers.pop(node.name, None):
                old.close()
            self.servers[node.name] = Server(node)
        else:
            for name, pool in node.pools.items():
                node.zpool("destroy", "-f", name)
                mountpoint = f"/run/pools/{name}" if pool.mount else "none"
                node.zpool("create", "-f", "-m", mountpoint, name, f"{IMAGES}/{name}")
            for file in node.path(STATE_DIR).iterdir():
                file.unlink()
            node.syslog.clear()
        count_zfs(node)

    def close(self) -> None:
        """End the servers."""
        for server in self.servers.values():
            server.close()

    def prepare(self) -> None:
        """Make ready for a run that will be killed."""
        if self.stale or not self.incremental:
            self.fresh()
        if self.incremental:
            self.change()
        self._look()

    def change(self) -> None:
        """Change data everywhere; rename, create and destroy children.

        With one target, one of the destroyed ones was seen to be gone by a run before: the run
        that is killed will destroy it there.
        """
        world, src = self.world, self.world.src
        self.serial += 1
        if self.young and len(world.targets) == 1:
            self._destroy(self.young.pop(0))
            self._ordinary_run()
        while self.young:
            self._destroy(self.young.pop(0))
        for relative in ("", "/a", "/a/x", "/b"):
            self._write(f"{src}{relative}")
        world.source.zfs("mount", f"{src}/{self.moving}")
        self._write(f"{src}/{self.moving}")
        self._unmount(self.moving)
        name = f"moved{self.serial}"
        world.source.zfs("rename", f"{src}/{self.moving}", f"{src}/{name}")
        self.moving = name
        for letter in "yz":
            young = f"{letter}{self.serial}"
            world.source.zfs("create", f"{src}/{young}")
            self._write(f"{src}/{young}")
            self._unmount(young)
            self.young.append(young)

    def _amid(self, verb: str, *words: str) -> str:
        """Return a shell command of the source that tells whether it was done.

        What is being sent may be busy: then it is not.
        """
        zfs = self.world.source.program("zfs")
        return f"{zfs} {verb} {shlex.join(words)} && echo {verb} >>{AMID};"

    def _note_amid(self) -> None:
        """Learn which of the changes amid a transfer were done."""
        file = self.world.source.inside(AMID)
        done = file.read_text().split() if file.exists() else []
        file.unlink(missing_ok=True)
        self.amid.update(done)
        if "rename" in done:
            self.moving = f"fled{self.serial}"
        if "destroy" in done:
            self.young.pop()
        if "create" in done:
            self.young.append(f"late{self.serial}")

    def _write(self, dataset: str) -> None:
        self.world.source.write(dataset, "file", self.random.randbytes(self.size))

    def _unmount(self, child: str) -> None:
        # A mounted dataset cannot be renamed or destroyed reliably: zfs-fuse lets go of it late.
        self.world.source.zfs("unmount", f"{self.world.src}/{child}")

    def _destroy(self, child: str) -> None:
        if child in Listing.of(self.world.source, self.world.src).datasets:
            self.world.source.zfs("destroy", "-r", f"{self.world.src}/{child}")

    # --- runs -----------------------------------------------------------------------------------

    def watched_run(self) -> None:
        """Let a run go through with a wrapper on every program, for its kill points."""
        self.prepare()
        for node in self.world.nodes:
            node.wrap("zfs", "ssh", "mv")
            node.clear_calls()
        self.world.agent("syncupdate")
        self.stale = True

    def _ordinary_run(self) -> None:
        """Run without any disturbance."""
        code, stderr = self._run()
        assert code == 0, f"a run without any disturbance: exit status {code}: {stderr}"
        self._look()

    def _run(self) -> tuple[int, str]:
        self.runs += 1
        for node in self.world.nodes:
            node.clear_calls()
        result = self.servers[self.world.source.name].run("zfs_sync_agent", "syncupdate")
        self._let_go()
        return result.returncode, result.stderr

    def _look(self) -> None:
        world = self.world
        self.listings = {world.source.name: Listing.of(world.source, world.src)}
        for target in world.targets:
            self.listings[target.name] = Listing.of(target, world.dst)
        self.ledger.note(self.listings[world.source.name], self.old_names)

    # --- one case -------------------------------------------------------------------------------

    def case(
        self, label: str, way: str, victim: Node, node: Node, arm: Callable[[], Fault]
    ) -> None:
        """Kill one run by the fault that `arm` arms on `node`, then see it mended."""
        self.points += 1
        self.way = way
        self.ways.add(way)
        self.label = f"kill point {self.points}, {way} ({victim.short_name}): {label}"
        print(self.label, flush=True)  # noqa: T201 - which it was, if a case hangs
        before = len(self.violations)
        try:
            self.prepare()
            self._killed_run(arm, node)
            self._unreachable_run(victim)
            self._recover()
        except (LabError, AssertionError) as error:
            log = "\n    ".join(self.world.source.log()[-int(os.environ.get("KILL_LOG", "30")) :])
            self.violations.append(f"{self.label}: {error}")
            print(f"VIOLATION {self.label}: {error}\n    {log}", flush=True)  # noqa: T201
        self.broken = len(self.violations) > before
        self.stale = self.broken or not self.incremental

    def arm(self, point: Point, victim: Node, way: str) -> Fault:
        """Arm the fault of a kill point."""
        if point.program == "zfs":
            point.node.wrap("zfs")
        do = shlex.join(switch(way, victim))
        return point.node.fault(point.program, point.match, do=do, nth=point.nth, when=point.when)

    def arm_bytes(self, size: int, victim: Node, way: str, nth: int) -> Fault:
        """Arm a fault that strikes after so many bytes of the n-th send, amid changes.

        A child is destroyed between the snapshot and the send (what is being sent cannot be), one
        is renamed and one created half-way.
        """
        source, src = self.world.source, self.world.src
        source.wrap("zfs")
        fled = f"fled{self.serial}"
        self.old_names = {fled: self.moving}
        first = self._amid("destroy", "-r", f"{src}/{self.young[-1]}")
        half_way = self._amid("rename", f"{src}/{self.moving}", f"{src}/{fled}")
        half_way += self._amid("create", "-o", "canmount=noauto", f"{src}/late{self.serial}")
        options = ("--bytes", str(size), "--first", first, "--half-way", half_way)
        do = shlex.join(switch(way, victim, *options)) + ' "$0" "$@"'
        return source.fault("zfs", ["send"], do, nth, "instead")

    def _killed_run(self, arm: Callable[[], Fault], node: Node) -> None:
        world, source = self.world, self.world.source
        for one in world.nodes:
            one.clear_calls()
        fault = arm()
        self.runs += 1
        running = source.popen(
            source.python("zfs_sync_agent", "syncupdate"),
            env={MARKER: "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            _, stderr = running.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            running.kill_group()
            running.communicate()
            raise Violation("the run did not come to an end") from None
        if "Traceback" in stderr or "internal failure" in stderr:
            raise Violation(f"the run told {stderr}")
        fired = fault.fired
        self._note_amid()
        sends = self._full_sends(source)
        count_zfs(node)
        if not fired:
            raise Violation("the fault did not fire: the run is not the one that was watched")
        struck = self.way in RECEIVING or running.returncode in KILLED
        self.struck += struck
        if not struck:
            print(f"not struck: exit status {running.returncode} {stderr}")  # noqa: T201
        eventually(
            "all that the killed run left behind comes to its end",
            lambda: not any(self._strays(one) for one in world.nodes),
            30,
        )
        self._let_go()
        for name, count in sends.items():
            if not self._lacking(name):
                raise Violation(f"{name} was sent in full {count} times and no target lacked it")
        self.audit("after the kill")

    def _let_go(self) -> None:
        """Release what zfs-fuse holds for sends that have ended; a kernel lets go by itself.

        There it keeps the holds of a `send -R` that was killed, and now and then, after a kill,
        those of the sends of the same dataset that come after it.
        """
        if self.world.source.holds():
            self.amid["held"] += 1
            self.world.source.release_holds()

    def _strays(self, node: Node) -> set[int]:
        return node.strays() - self.servers[node.name].pids

    def _unreachable_run(self, victim: Node) -> None:
        victim.stop_ssh()
        try:
            code, stderr = self._run()
        finally:
            victim.start_ssh()
        if code != 1:
            raise Violation(f"exit status {code}, not 1, with {victim.name} unreachable: {stderr}")
        self.judge_sends([one for one in self.world.targets if one is not victim])
        self.audit(f"after a run without {victim.short_name}")

    def _recover(self) -> None:
        for number in range(1, MOST_RUNS + 1):
            code, stderr = self._run()
            if code != 0:
                raise Violation(f"exit status {code} of run {number} that reached all: {stderr}")
            self.judge_sends(self.world.targets)
            self.audit(f"after run {number} that reached all", expect_ok=True)
            if not (dirt := self._dirt()):
                self.until_clean[number] += 1
                break
        else:
            held = {one.name: holds for one in self.world.nodes if (holds := one.holds())}
            raise Violation("\n".join([f"not as it should be in the end, holds {held}:", *dirt]))
        if not dirt and self.random.random() < 1 / 8:
            for target in self.world.targets:
                last = target is self.world.targets[-1]
                extra = ["/foreign"] if self._has_foreign and last else []
                self.world.assert_equal(target, extra=extra)

    # --- judgement ------------------------------------------------------------------------------

    @property
    def _has_foreign(self) -> bool:
        """The last of several targets has a dataset in dst that the agent did not send."""
        return len(self.world.targets) > 1 and self.incremental

    def _full_sends(self, node: Node) -> Counter[str]:
        here = self.listings[self.world.source.name]
        return full_sends(node, self.world.src, list(here.datasets))

    def _lacking(self, name: str, targets: Sequence[Node] = ()) -> list[Node]:
        """Return the targets that held no snapshot of a source dataset before this run."""
        dataset = self.listings[self.world.source.name].datasets.get(name)
        if dataset is None:  # created or renamed meanwhile
            return list(self.world.targets)
        return [
            target
            for target in targets or self.world.targets
            if dataset.guid not in self.ledger.held(self.listings[target.name])
        ]

    def judge_sends(self, reachable: Sequence[Node]) -> None:
        """Object to full streams of what the reachable targets already held before this run."""
        for name, count in self._full_sends(self.world.source).items():
            lacking = self._lacking(name, reachable) if reachable else []
            if count > len(lacking):
                raise Violation(
                    f"{name or 'the root'} was sent in full {count} times,"
                    f" {len(lacking)} targets lacked it"
                )

    def audit(self, stage: str, *, expect_ok: bool = False) -> None:
        """List all nodes; compare every OK of the check with what is there."""
        self._look()
        world = self.world
        here = self.listings[world.source.name]
        for node in world.nodes:
            checked = self.servers[node.name].run("check_zfs_sync")
            if checked.returncode != OK:
                if expect_ok:
                    raise Violation(f"{stage} the check on {node.name} says {checked.stdout}")
                continue
            entries = world.state(node)["targets"]
            for target in world.targets if node is world.source else [node]:
                if target.name not in entries:
                    raise Violation(f"{stage} {node.name} says OK and knows no {target.name}")
                if lie := self.ledger.lie(entries[target.name], here, self.listings[target.name]):
                    raise Violation(
                        f"{stage} the check on {node.name} says OK of {target.name}: {lie}"
                    )

    def _dirt(self) -> list[str]:
        """Return what of the last look is not as after a run that was never disturbed."""
        world = self.world
        here = self.listings[world.source.name]
        found = []
        for node in world.nodes:
            there = dict(self.listings[node.name].datasets)
            if self._has_foreign and node is world.targets[-1]:
                foreign = there.pop("foreign", None)
                if foreign is None or node.guids(f"{world.dst}/foreign") != self.foreign_guids:
                    found.append(f"{node.name}: foreign is {foreign}, not {self.foreign_guids}")
            if set(there) != set(here.datasets):
                found.append(f"{node.name} has {sorted(there)}, not {sorted(here.datasets)}")
            for name, one in there.items():
                label = f"{node.name} {name or 'root'}"
                twin = here.datasets.get(name)
                if set(one.snapshots) != {"sent"}:
                    found.append(f"{label}: {sorted(one.snapshots)}")
                elif twin and twin.snapshots.get("sent", one.snapshots["sent"])[0] != (
                    one.snapshots["sent"].guid
                ):
                    found.append(f"{label}: another @sent than the source's")
                if one.retained:
                    found.append(f"{label}: retained {one.retained}")
        return found

    def summary(self) -> str:
        """Return the one line that tells what was done."""
        who = ", ".join(sorted(self.ways))
        kind = "incremental" if self.incremental else "full"
        amid = "".join(f", {n} {verb}" for verb, n in sorted(self.amid.items()))
        clean = ", ".join(f"{n} after {k}" for k, n in sorted(self.until_clean.items()))
        return (
            f"kill {who}: {kind}, {len(self.world.targets)} target(s), seed {self.seed}:"
            f" {self.points} kill points ({self.struck} struck{amid}),"
            f" {self.runs} runs (clean: {clean}), {len(self.violations)} violations"
        )


def count_zfs(node: Node) -> None:
    """Take all wrappers of a node away but one that counts zfs."""
    node.clear_faults()
    for program in ("ssh", "mv"):
        (node.root / "bin" / program).unlink(missing_ok=True)
    file = node.root / "bin" / "zfs"
    file.write_text(COUNTER.format(zfs=node.program("zfs")))
    file.chmod(0o755)


def full_sends(node: Node, src: str, everything: Sequence[str]) -> Counter[str]:
    """Return relative dataset name -> how often its data was sent without a base.

    Both wrappers count, the lab's and that of `count_zfs`. `everything`: all names of src's tree.
    """
    calls = node.calls("zfs")
    counted = node.root / "calls" / "zfs.counted"
    if counted.exists():
        calls += [line.split(" ") for line in counted.read_text().splitlines()]
    found = Counter[str]()
    for call in calls:
        if call[:1] != ["send"] or len(call) == 1 or {"-i", "-I"} & set(call):
            continue
        relative = call[-1].partition("@")[0][len(src) :].lstrip("/")
        found.update(everything if "-R" in call and relative == ROOT else [relative])
    return found


def switch(way: str, victim: Node, *options: str) -> list[str]:
    """Return the command that kills; `victim` is the node whose receiving side is meant."""
    sshd = victim.inside("/run/sshd.pid").read_text().strip()
    python = str(Path(sys.executable).resolve())
    return [python, "-IS", str(Path(kill_switch.__file__).resolve()), *options, way, sshd]


def seed() -> int:
    """Return the seed of all random choices; KILL_SEED repeats another run's."""
    return int(os.environ.get("KILL_SEED", "20100619"))
