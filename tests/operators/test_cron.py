"""The files for cron and systemd, read by Debian's cron and by systemd's own tools on a node.

The file in /etc/cron.d is the one that is shipped, to the letter. Only cron's clock is helped
along: each cron starts three seconds before a full hour, in another year, which no job sees.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.world import OK, World
from tests.lab import Node
from tests.lab.errors import LabError
from tests.lab.process import eventually
from tests.operators.conftest import CONTRIB, Start

PROGRAM = "zfs_sync_agent"
CRON_FILE = CONTRIB / "cron.d" / PROGRAM
UNITS = sorted((CONTRIB / "systemd").iterdir())
MAILS = "/run/mails"

# Debian's cron hands what a job prints to this program, for each job one call.
SENDMAIL = f"""\
#!/bin/sh
mail=$(mktemp {MAILS}/XXXXXX)
cat >"$mail"
"""


class Cron:
    """Debian's cron with our file, on one node; it runs when the test lets an hour strike."""

    def __init__(self, node: Node, start: Start, log: Path) -> None:
        self.node, self._start, self._log = node, start, log
        self.copy(CRON_FILE, f"/etc/cron.d/{CRON_FILE.name}")

    def copy(self, file: Path, place: str) -> None:
        """Copy a shipped file to where its first line says; mode 0644, owned by root."""
        shutil.copy(file, self.node.inside(place))
        self.node.inside(place).chmod(0o644)

    def strike(self) -> list[str]:
        """Let one full hour strike and the job end; return the mails that cron wrote."""
        before = self._ended()
        clock = ("/usr/bin/faketime", "-f", "@2030-01-01 05:59:57")
        cron = self._start(self.node, *clock, "/usr/sbin/cron", "-f", "-L", "7", log=self._log)
        try:
            eventually("cron's job came to its end", lambda: self._ended() > before, 60)
        except LabError as late:
            raise LabError("\n".join([str(late), *self.node.log()])) from late
        finally:
            cron.kill_group()
            cron.wait()
        files = sorted(self.node.inside(MAILS).iterdir())
        mails = [file.read_text() for file in files]
        for file in files:
            file.unlink()
        return mails

    def _ended(self) -> int:
        """Return how many jobs of our file have ended; others may strike with the hour."""
        return len([line for line in self.node.log() if " END (" in line and PROGRAM in line])


@pytest.fixture
def cron(installed: World, start: Start, tmp_path: Path) -> Iterator[Cron]:
    """Give the source a sendmail of our own, in an overlay that no other node sees."""
    node = installed.source
    node.run(["/bin/mkdir", "-p", "/run/sbin/upper", "/run/sbin/work", MAILS])
    options = "lowerdir=/usr/sbin,upperdir=/run/sbin/upper,workdir=/run/sbin/work"
    node.run(["/bin/mount", "-t", "overlay", "overlay", "-o", options, "/usr/sbin"])
    sendmail = node.inside("/usr/sbin/sendmail")
    sendmail.unlink(missing_ok=True)
    sendmail.write_text(SENDMAIL)
    sendmail.chmod(0o755)
    yield Cron(node, start, tmp_path / "cron.log")
    node.run(["/bin/umount", "-l", "/usr/sbin"])


def last_attempt(world: World) -> object:
    return world.entry(world.target)["last_attempt"]


def test_cron_runs_silently_and_mails_one_block_when_it_fails(installed: World, cron: Cron) -> None:
    world = installed
    before = last_attempt(world)
    assert cron.strike() == []
    assert last_attempt(world) != before
    world.assert_check(OK)

    world.target.zfs("destroy", "-r", f"{world.dst}@sent")
    mails = cron.strike()
    assert len(mails) == 1
    headers, _, body = mails[0].partition("\n\n")
    assert "To: root\n" in headers
    assert body.startswith("z3.opensvc.com/sync#1 to osol2.opensvc.com: ")
    blocks = [line for line in body.splitlines() if not line.startswith("  ")]
    assert len(blocks) == 1
    assert "\n  next: " in body

    assert cron.strike() == []  # the same failure is told once per sync_max_delay


def test_cron_stands_back_for_an_enabled_timer_and_a_removed_program(
    installed: World, cron: Cron
) -> None:
    world, node = installed, cron.node
    places = [f"/etc/systemd/system/{unit.name}" for unit in UNITS]
    for unit, place in zip(UNITS, places, strict=True):
        cron.copy(unit, place)
    verified = node.run(["/usr/bin/systemd-analyze", "--man=no", "verify", *places], check=False)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    runs = node.run(["/usr/bin/systemd-analyze", "calendar", calendar()]).stdout
    assert "Normalized form: *-*-* *:00:00\n" in runs

    before = last_attempt(world)
    node.run(["/usr/bin/systemctl", "enable", f"{PROGRAM}.timer"])
    assert cron.strike() == []
    assert last_attempt(world) == before

    node.run(["/usr/bin/systemctl", "disable", f"{PROGRAM}.timer"])
    assert cron.strike() == []
    assert last_attempt(world) != before

    before = last_attempt(world)
    program = node.inside(f"/usr/local/bin/{PROGRAM}")
    aside = program.with_name("aside")
    program.rename(aside)
    try:
        assert cron.strike() == []
    finally:
        aside.rename(program)
    assert last_attempt(world) == before


def calendar() -> str:
    [timer] = [unit for unit in UNITS if unit.suffix == ".timer"]
    lines = timer.read_text().splitlines()
    [found] = [line for line in lines if line.startswith("OnCalendar=")]
    return found.removeprefix("OnCalendar=")
