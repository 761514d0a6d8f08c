"""contrib/nagios: Debian's Nagios on osol1 asks both nodes, by itself, by NRPE, and is told.

What is asserted is Nagios' own view, its status file. The test gives it orders through its command
pipe, as its web pages do, so that nothing waits for a schedule.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import OSOL1, OSOL2
from tests.e2e.world import CRITICAL, OK, UNKNOWN, WARNING, World
from tests.lab import Node, Running
from tests.lab.process import eventually
from tests.operators.conftest import CONTRIB, REPOSITORY, Start, let_time_pass
from tests.operators.nrpe import start_nrpe

CONFIGURATION = "/etc/nagios4/nagios.cfg"
PIPE = "/var/lib/nagios4/rw/nagios.cmd"
TRANSCRIPT = REPOSITORY / "build/operators/nagios.txt"
SHOWN = (
    "host_name",
    "service_description",
    "current_state",
    "plugin_output",
    "long_plugin_output",
    "performance_data",
)
LAG = rf"'z3\.opensvc\.com/sync#1/{OSOL2}_lag'=(\d+)s;90000;;0"
DAY = 24 * 3600
FRESH = 12

View = dict[str, str]


@dataclass
class Nagios:
    """The Nagios of a node, by its files."""

    node: Node

    def view(self, host: str, service: str = "ZFS sync") -> View:
        """Return what the status file has of a service; nothing while Nagios has no result yet."""
        file = self.node.inside("/var/lib/nagios4/status.dat")
        text = file.read_text() if file.exists() else ""
        for block in re.findall(r"^servicestatus \{\n(.*?)^\t\}", text, re.M | re.S):
            view = dict(line.strip().split("=", 1) for line in block.splitlines())
            if (view["host_name"], view["service_description"]) == (host, service):
                return view if view["has_been_checked"] == "1" else {}
        return {}

    def order(self, command: str) -> None:
        """Write an external command into the pipe."""
        now = int(time.time())
        with self.node.inside(PIPE).open("a") as pipe:
            pipe.write(f"[{now}] {command}\n")

    def asks(self, host: str) -> View:
        """Return what Nagios holds of a host after a check that it was told to run now."""
        before = self.view(host).get("last_check", "0")
        # Nagios tells checks apart by the second.
        eventually("the second is over", lambda: time.time() >= int(before) + 1)
        self.order(f"SCHEDULE_FORCED_SVC_CHECK;{host};ZFS sync;{int(time.time())}")
        eventually(
            f"Nagios has asked {host}", lambda: self.view(host).get("last_check", "0") > before, 20
        )
        return self.view(host)

    def waits(self, state: int, host: str, service: str) -> View:
        """Return its view of a service as soon as it has this state."""
        eventually(
            f"{service} of {host} has state {state}",
            lambda: self.view(host, service).get("current_state") == str(state),
            30,
        )
        return self.view(host, service)


def set_value(file: Path, **values: int) -> None:
    """Change values of Nagios' configuration that are there."""
    text = file.read_text()
    for key, value in values.items():
        text, count = re.subn(rf"(?m)^(\s*{key}[\s=]+)\d+$", rf"\g<1>{value}", text)
        assert count == 1, key
    file.write_text(text)


@pytest.fixture
def nagios(installed: World, start: Start, tmp_path: Path) -> Nagios:
    """Debian's configuration with contrib's file; only its times are shortened."""
    node, log = installed.source, tmp_path / "nagios4"
    objects = node.inside("/etc/nagios4/conf.d/zfs_sync.cfg")
    objects.write_text((CONTRIB / "nagios/zfs_sync.cfg").read_text())
    verified = node.run(["nagios4", "-v", CONFIGURATION], check=False)
    assert verified.returncode == 0, verified.stdout
    assert "Total Warnings: 0\nTotal Errors:   0" in verified.stdout

    set_value(
        node.inside(CONFIGURATION), status_update_interval=1, service_freshness_check_interval=1
    )
    set_value(objects, freshness_threshold=FRESH)
    for left in ("status.dat", "retention.dat", "rw/nagios.cmd"):
        node.inside(f"/var/lib/nagios4/{left}").unlink(missing_ok=True)
    node.run(["install", "--directory", "--owner=nagios", "--group=nagios", "/run/nagios4"])
    running = start(node, "nagios4", CONFIGURATION, log=log)

    def takes_orders() -> bool:
        assert running.poll() is None, log.read_text()
        return node.inside(PIPE).is_fifo()

    eventually("Nagios takes orders", takes_orders)
    return Nagios(node)


@pytest.fixture
def nrpe(installed: World, start: Start, tmp_path: Path) -> Running:
    """NRPE on the target, for the Nagios of the source."""
    return start_nrpe(installed.target, installed.source, start, tmp_path / "nrpe")


def lag(view: View) -> int:
    """Return the lag in seconds out of the performance data as Nagios keeps it."""
    found = re.search(LAG, view["performance_data"])
    assert found, view["performance_data"]
    return int(found[1])


@pytest.fixture
def transcript() -> Iterator[Callable[[str, View], None]]:
    """Write down what Nagios says, for a person to read after the test."""
    TRANSCRIPT.parent.mkdir(parents=True, exist_ok=True)
    with TRANSCRIPT.open("w") as file:

        def write(heading: str, view: View) -> None:
            lines = [f"    {key}={view[key]}" for key in SHOWN]
            file.write("\n".join([heading, *lines, ""]))

        yield write


