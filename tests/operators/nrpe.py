"""Debian's NRPE on a node, with contrib's commands; and Debian's check_nrpe, which asks it.

Decides how an operator sets it up; the daemon's own configuration stays as Debian ships it.
"""

from __future__ import annotations

from pathlib import Path

from tests.e2e.world import Checked
from tests.lab import Node, Running
from tests.lab.process import eventually
from tests.operators.conftest import CONTRIB, Start

CHECK_NRPE = "/usr/lib/nagios/plugins/check_nrpe"


def start_nrpe(node: Node, asker: Node, start: Start, log: Path) -> Running:
    """Set NRPE up as contrib/nrpe says, start it as its unit does, return when it answers."""
    commands = node.inside("/etc/nagios/nrpe.d/zfs_sync.cfg")
    commands.write_text((CONTRIB / "nrpe/zfs_sync.cfg").read_text())
    node.inside("/etc/nagios/nrpe_local.cfg").write_text(f"allowed_hosts={asker.name}\n")
    node.run(["install", "--directory", "--owner=nagios", "--group=nagios", "/run/nagios"])
    # As the unit does after a stop: NRPE takes the process of a left file for its own.
    node.inside("/run/nagios/nrpe.pid").unlink(missing_ok=True)
    daemon = ("nrpe", "-c", "/etc/nagios/nrpe.cfg", "-f")
    running = start(node, "runuser", "-u", "nagios", "--", *daemon, log=log)

    def answers() -> bool:
        assert running.poll() is None, "\n".join([log.read_text(), *node.log()])
        return asker.run([CHECK_NRPE, "-H", node.name], check=False).returncode == 0

    eventually(f"NRPE of {node.name} answers", answers)
    return running


def ask(asker: Node, node: Node, command: str) -> Checked:
    """Return what Nagios gets: check_nrpe, run by its user."""
    as_nagios = ["runuser", "-u", "nagios", "--"]
    said = asker.run([*as_nagios, CHECK_NRPE, "-H", node.name, "-c", command], check=False)
    return Checked(said.returncode, said.stdout)
