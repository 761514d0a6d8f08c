"""What an end-to-end test says and asks: one service on lab nodes, and their real ZFS.

Everything asserted here is read by the test's own commands: `zfs get` on both sides, the files in a
clone of a snapshot, the state file's text, and the execs that the lab's wrappers saw. Nothing here
believes the log of the agent. Decides no test case, and never repairs anything.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.lab import Node, Running
from tests.lab.host import Fault
from tests.lab.process import PATIENCE, eventually

SERVICE = "z3.opensvc.com"
RID = "sync#1"
CONFIG_DIR = "/etc/zfs_sync"
STATE_DIR = "/var/lib/zfs_sync"
GATE = "/run/zfs_sync/gate"

MARK = "zfs_sync:replica"
RETAINED = "zfs_sync:retained"

OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3


class Checked(NamedTuple):
    """What the check said."""

    code: int
    stdout: str


class Property(NamedTuple):
    """A property of a dataset or snapshot; `source` is `local`, `received`, ... or `-`."""

    value: str
    source: str


@dataclass(frozen=True)
class Gate:
    """A command that waits on a node until the test opens the gate."""

    node: Node
    fault: Fault

    def wait_until_reached(self) -> None:
        """Return when the command is there and waits."""
        self.fault.wait()

    def open(self) -> None:
        """Let it go on."""
        self.node.path(GATE).touch()


class World:
    """One service on a source and its targets.

    `src` and `dst` are those of the resource `rid`, as the service file's text says them; `text` is
    written to every node.
    """

    def __init__(
        self,
        source: Node,
        targets: Sequence[Node],
        text: str,
        *,
        src: str,
        dst: str,
        service: str = SERVICE,
        rid: str = RID,
    ) -> None:
        self.source, self.targets = source, list(targets)
        self.src, self.dst = src, dst
        self.service, self.rid = service, rid
        self.configure(text)

    @property
    def target(self) -> Node:
        """The only target, or the first."""
        return self.targets[0]

    @property
    def nodes(self) -> list[Node]:
        """Source and targets."""
        return [self.source, *self.targets]

    def configure(self, text: str, *nodes: Node, service: str | None = None) -> None:
        """Write the service file, to all nodes unless some are named."""
        for node in nodes or self.nodes:
            file = node.path(f"{CONFIG_DIR}/{service or self.service}.conf")
            file.write_text(text)

    def add_keys(self, *lines: str) -> None:
        """Add lines to the last section of the service file on every node."""
        for node in self.nodes:
            file = node.path(f"{CONFIG_DIR}/{self.service}.conf")
            file.write_text(file.read_text().rstrip("\n") + "\n" + "\n".join(lines) + "\n")

    # --- the programs ---------------------------------------------------------------------------

    def agent(
        self,
        *args: str,
        expect: int = 0,
        node: Node | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the agent on the source, or on `node`; the exit status must be the expected one."""
        where = node or self.source
        result = where.agent(*args, env=env)
        said = f"stdout:\n{result.stdout}\nstderr:\n{result.stderr}"
        assert result.returncode == expect, (
            f"{where.name}: zfs_sync_agent {' '.join(args)}: exit status {result.returncode},"
            f" not {expect}\n{said}\nlog:\n" + "\n".join(where.log()[-60:])
        )
        assert "Traceback" not in result.stdout + result.stderr, said
        return result

    def sync(
        self, *args: str, expect: int = 0, node: Node | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `zfs_sync_agent syncupdate`; a success must be silent."""
        result = self.agent(*args, "syncupdate", expect=expect, node=node)
        if expect == 0 and not args:
            assert (result.stdout, result.stderr) == ("", "")
        return result

    def start(self, *args: str, node: Node | None = None) -> Running:
        """Start the agent and come back at once; the caller waits with `ended`."""
        where = node or self.source
        pipe = subprocess.PIPE
        return where.popen(
            where.python("zfs_sync_agent", *(args or ("syncupdate",))),
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
        )

    def check(self, node: Node, *args: str) -> Checked:
        """Run the check on a node; it never says anything on stderr."""
        result = node.check(*args)
        assert not result.stderr, result.stderr
        assert result.returncode in {OK, WARNING, CRITICAL, UNKNOWN}, result.stdout
        return Checked(result.returncode, result.stdout)

    def assert_check(self, expect: int, *args: str, nodes: Sequence[Node] = ()) -> None:
        """Run the check on these nodes (all, unless named); each must say what is expected."""
        for node in nodes or self.nodes:
            checked = self.check(node, *args)
            assert checked.code == expect, f"{node.name}: {checked}"

    def status(self, node: Node | None = None) -> list[dict[str, Any]]:
        """Return what `status --json` says."""
        rows = json.loads(self.agent("--json", "status", node=node).stdout)
        assert isinstance(rows, list)
        return rows

    def wait_until_only_joins(self) -> None:
        """Wait until a run that goes on does nothing but a join: the resource's lock is free."""
        lock = f"{STATE_DIR}/.{self.service}_{self.rid}_zfs_state.lock"
        free = ("flock", "--nonblock", lock, "true")
        eventually(
            "the run's own part is over",
            lambda: self.source.run(free, check=False).returncode == 0,
        )

    # --- what is there --------------------------------------------------------------------------

    def state_text(self, node: Node) -> str | None:
        """Return the text of the state file, None if there is none."""
        # As the node sees it, whatever a test has mounted there.
        file = node.inside(f"{STATE_DIR}/{self.service}_{self.rid}_zfs_state")
        return file.read_text() if file.exists() else None

    def state(self, node: Node) -> dict[str, Any]:
        """Return the state file of a node."""
        text = self.state_text(node)
        assert text is not None, f"no state file on {node.name}"
        state = json.loads(text)
        assert isinstance(state, dict)
        return state

    def entry(self, target: Node, on: Node | None = None) -> dict[str, Any]:
        """Return what the state file (the source's, or that `on` a node) has of a target."""
        entry = self.state(on or self.source)["targets"][target.name]
        assert isinstance(entry, dict)
        return entry

    def prop(self, node: Node, name: str, dataset: str) -> Property:
        """Return one property."""
        line = node.zfs("get", "-Hp", "-o", "value,source", name, dataset)
        return Property(*line.rstrip("\n").split("\t"))

    def retained(self) -> str:
        """Return what the source's root says of kept bases; `-` for nothing."""
        return self.prop(self.source, RETAINED, self.src).value

    def datasets(self, node: Node, root: str) -> list[str]:
        """Return the names of a tree relative to its root, the root itself as ''."""
        wanted = ("list", "-H", "-r", "-t", "filesystem,volume", "-o", "name")
        names = node.zfs(*wanted, root).splitlines()
        return [name[len(root) :] for name in names]

    def exists(self, node: Node, name: str) -> bool:
        """Whether a dataset or snapshot exists."""
        pool = re.split("[/@]", name)[0]
        listed = node.zfs("list", "-H", "-r", "-t", "all", "-o", "name", pool)
        return name in listed.splitlines()

    def snapshots(self, node: Node, root: str) -> list[str]:
        """Return the names after the @ of one dataset's snapshots, sorted."""
        return sorted(name.partition("@")[2] for name in node.guids(root, recursive=False))

    def picture(self, node: Node) -> str:
        """Return all that a command could have changed on a node: guids, properties, state."""
        wanted = "guid,creation,mountpoint,readonly,canmount,userrefs,zfs_sync:rid"
        marks = f"{MARK},{RETAINED},zfs_sync:targets"
        lines = [
            node.zfs("get", "-rHp", "-o", "name,property,value,source", f"{wanted},{marks}", pool)
            for pool in node.zpool("list", "-H", "-o", "name").split()
        ]
        files = sorted(node.path(STATE_DIR).glob("*_zfs_state"))
        return "\n".join([*lines, *(f"{file.name}: {file.read_text()}" for file in files)])

    def holds(self, node: Node) -> dict[str, int]:
        """Return the held snapshots of a node."""
        return node.holds()

    def log(self, node: Node | None = None) -> str:
        """Return the agent's log on a node."""
        return "\n".join((node or self.source).log())

    # --- both sides -----------------------------------------------------------------------------

    def assert_equal(
        self,
        *targets: Node,
        src: str | None = None,
        dst: str | None = None,
        sent: str = "sent",
        extra: Sequence[str] = (),
        recursive: bool = True,
    ) -> None:
        """Assert that each target holds @sent of every source dataset: guid and contents.

        The target may have the datasets of `extra` (relative, with a leading slash) and no others.
        """
        src, dst = src or self.src, dst or self.dst
        names = self.datasets(self.source, src) if recursive else [""]
        here = self.source.guids(src)
        wanted = {f"{name}@{sent}": here.get(f"{src}{name}@{sent}") for name in names}
        assert None not in wanted.values(), f"the source lacks some of {sorted(wanted)}"
        sums = {name: self.source.checksums(f"{src}{name}@{sent}") for name in names}
        for target in targets or self.targets:
            there = target.guids(dst)
            held = {name: there.get(f"{dst}{name}") for name in wanted}
            assert held == wanted, f"{target.name}: guids differ"
            assert sorted(self.datasets(target, dst)) == sorted([*names, *extra])
            found = {name: target.checksums(f"{dst}{name}@{sent}") for name in names}
            assert found == sums, f"{target.name}: contents differ"

    def surplus(self, target: Node) -> list[str]:
        """Return the datasets of the target's tree that the source does not have."""
        here = set(self.datasets(self.source, self.src))
        return [name for name in self.datasets(target, self.dst) if name not in here]

    def assert_tidy(self, *targets: Node) -> None:
        """Assert that only @sent is left of own snapshots, and no kept base in the property."""
        kept = self.retained()
        assert kept in {"-", ""}, f"kept: {kept}, held: {self.source.holds()}\nlog:\n" + "\n".join(
            self.source.log()[-100:]
        )
        for node, root in [(self.source, self.src), *((t, self.dst) for t in targets)]:
            own = {name.partition("@")[2] for name in node.guids(root)}
            assert {name for name in own if name.startswith(("sent", "tosend"))} == {"sent"}

    # --- what was run ---------------------------------------------------------------------------

    def watch(self, *programs: str) -> None:
        """Count the execs of `zfs` (and others) on all nodes from now on."""
        for node in self.nodes:
            node.wrap("zfs", *programs)
            node.clear_calls()

    def sends(self, node: Node | None = None) -> list[list[str]]:
        """Return the arguments of every `zfs send` that sent data since `watch`.

        One with -n only told how much it would be, or what a token is for.
        """
        calls = (node or self.source).calls("zfs")
        sends = [call for call in calls if call[:1] == ["send"]]
        return [call for call in sends if not any(word.startswith("-n") for word in call[1:2])]

    def full_streams(self, node: Node | None = None) -> list[list[str]]:
        """Return those without a base; the rest of a stream that was cut is none."""
        return [call for call in self.sends(node) if not {"-i", "-I", "-t"} & set(call)]

    def resumed(self, node: Node | None = None) -> int:
        """Return how many streams that were cut went on."""
        return len([call for call in self.sends(node) if "-t" in call])

    def receives(self, target: Node | None = None) -> list[list[str]]:
        """Return the arguments of every `zfs receive` that was to write data since `watch`."""
        calls = (target or self.target).calls("zfs")
        return [call for call in calls if call[:1] == ["receive"] and len(call) > 1]

    def gate(self, node: Node, program: str, match: Sequence[str], nth: int = 1) -> Gate:
        """Make the n-th such command on a node wait before it starts, until the gate opens."""
        node.path(GATE).unlink(missing_ok=True)
        wait = f"while [ ! -e {GATE} ]; do sleep 0.05; done"
        return Gate(node, node.fault(program, match, wait, nth=nth, when="before"))


def ended(running: Running, expect: int = 0) -> tuple[str, str]:
    """Wait for an agent that was started; return its stdout and stderr."""
    stdout, stderr = running.communicate(timeout=120 * PATIENCE)
    assert running.returncode == expect, f"exit status {running.returncode}\n{stdout}\n{stderr}"
    assert "Traceback" not in stderr, stderr
    return stdout, stderr


def workers(node: Node) -> list[str]:
    """Return the command lines of what runs in a node for the agent."""
    found = []
    for pid in node.strays():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
                words = file.read().decode(errors="replace").split("\0")
        except OSError:
            continue
        line = " ".join(words).strip()
        if any(name in line for name in ("zfs send", "zfs receive", "ssh ", "zfs_sync_agent")):
            found.append(line)
    return sorted(found)