def test_nagios_sees_ok_then_late_then_broken_then_mended(
    installed: World,
    nagios: Nagios,
    nrpe: Running,
    transcript: Callable[[str, View], None],
) -> None:
    world = installed

    def both(heading: str, state: int, words: str) -> list[View]:
        views = [nagios.asks(host) for host in (OSOL1, OSOL2)]
        for view in views:
            transcript(heading, view)
            assert (view["check_type"], view["should_be_scheduled"]) == ("0", "1")
            assert view["current_state"] == str(state), view
            assert words in view["plugin_output"]
            assert "z3.opensvc.com/sync#1 to osol2.opensvc.com" in view["long_plugin_output"]
        return views

    for view in both("synchronized", OK, "1 replica: z3.opensvc.com/sync#1 to osol2"):
        assert lag(view) < DAY
    let_time_pass(world, 2 * DAY)
    for view in both("no run for two days", WARNING, "1 of 1 late"):
        assert lag(view) >= 2 * DAY

    agent = "/usr/local/bin/zfs_sync_agent"
    world.source.zfs("destroy", "-r", f"{world.src}@sent")
    run = world.source.run([agent, "syncupdate"], check=False)
    assert run.returncode == 3, run.stderr
    both(f"zfs destroy -r {world.src}@sent, then a run", CRITICAL, "1 of 1 broken")

    advice = re.search(r"next: +zfs_sync_agent (.* syncfull) ", run.stderr)
    assert advice, run.stderr
    world.source.run([agent, *advice[1].split()])
    for view in both(f"zfs_sync_agent {advice[1]}", OK, "1 replica"):
        assert lag(view) < DAY
    world.sync()
    world.assert_equal()

    nrpe.kill_group()
    nrpe.wait()
    silent = nagios.asks(OSOL2)
    transcript("NRPE of osol2 stopped", silent)
    assert silent["current_state"] == str(UNKNOWN)
    assert "Connection refused" in silent["plugin_output"]


def let_push(world: World, server: Node) -> Callable[[], None]:
    """Set both ends up as contrib says; return what cron does on the target, waited for."""
    script = server.inside("/usr/local/bin/zfs_sync_passive")
    script.write_text((CONTRIB / "nagios/zfs_sync_passive").read_text())
    script.chmod(0o755)
    entry = re.search(r"^# +(restrict,command=.*) KEY$", script.read_text(), re.M)
    assert entry
    # The lab's sshd has no PAM and takes "!" for locked; Debian's own does not.
    server.run(["usermod", "--shell", "/bin/sh", "--password", "*", "nagios"])
    keys = server.inside("/var/lib/nagios/.ssh/authorized_keys")
    keys.parent.mkdir(exist_ok=True)
    keys.write_text(f"{entry[1]} {world.target.public_key}\n")
    server.run(["chown", "-R", "nagios:", "/var/lib/nagios/.ssh"])

    cron = (CONTRIB / "nagios/zfs_sync_push").read_text()
    line = re.search(r"^\*/10 \* \* \* \* root (.*) 2>/dev/null\n", cron, re.M)
    assert line
    assert "%" not in line[1]

    def push() -> None:
        world.target.run(["/bin/sh", "-c", line[1]])

    return push


def test_a_node_tells_nagios_its_own_state_only_and_silence_is_noticed(
    installed: World, nagios: Nagios
) -> None:
    pushed = (OSOL2, "ZFS sync pushed")
    push = let_push(installed, nagios.node)
    never = nagios.waits(UNKNOWN, *pushed)
    assert never["plugin_output"].startswith("UNKNOWN: no result received")
    assert OSOL2 in never["plugin_output"]

    push()
    view = nagios.waits(OK, *pushed)
    assert (view["check_type"], view["should_be_scheduled"]) == ("1", "0")
    assert "1 replica: z3.opensvc.com/sync#1 to osol2" in view["plugin_output"]
    assert "snapshot of" in view["long_plugin_output"]
    assert "\\nz3.opensvc.com/sync#1: standby" in view["long_plugin_output"]
    assert lag(view) < DAY

    let_time_pass(installed, 2 * DAY)
    push()
    view = nagios.waits(WARNING, *pushed)
    assert "1 of 1 late" in view["plugin_output"]
    assert lag(view) >= 2 * DAY

    stopped = nagios.waits(UNKNOWN, *pushed)
    assert "no result received" in stopped["plugin_output"]

    login = ["ssh", "-o", "BatchMode=yes", f"nagios@{OSOL1}", "id"]
    for cut in ("", "half an answer\n"):
        answer = installed.target.run(login, check=False, input=cut)
        assert (answer.returncode, answer.stdout) == (1, "")
        assert "no whole answer" in answer.stderr
    forged = f"x\n[1] PROCESS_SERVICE_CHECK_RESULT;{OSOL1};ZFS sync;2;forged\n1\n"
    installed.target.run(login, input=forged)
    assert "forged" in nagios.waits(WARNING, *pushed)["long_plugin_output"]
    assert "forged" not in nagios.asks(OSOL1)["plugin_output"]
