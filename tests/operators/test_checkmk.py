"""contrib/checkmk on lab nodes, held to what checkmk's manual says of local checks and of MRPE.

Debian 12 has no package of checkmk's agent, so no agent runs here: the local check is executed as
the agent executes it, and each line of its output and of mrpe.cfg is taken apart by the rules of
docs.checkmk.com, Local checks, and Monitoring Linux (MRPE).
"""

from __future__ import annotations

import re
import shutil
from typing import NamedTuple

import pytest

from tests.e2e.world import CRITICAL, OK, UNKNOWN, WARNING, World
from tests.lab import Node
from tests.operators.conftest import CONTRIB, PLUGIN, let_time_pass

# The agent's folder is a setting of the agent's (MK_LIBDIR); a node has no /usr/lib of its own.
LOCAL = "/usr/local/lib/check_mk_agent/local/zfs_sync"
# The status; the name, in quotes; the metrics without a blank, or -; the rest of the line.
LINE = re.compile(r'([0-3P]) "([^"\']+)" (\S+) (\S.*)')
METRIC = re.compile(r"(\w+)=(-?[0-9.]+)((?:;[0-9.:]*){0,4})")
# A name without blanks, options in brackets, the command.
MRPE = re.compile(r"(\S+) (?:\((?:[a-z]+=\S+)\) )?(/.*)")

SUMMARY = "ZFS sync"
REPLICA = "ZFS sync z3.opensvc.com/sync#1 to osol2.opensvc.com"


class Service(NamedTuple):
    """A service as checkmk reads it."""

    state: int
    metrics: dict[str, float]
    text: str


def local_checks(node: Node) -> dict[str, Service]:
    """Return what checkmk reads in the output of the local check, run by a user without rights."""
    done = node.run(["/usr/sbin/runuser", "-u", "nobody", "--", LOCAL], check=False)
    assert (done.returncode, done.stderr) == (0, "")
    services = {}
    for line in done.stdout.splitlines():
        match = LINE.fullmatch(line)
        assert match, line
        metrics = [] if match[3] == "-" else [METRIC.fullmatch(one) for one in match[3].split("|")]
        assert None not in metrics, line
        figures = {one[1]: float(one[2]) for one in metrics if one}
        services[match[2]] = Service(int(match[1]), figures, match[4])
    return services


def states(node: Node) -> dict[str, int]:
    return {name: service.state for name, service in local_checks(node).items()}


@pytest.mark.zfs
def test_the_local_check_tells_of_each_replica_what_the_check_does(installed: World) -> None:
    world, (source, target) = installed, installed.nodes
    for node in world.nodes:
        node.inside(LOCAL).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CONTRIB / "checkmk/zfs_sync", node.inside(LOCAL))
        assert states(node) == {SUMMARY: OK, REPLICA: OK}
        replica = local_checks(node)[REPLICA]
        assert set(replica.metrics) == {"lag", "bytes", "duration"}
        assert replica.metrics["lag"] < 3600

    source.zfs("destroy", "-r", f"{world.src}@sent")
    world.sync(expect=3)
    assert [states(node)[REPLICA] for node in world.nodes] == [CRITICAL, CRITICAL]
    assert "broken" in local_checks(source)[REPLICA].text
    world.agent("--node", target.name, "syncfull")
    assert [states(node)[REPLICA] for node in world.nodes] == [OK, OK]

    let_time_pass(world, 3 * 24 * 3600)
    late = [local_checks(node)[REPLICA] for node in world.nodes]
    assert [(one.state, one.text.startswith("3d")) for one in late] == [(WARNING, True)] * 2

    # What cannot be judged is told by a service that checkmk has known from the start.
    file = target.path(f"/var/lib/zfs_sync/{world.service}_{world.rid}_zfs_state")
    file.write_text(file.read_text()[:100])
    assert states(target) == {SUMMARY: UNKNOWN}


@pytest.mark.zfs
def test_the_line_of_mrpe_runs_the_check(installed: World) -> None:
    world = installed
    lines = (CONTRIB / "checkmk/mrpe.cfg").read_text().splitlines()
    (line,) = [one for one in lines if not re.match(r"\s*(#|$)", one)]
    match = MRPE.fullmatch(line)
    assert match, line
    # In one pair of apostrophes, the agent gives the command to a shell of its own.
    assert not set("'\"") & set(match[2])
    for node, expect in ((world.source, OK), (world.target, OK)):
        done = node.run(["/bin/sh", "-c", match[2]], check=False)
        assert (done.returncode, done.stderr) == (expect, "")
    let_time_pass(world, 4 * 24 * 3600)
    done = world.source.run(["/bin/sh", "-c", match[2]], check=False)
    assert (done.returncode, done.stdout.partition(" - ")[0]) == (CRITICAL, "ZFS_SYNC CRITICAL")
    assert match[2].split()[0] == PLUGIN
