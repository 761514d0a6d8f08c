"""contrib/nrpe: Debian's NRPE answers Debian's check_nrpe on the other node."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from check_zfs_sync import statefile
from tests.e2e.conftest import ONE_TARGET, OSOL1, OSOL2, make_tree
from tests.e2e.world import CRITICAL, OK, STATE_DIR, UNKNOWN, WARNING, Checked, World
from tests.lab import Node
from tests.operators.conftest import CONTRIB, Start, let_time_pass
from tests.operators.nrpe import ask, start_nrpe

HOUR = 3600
MAIL = f"""\
[sync#2]
type = zfs
src@{OSOL1} = osol1_z3_root/mail
src@{OSOL2} = osol2_z3_root/mail
dst@{OSOL1} = osol2_z3_root/mail
dst@{OSOL2} = osol1_z3_root/mail
target = nodes
"""
COMMANDS = dict(
    re.findall(r"^command\[(\w+)\]=(.+)$", (CONTRIB / "nrpe/zfs_sync.cfg").read_text(), re.M)
)
REPLICA = f"z3.opensvc.com/sync#{{}}/{OSOL2}"

# A node and the one that asks it.
Pairs = list[tuple[Node, Node]]


def as_nagios(node: Node, *argv: str) -> Checked:
    said = node.run(["runuser", "-u", "nagios", "--", *argv], check=False)
    return Checked(said.returncode, said.stdout)


def assert_unchanged(asker: Node, node: Node, command: str) -> Checked:
    """Return what the command says by NRPE: the same as on the node itself, to the last byte."""
    # A lag is in seconds: both have to be asked within the same one.
    for _attempt in range(10):
        by_nrpe, there = ask(asker, node, command), as_nagios(node, *shlex.split(COMMANDS[command]))
        if by_nrpe == there:
            break
    assert by_nrpe == there
    return by_nrpe


def figures(said: Checked) -> dict[str, str]:
    """Return the performance data of the first line: the value with its thresholds, by label."""
    found = re.findall(r"'([^']+)'=(\S+)", said.stdout.partition("\n")[0].partition("|")[2])
    return dict(found)


def labels(number: int) -> list[str]:
    return [f"{REPLICA.format(number)}_{unit}" for unit in ("bytes", "duration", "lag")]


def add_mail(world: World) -> World:
    """Add sync#2 to the service, and synchronize both."""
    mail = World(
        world.source,
        world.targets,
        ONE_TARGET + MAIL,
        src="osol1_z3_root/mail",
        dst="osol2_z3_root/mail",
        rid="sync#2",
    )
    make_tree(mail.source, mail.src)
    mail.sync()
    return mail


@pytest.fixture
def pairs(installed: World, start: Start, tmp_path: Path) -> Pairs:
    """Each node with NRPE, and the other one, which asks it."""
    source, target = installed.nodes
    pairs = [(source, target), (target, source)]
    for node, asker in pairs:
        start_nrpe(node, asker, start, tmp_path / node.name)
    return pairs


def test_every_state_comes_over_nrpe_as_the_check_says_it(installed: World, pairs: Pairs) -> None:
    data, mail = installed, add_mail(installed)
    for node, asker in pairs:
        assert as_nagios(node, "zfs", "list").code != OK
        for command in COMMANDS:
            assert assert_unchanged(asker, node, command).code == OK
        said = ask(asker, node, "check_zfs_sync")
        assert sorted(figures(said)) == sorted(labels(1) + labels(2))
        assert re.fullmatch(r"\d+s;90000;;0", figures(said)[f"{REPLICA.format(1)}_lag"])
        details = re.findall(r"^OK: z3.opensvc.com/(sync#\d) to ", said.stdout, re.M)
        assert sorted(details) == ["sync#1", "sync#2"]
        assert sorted(figures(ask(asker, node, "check_zfs_sync_z3"))) == labels(1)

    let_time_pass(mail, 26 * HOUR)
    for node, asker in pairs:
        late = assert_unchanged(asker, node, "check_zfs_sync")
        assert late.code == WARNING
        assert "1 of 2 late: z3.opensvc.com/sync#2 to osol2" in late.stdout
        assert assert_unchanged(asker, node, "check_zfs_sync_3d").code == WARNING
        assert assert_unchanged(asker, node, "check_zfs_sync_z3").code == OK

    let_time_pass(mail, 48 * HOUR)
    for node, asker in pairs:
        assert assert_unchanged(asker, node, "check_zfs_sync").code == WARNING
        old = assert_unchanged(asker, node, "check_zfs_sync_3d")
        assert old.code == CRITICAL
        assert figures(old)[f"{REPLICA.format(2)}_lag"].endswith("s;90000;259200;0")

    data.target.zfs("destroy", "-r", f"{data.dst}@sent")
    data.agent("syncupdate", expect=3)
    for node, asker in pairs:
        broken = assert_unchanged(asker, node, "check_zfs_sync")
        assert broken.code == CRITICAL
        assert "1 of 2 broken: z3.opensvc.com/sync#1 to osol2" in broken.stdout
        assert assert_unchanged(asker, node, "check_zfs_sync_z3").code == CRITICAL

    for node, asker in pairs:
        (node.path(STATE_DIR) / f"{data.service}_{data.rid}_zfs_state").chmod(0o600)
        unreadable = assert_unchanged(asker, node, "check_zfs_sync_z3")
        assert unreadable.code == UNKNOWN
        assert "Permission denied" in unreadable.stdout


def test_sixty_replicas_fit_into_one_answer(installed: World, pairs: Pairs) -> None:
    target, asker = pairs[1]
    folder = target.path(STATE_DIR)
    file = folder / f"{installed.service}_{installed.rid}_zfs_state"
    state = statefile.parse_state(file.read_text(), str(file))
    for number in range(1, 60):
        service = f"s{number}.opensvc.com"
        copy = folder / f"{service}_{installed.rid}_zfs_state"
        copy.write_text(statefile.format_state(state._replace(service=service)))

    said = assert_unchanged(asker, target, "check_zfs_sync")
    assert said.code == OK
    assert "60 replicas" in said.stdout
    assert len(figures(said)) == 3 * 60
    assert len(re.findall("^OK: ", said.stdout, re.M)) == 60
