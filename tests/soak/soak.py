"""The cycles of a soak: work, one fault, ordinary runs, and the judgement after each run.

It decides what goes wrong and when, by a seeded choice; what is wrong is decided in judge. A fault
is always mended before the ordinary runs that follow it.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.e2e.kill_chain import KILLED, RECEIVING, WAYS, count_zfs, full_sends, switch
from tests.e2e.kill_forks import LONGEST_SECONDS, Server
from tests.e2e.kill_switch import AGENT, FAMILY, MARKER, RECEIVE
from tests.e2e.test_refusals import write_on_replica
from tests.e2e.test_targets import kill_ssh_sessions
from tests.e2e.world import MARK, STATE_DIR
from tests.lab import Lab, Node, Running
from tests.lab.host import REPOSITORY, Fault, When
from tests.lab.process import eventually

from . import inside
from .field import LASTING, POOL, ROOT, Field
from .judge import (
    FALSE_ALARMS,
    FULL_STREAMS,
    NOT_CONVERGED,
    SLACK_SECONDS,
    Said,
    Score,
    Wrong,
    judge_check,
    lag,
)

SOURCE_VERBS = ("snapshot", "send", "set", "destroy", "rename", "get", "list")
TARGET_VERBS = ("receive", "receive", "destroy", "rename", "get", "list")
LARGE = 8 << 20
ROOM = 1 << 20  # what is left in a pool that is nearly full
STATE_ROOM = "256k"
TAKEOVER = ("takeover",)
ENDINGS = (0, 1, *KILLED)  # of a run that was killed
TAKEOVER_VERBS = ("set", "get", "list", "inherit")
AROUND: tuple[When, ...] = ("before", "after")
FILL = f"{STATE_DIR}/fill"
FILLER = f"{POOL}/filler"
CLOCKS = (-3000, -40, -10, 10, 40, 3000)
SETTLE_SECONDS = 180
AGE_SECONDS = 4
TWO_CLOCKS_SECONDS = 4  # what is rounded away where two of them were compared
QUIET_RUNS = 4  # at the end: as many as it takes until what is gone on the source is gone there

DATE = """\
#!/bin/sh
exec /bin/date -d '{ahead} seconds' "$@"
"""


class Ended(NamedTuple):
    """One run of the agent."""

    code: int
    stderr: str


class Soak:
    """One soak on a lab of its own."""

    def __init__(self, lab: Lab, score: Score, defect: str, say: Callable[[str], None]) -> None:
        self.score, self.defect, self.say = score, defect, say
        self.field = Field(lab, score)
        self.world, self.random = self.field.world, self.field.random
        self.calm = True
        self.clock_moved_on = False
        self.broken: set[str] = set()
        self.healing: set[str] = set()
        self.deck: list[str] = []
        self.doing = ""  # the fault of this cycle, in its own words
        self.servers: dict[str, Server] = {}
        for node in self.world.nodes:
            node.run(["mount", "-t", "tmpfs", "-o", f"size={STATE_ROOM},mode=755", "x", STATE_DIR])
            if node is not self.field.home:
                node.zfs("create", "-o", "mountpoint=none", FILLER)
            self.servers[node.name] = Server(node, inside.__file__, defect)
            count_zfs(node)
        self.faults: dict[str, tuple[int, Callable[[], str]]] = {
            "kill at a command": (6, self.kill_at_command),
            "kill at a byte": (4, self.kill_at_byte),
            "target down": (4, self.target_down),
            "answer lost": (3, self.answer_lost),
            "state folder full": (2, self.state_full),
            "pool nearly full": (2, self.pool_full),
            "packets dropped": (2, self.packets_dropped),
            "clock moved": (2, self.clock_moved),
            "two runs at once": (2, self.two_at_once),
            "replica written": (1, self.replica_written),
            "chain broken": (2, self.chain_broken),
            "failover": (2, self.failover),
        }

    def close(self) -> None:
        """End what runs in the nodes; the lab ends the rest."""
        for server in self.servers.values():
            server.close()

    # --- the course of it -------------------------------------------------------------------------

    def first(self) -> None:
        """Synchronize for the first time."""
        self.ordinary()
        self.field.settle_in_replica()
        self.ordinary()

    def cycle(self) -> None:
        """Let one thing go wrong, and see it mended."""
        self.score.cycles += 1
        for node in self.world.nodes:
            node.syslog.clear()
        kind = self._draw()
        if self.random.random() < 1 / 3:
            self.field.take_foreign_snapshot()
        self.field.work()
        # As after cron's pause: what a target lacks is then older than what clocks round away.
        eventually("the last snapshot has some age", lambda: self._age() >= AGE_SECONDS, 60)
        self.say(f"cycle {self.score.cycles}: {kind}")
        self.score.faults[kind] += 1
        self.doing = ""
        self.say(f"  {self.faults[kind][1]()}")
        self.mend()
        self.ordinary()
        for _ in range(self.random.randrange(2)):
            self.field.work()
            self.ordinary()
        if not self.score.cycles % 8:
            self.field.judge_foreign(files=True)
        self.field.judge_source(whole=False)
        target = self.random.choice(self.world.targets)
        self.field.judge_replica(target, self.random.choice((*LASTING, *self.field.young)))

    def _draw(self) -> str:
        """Return the next kind of fault: all of them come before any comes too often."""
        if not self.deck:
            self.deck = [kind for kind, (weight, _) in self.faults.items() for _ in range(weight)]
            self.random.shuffle(self.deck)
        return self.deck.pop()

    def _age(self) -> float:
        sent = self.field.source_listing.datasets[""].snapshots.get("sent")
        return time.time() - sent.creation if sent else AGE_SECONDS

    def last(self) -> None:
        """Let some runs go undisturbed; then all that there is must be equal everywhere."""
        self.say("the end: undisturbed runs, and everything is compared")
        for _ in range(QUIET_RUNS):
            self.field.write()
            self.ordinary()
        for target in self.world.targets:
            extra = self.field.extra.get(target.name, [])
            try:
                self.world.assert_equal(target, extra=extra)
            except AssertionError as error:
                raise Wrong(NOT_CONVERGED, str(error)) from error
            self.field.judge_replica(target)
        self.field.judge_source(whole=True)
        self.field.judge_foreign(files=True)

    # --- runs -------------------------------------------------------------------------------------

    def ordinary(self) -> None:
        """Run with nothing in the way: it must succeed, and every check must say so."""
        ended = self.run()
        self.clock_moved_on = False
        if ended.code:
            kind = FALSE_ALARMS if ended.code == 3 else NOT_CONVERGED
            raise Wrong(kind, f"exit status {ended.code} of an ordinary run: {ended.stderr}")
        self.calm = True
        self.judge(whole=True)

    def run(self, *words: str) -> Ended:
        """Run the agent on the source, and count what it sends; without words: syncupdate."""
        self._before_run()
        source = self.servers[self.world.source.name]
        result = source.run("zfs_sync_agent", *(words or ("syncupdate",)))
        return self._ended(result.returncode, result.stderr)

    def start(self, *given: str) -> Running:
        """Start a run that will be disturbed; without words: syncupdate."""
        self._before_run()
        place = f"PYTHONPATH={REPOSITORY}"
        words = [inside.__file__, self.defect, "zfs_sync_agent", *(given or ("syncupdate",))]
        return self.world.source.popen(
            ["/usr/bin/env", place, sys.executable, *words],
            env={MARKER: "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def wait(self, running: Running) -> Ended:
        """Wait for a run that was started."""
        try:
            _, stderr = running.communicate(timeout=LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            running.kill_group()
            running.communicate()
            raise Wrong(NOT_CONVERGED, "a run did not come to an end") from None
        return self._ended(running.returncode, stderr)

    def _before_run(self) -> None:
        self.field.look()
        self.score.runs += 1
        for node in self.world.nodes:
            node.clear_calls()

    def _ended(self, code: int, stderr: str) -> Ended:
        if "Traceback" in stderr or "internal failure" in stderr:
            raise Wrong(FALSE_ALARMS, stderr)
        return Ended(code, stderr)

    def settle(self) -> None:
        """Wait until nothing of a run is left; take the faults away."""
        eventually(
            "all that a run left behind comes to its end",
            lambda: not any(self._strays(node) for node in self.world.nodes),
            SETTLE_SECONDS,
        )
        for node in self.world.nodes:
            # zfs-fuse keeps the holds of a send that was killed for ever; a kernel lets go.
            if node.holds():
                node.release_holds()

    def _strays(self, node: Node) -> set[int]:
        return node.strays() - self.servers[node.name].pids

    def mend(self) -> None:
        """Take away whatever was in the way."""
        for node in self.world.nodes:
            node.mend()
            node.start_ssh()
            node.run(["rm", "-f", FILL, inside.CLOCK])
            (node.root / "bin" / "date").unlink(missing_ok=True)
            count_zfs(node)
            if node is not self.field.home:
                node.zfs("set", "reservation=none", FILLER)

    # --- judgement --------------------------------------------------------------------------------

    def judge(self, *, whole: bool = False, asked: bool = False) -> None:
        """Judge what the last run sent, and then the check on every node.

        `whole`: nobody disturbed it. `asked`: a person asked for a full stream.
        """
        sent = full_sends(self.world.source, ROOT, list(self.field.source_listing.datasets))
        lacking = self.field.lacking()
        if asked:
            self.score.streams.asked += sum(sent.values())
        else:
            self.score.streams.judge(sent, lacking, whole=whole)
        for node in self.world.nodes:
            if node is not self.world.source and any(
                call[:1] == ["send"] for call in node.calls("zfs")
            ):
                raise Wrong(FULL_STREAMS, f"{node.name} sent something and is not the source")
        self.field.look()
        self.check()
        for node in self.world.nodes:
            if node.name in self.healing:
                self.field.follow_foreign(node)
        self.field.judge_foreign(files=False)

    def check(self) -> None:
        """Ask the check on every node, at the limit and just below the true lag."""
        here, world = self.field.source_listing, self.world
        for node in world.nodes:
            about = world.targets if node is world.source else [node]
            names = {one.name for one in about}
            broken = True if names & self.broken else None if names & self.healing else False
            for below in (False, True):
                now = time.time()
                oldest = max(lag(here, self.field.listings[one.name], now) for one in about)
                limit = oldest - (TWO_CLOCKS_SECONDS if self.clock_moved_on else SLACK_SECONDS)
                if below and limit <= 0:
                    continue
                words = ["-w", f"{limit}s"] if below else []
                said = self.servers[node.name].run("check_zfs_sync", *words)
                self.score.checks += 1
                text = said.stdout + said.stderr
                mine = Said(node.name, said.returncode, text, oldest, self.calm, broken)
                judge_check(mine, limit, 0) if below else judge_check(mine)

    # --- faults: kills ----------------------------------------------------------------------------

    def disturbed(
        self, doing: str, arm: Callable[[], Fault], *words: str, codes: Sequence[int]
    ) -> str:
        """Let a run meet a fault; return how it ended. A fault that came too late is counted."""
        self.doing, self.calm = doing, False
        fault = arm()
        ended = self.wait(self.start(*words))
        fired = fault.fired
        self.score.missed += not fired
        self.settle()
        self.expect(ended, *codes)
        if words != TAKEOVER:  # it sends nothing, and no state file speaks of it
            self.judge(asked="syncfull" in words)
        for node in self.world.nodes:
            count_zfs(node)
        return self._told(ended, fired)

    def _told(self, ended: Ended, fired: bool = True) -> str:
        return f"{self.doing}: exit status {ended.code}{'' if fired else ', too late'}"

    def kill_at_command(self) -> str:
        """Kill a run around a random command."""
        return self._kill(self.random.choice(self.world.targets), "syncupdate")

    def _kill(self, victim: Node, *words: str) -> str:
        """Kill a run of these words around a command, of the source or of this target."""
        alone = words == TAKEOVER
        way = self.random.choice((AGENT, FAMILY) if alone else WAYS)
        away = not alone and (way in RECEIVING or self.random.random() < 1 / 2)
        node = victim if away else self.world.source
        program, match = "zfs", [self.random.choice(TARGET_VERBS if away else SOURCE_VERBS)]
        if alone:
            match = [self.random.choice(TAKEOVER_VERBS)]
        elif self.random.random() < 1 / 5:
            program, match = "mv" if away else "ssh", []
        nth = self.random.choice((1, 1, 1, 2, 3)) if not {"snapshot", "receive"} & set(match) else 1
        when: When = "during" if program == "ssh" else self.random.choice(AROUND)

        def arm() -> Fault:
            node.wrap(program)
            return node.fault(program, match, shlex.join(switch(way, victim)), nth, when)

        command = " ".join((program, *match))
        what = f"{way} ({victim.short_name}) {when} `{command}` number {nth} on {node.short_name}"
        return self.disturbed(what, arm, *words, codes=ENDINGS)

    def kill_at_byte(self) -> str:
        """Kill amid a stream."""
        way = self.random.choice((*WAYS, RECEIVE))
        victim = self.random.choice(self.world.targets)
        source = self.world.source
        self.field.write(1_000_000)
        nth = self.random.randint(1, len(self.world.targets))
        at = self.random.randint(1, 1_000_000)

        def arm() -> Fault:
            source.wrap("zfs")
            do = shlex.join(switch(way, victim, "--bytes", str(at))) + ' "$0" "$@"'
            return source.fault("zfs", ["send"], do, nth, "instead")

        what = f"{way} ({victim.short_name}) at byte {at} of send {nth}"
        return self.disturbed(what, arm, codes=ENDINGS)

    # --- faults: the world around it --------------------------------------------------------------

    def target_down(self) -> str:
        """Let one or two targets be away for some runs; without ssh, or without a link."""
        away = self.random.sample(self.world.targets, self.random.choice((1, 1, 1, 2)))
        cut = self.random.random() < 1 / 3
        runs = self.random.randint(1, 3)
        how = "link cut" if cut else "ssh stopped"
        self.doing = f"{', '.join(one.short_name for one in away)}: {how} for {runs} runs"
        for target in away:
            target.cut() if cut else target.stop_ssh()
        for _ in range(runs):
            self.expect(self.run(), 1)
            self.settle()
            self.judge()
            self.field.work()
        return self.doing

    def expect(self, ended: Ended, *codes: int) -> None:
        """Object to any other exit status."""
        if ended.code not in codes:
            kind = FALSE_ALARMS if ended.code == 3 else NOT_CONVERGED
            raise Wrong(kind, f"exit status {ended.code}, not {codes}: {ended.stderr}")

    def answer_lost(self) -> str:
        """Let a command run on a target, and its answer never leave it."""
        target = self.random.choice(self.world.targets)
        verb = self.random.choice(("receive", "receive", "destroy", "rename"))

        def arm() -> Fault:
            target.wrap("zfs")
            return target.fault("zfs", [verb], kill_ssh_sessions(), when="after")

        return self.disturbed(f"after `zfs {verb}` on {target.short_name}", arm, codes=(0, 1))

    def state_full(self) -> str:
        """Leave no room for state files on a node."""
        node = self.random.choice(self.world.nodes)
        self.doing, self.calm = node.short_name, False
        fill = f"dd if=/dev/zero of={FILL} bs=4k 2>/dev/null; test -s {FILL}"
        node.run(["/bin/sh", "-c", fill])
        ended = self.run()
        self.settle()
        self.expect(ended, 0, 1)
        self.judge()
        return self._told(ended)

    def pool_full(self) -> str:
        """Leave less room on a target than a run needs."""
        target = self.random.choice([t for t in self.world.targets if t is not self.field.home])
        free = int(target.zfs("get", "-Hp", "-o", "value", "available", POOL))
        target.zfs("set", f"reservation={free - ROOM}", FILLER)
        self.field.write_large(LARGE)
        self.doing, self.calm = target.short_name, False
        ended = self.run()
        self.settle()
        self.expect(ended, 0, 1)
        self.judge()
        self.field.remove_large()
        return self._told(ended)

    def packets_dropped(self) -> str:
        """Lose all packets of a target amid a transfer, without a word to anyone."""
        target = self.random.choice(self.world.targets)
        self.field.write_large(LARGE)
        self.doing, self.calm = target.short_name, False
        target.wrap("zfs")
        gate = self.world.gate(target, "zfs", ["receive"])
        running = self.start()
        eventually("it receives", lambda: gate.fault.fired or running.poll() is not None, 60)
        target.drop()
        gate.open()
        ended = self.wait(running)
        target.undrop()
        self.settle()
        self.expect(ended, 0, 1)
        self.judge()
        self.field.remove_large()
        return self._told(ended, gate.fault.fired)

    def clock_moved(self) -> str:
        """Let the clock of a target be ahead, or behind."""
        target = self.random.choice(self.world.targets)
        ahead = self.random.choice(CLOCKS)
        file = target.root / "bin" / "date"
        file.write_text(DATE.format(ahead=ahead))
        file.chmod(0o755)
        target.path(inside.CLOCK).write_text(str(ahead))
        self.clock_moved_on = True
        self.doing, self.calm = f"{target.short_name}: {ahead:+} s", False
        for _ in range(self.random.randint(1, 2)):
            self.expect(self.run(), 0)
            self.judge(whole=True)
            self.field.work()
        return self.doing

    def two_at_once(self) -> str:
        """Start a run while another one transfers."""
        target = self.random.choice(self.world.targets)
        self.field.write()
        self.doing = f"the first one receives on {target.short_name}"
        target.wrap("zfs")
        gate = self.world.gate(target, "zfs", ["receive"])
        running = self.start()
        eventually("it receives", lambda: gate.fault.fired or running.poll() is not None, 60)
        second = self.servers[self.world.source.name].run("zfs_sync_agent", "syncupdate")
        self.score.runs += 1
        self.expect(Ended(second.returncode, second.stderr), 0)
        gate.open()
        self.expect(self.wait(running), 0)
        self.settle()
        self.judge()
        return self.doing

    def replica_written(self) -> str:
        """Let somebody take a replica for his own: the next run rolls it back."""
        target = self.random.choice([t for t in self.world.targets if not self._is_pair(t)])
        name = self.random.choice(LASTING)
        self.doing = f"{ROOT}{name} on {target.short_name}"
        write_on_replica(target, ROOT + name, b"taken for his own" * 1000)
        return self.doing

    def _is_pair(self, node: Node) -> bool:
        return node in (self.field.home, self.field.partner)

    # --- faults that need a person ----------------------------------------------------------------

    def chain_broken(self) -> str:
        """Break the chain to a target, or to all; see it refused; do what a person does."""
        world = self.world
        self.ordinary()
        how = self.random.choice(
            ("mark lost", "base lost on the target", "base lost on the source")
        )
        hurt = [self.random.choice(world.targets)]
        if how == "mark lost":
            hurt[0].zfs("inherit", MARK, ROOT)
        elif how == "base lost on the target":
            for name in self.field.source_listing.datasets:
                hurt[0].zfs("destroy", f"{ROOT}/{name}".rstrip("/") + "@sent")
        else:
            hurt = list(world.targets)
            world.source.zfs("destroy", "-r", f"{ROOT}@sent")
        self.doing = f"{how}: {', '.join(one.short_name for one in hurt)}"
        # A node that took over takes in what carries no mark, if there is nothing it never had.
        heals = how == "mark lost" and bool(self.score.faults["failover"])
        for _ in range(2):
            ended = self.run()
            if heals and not ended.code:
                self.judge(whole=True)
                return f"{self.doing}, healed by itself"
            self.expect(ended, 3)
            self.broken = {one.name for one in hurt}
            self.judge()
        for target in hurt:
            if how == "mark lost":
                self.resync(target)
            else:
                # Without any snapshot nothing shows that the datasets are the agent's own.
                self.send_anew(target, bare=how == "base lost on the target")
        return f"{how}: {', '.join(one.short_name for one in hurt)}, mended"

    def resync(self, target: Node) -> None:
        """Mend the chain to a target by syncresync, and throw away what that has kept."""
        self._asked(target, "syncresync")
        self.field.follow_foreign(target)
        self.judge()
        self.field.throw_away(target)

    def send_anew(self, target: Node, *, bare: bool) -> None:
        """Mend it by syncfull; what no consent covers is moved aside before."""
        aside = bare or self.field.has_foreign(target)
        if aside:
            self.field.move_aside(target)
        self._asked(target, "syncfull")
        if aside:
            self.field.throw_away(target)
        self.judge(asked=True)

    def _asked(self, target: Node, action: str) -> None:
        """Do what a person asks for a target; the chain to it is whole then."""
        self.broken.discard(target.name)
        self.healing.add(target.name)
        self._until_done(target, "--node", target.name, action)
        self.healing.discard(target.name)

    def _until_done(self, victim: Node, *words: str) -> None:
        """Let a person type a command, and again where it was cut."""
        if self.random.random() < 1 / 2:
            self.score.faults["command of a person killed"] += 1
            self.say(f"  {words[-1]} killed: {self._kill(victim, *words)}")
        self.expect(self.run(*words), 0)

    def failover(self) -> str:
        """Move the service to the other node of the pair, as planned; the next time back."""
        self.ordinary()
        self.field.stop_application()
        self.ordinary()
        self.field.hand_over()
        self._until_done(self.world.source, *TAKEOVER)
        self.field.start_application()
        self.field.write()
        self.ordinary()
        return f"to {self.world.source.short_name}"


def log_of(nodes: Sequence[Node]) -> list[str]:
    """Return what the agent said on all nodes since the cycle began."""
    return [f"{node.short_name}: {line}" for node in nodes for line in node.log()]
