"""The Debian packages and the source distribution, used as an operator uses them.

The packages are built by `make deb`, judged by lintian, and installed in a small Debian 12 of their
own with Debian's own libraries and systemd. What the wheel holds is tests/test_packaging.py's.
"""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_zfs_sync import __version__, statefile
from check_zfs_sync.statefile import Attempt, Snapshot, State, Success, TargetState
from tests.e2e.world import OK, UNKNOWN
from tests.lab.process import eventually
from tests.operators.conftest import CONTRIB, REPOSITORY
from tests.operators.machine import Machine

CHECK, AGENT = "monitoring-plugins-zfs-sync", "zfs-sync-agent"
PLUGIN = "/usr/lib/nagios/plugins/check_zfs_sync"
TIMER, SERVICE = "zfs_sync_agent.timer", "zfs_sync_agent.service"
CRON_FILE = "/etc/cron.d/zfs_sync_agent"
SERVICE_FILE = "/etc/zfs_sync/z3.opensvc.com.env"
STATE_FILE = "/var/lib/zfs_sync/z3.opensvc.com_sync#1_zfs_state"
OSOL1, OSOL2 = "osol1.opensvc.com", "osol2.opensvc.com"
SOURCE_FILES = ("CHANGELOG.md", "LICENSE", "README.md", "setup.cfg", "pyproject.toml")
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def state_text() -> str:
    """Return the state file of a synchronization that has just ended, as its source keeps it."""
    now = int(time.time())
    target = TargetState(
        dst="osol2_z3_root/data",
        status="ok",
        clock_offset=0,
        snapshot=Snapshot(guid="1", creation=now, datasets=1, digest="0" * 64),
        equal_as_of=None,
        flags=(),
        last_success=Success(started=now, finished=now, bytes=1, mode="full"),
        last_attempt=Attempt(started=now, finished=now, result="ok", error=None),
    )
    state = State(
        service="z3.opensvc.com",
        rid="sync#1",
        source=OSOL1,
        here=OSOL1,
        src="osol1_z3_root/data",
        sync_max_delay=90_000,
        agent=__version__,
        targets={OSOL2: target},
    )
    return statefile.format_state(state)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the packages; the folder has both, and what lintian reads."""
    folder = tmp_path_factory.mktemp("deb") / "result"
    make = ["make", "-C", str(REPOSITORY), "deb", f"DEB={folder}"]
    made = subprocess.run(make, check=False, capture_output=True, text=True)
    assert made.returncode == 0, (made.stdout + made.stderr)[-6000:]
    return folder


def package(packages: Path, name: str) -> Path:
    return packages / f"{name}_{__version__}_all.deb"


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Boot a machine in which nothing of ours is installed."""
    booted = Machine()
    yield booted
    booted.close()


def test_lintian_has_nothing_to_say(packages: Path) -> None:
    [changes] = packages.glob("*.changes")
    words = ["lintian", "--allow-root", "--fail-on", "error,warning", "--show-overrides"]
    judged = subprocess.run(
        [*words, str(changes)], check=False, capture_output=True, text=True, cwd=packages
    )
    assert (judged.returncode, judged.stdout, judged.stderr) == (0, "", "")


def test_the_check_is_installed_without_the_agent(machine: Machine, packages: Path) -> None:
    machine.install([package(packages, CHECK)])
    assert machine.run("dpkg-query", "-W", "python3-nagiosplugin").stdout.endswith("\t1.3.2-3\n")
    assert machine.run("dpkg-query", "-W", "python3-plumbum", check=False).returncode == 1

    as_nobody = ("runuser", "-u", "nobody", "--", PLUGIN)
    nothing = machine.run(*as_nobody, check=False)
    assert (nothing.returncode, nothing.stderr) == (UNKNOWN, "")
    assert re.fullmatch("ZFS_SYNC UNKNOWN - no state file in .*, nothing .*\n", nothing.stdout)

    machine.path(STATE_FILE).write_text(state_text())
    good = machine.run(*as_nobody, check=False)
    assert (good.returncode, good.stderr) == (OK, "")
    assert good.stdout.startswith("ZFS_SYNC OK - 1 replica: z3.opensvc.com/sync#1 to osol2 ")
    assert machine.run("check_zfs_sync", "-s", "z3.opensvc.com").stdout.startswith("ZFS_SYNC OK")

    for section, page in (("1", "check_zfs_sync"), ("5", "zfs_sync.conf"), ("7", "zfs_sync")):
        assert machine.run("man", "-w", section, page).stdout.startswith("/usr/share/man/man")
    examples = machine.path(f"/usr/share/doc/{CHECK}/examples")
    shipped = {str(file.relative_to(examples)) for file in examples.rglob("*") if file.is_file()}
    wanted = {str(file.relative_to(CONTRIB)) for file in CONTRIB.rglob("*") if file.is_file()}
    elsewhere = ("completion/", "cron.d/", "systemd/")
    assert shipped == {one for one in wanted if not one.startswith(elsewhere)}
    lines = [line for one in shipped for line in (examples / one).read_text().splitlines()]
    assert [line for line in lines if PLUGIN in line]
    other = [line for line in lines if "/usr/local/bin/check_zfs_sync" in line]
    assert [line for line in other if "ln -s " not in line] == []


def test_the_agent_is_installed_upgraded_removed_and_purged(
    machine: Machine, packages: Path
) -> None:
    both = [package(packages, CHECK), package(packages, AGENT)]
    machine.install(both)
    assert machine.run("zfs_sync_agent", "-V").stdout == f"zfs_sync_agent {__version__}\n"
    assert machine.run("man", "-w", "zfs_sync_agent").stdout.startswith("/usr/share/man/man8/")

    # As bash-completion does at the first Tab after the name of a program.
    load = ". /usr/share/bash-completion/completions/zfs_sync_agent"
    complete = "_zfs_sync_complete zfs_sync_agent sta ''; echo ${COMPREPLY[@]}"
    assert machine.run("bash", "-c", f"{load}; {complete}").stdout == "status\n"

    machine.path(SERVICE_FILE).write_text(
        (REPOSITORY / "tests/demo/z3.opensvc.com.env").read_text()
    )
    machine.path(STATE_FILE).write_text(state_text())
    valid = machine.run("zfs_sync_agent", "validate").stdout
    assert valid == f"{SERVICE_FILE}: sync#1: osol1_z3_root/data to {OSOL2}: valid\n"
    check = machine.run("check_zfs_sync")
    assert check.stdout.startswith("ZFS_SYNC OK")

    # Nothing starts by itself. What cron would run is what contrib/ has, once a person wants it.
    assert machine.run("systemctl", "is-enabled", TIMER, check=False).stdout == "disabled\n"
    assert machine.run("systemctl", "is-active", TIMER, check=False).stdout == "inactive\n"
    cron_file = machine.path(CRON_FILE).read_text()
    assert settings_of(cron_file.replace("\n#0 ", "\n0 ")) == settings_of(
        (CONTRIB / "cron.d/zfs_sync_agent").read_text()
    )
    assert not [line for line in settings_of(cron_file) if "zfs_sync_agent" in line]

    units = [f"/lib/systemd/system/{unit}" for unit in (SERVICE, TIMER)]
    verified = machine.run("systemd-analyze", "verify", *units)
    assert verified.stdout + verified.stderr == ""
    machine.run("systemctl", "enable", "--now", TIMER)
    assert TIMER in machine.run("systemctl", "list-timers").stdout

    # An upgrade keeps the timer going, and a run too.
    start_a_run(machine)
    run = machine.run("systemctl", "show", "-p", "MainPID", SERVICE).stdout
    machine.install(both)
    assert machine.run("systemctl", "show", "-p", "MainPID", SERVICE).stdout == run
    assert machine.run("systemctl", "is-active", TIMER).stdout == "active\n"

    # To stop a run is no failure, and leaves nothing of it.
    machine.run("systemctl", "stop", SERVICE)
    assert machine.run("systemctl", "is-failed", SERVICE, check=False).stdout == "inactive\n"
    assert not running_in(machine, "sleep 987")
    log = machine.run("journalctl", "-q", "-t", "zfs_sync_agent").stdout
    assert log.endswith(": zfs_sync_agent: ended by signal 15\n")

    # Removed: what a person wrote stays, and cron's line does nothing.
    machine.run("apt-get", "-q", "-y", "remove", AGENT)
    assert machine.run("systemctl", "is-active", TIMER, check=False).stdout == "inactive\n"
    [job] = [line for line in settings_of(cron_file.replace("\n#0 ", "\n0 ")) if line[0] == "0"]
    silent = machine.run("sh", "-c", job.partition(" root ")[2])
    assert (silent.stdout, silent.stderr) == ("", "")
    assert machine.path(CRON_FILE).read_text() == cron_file
    assert machine.run("check_zfs_sync", check=False).stdout.startswith("ZFS_SYNC ")

    # Purged: not even then is what the state files know thrown away.
    machine.run("apt-get", "-q", "-y", "purge", AGENT, CHECK)
    assert not machine.path(CRON_FILE).exists()
    assert not machine.path("/etc/systemd/system/timers.target.wants/zfs_sync_agent.timer").exists()
    assert machine.path(SERVICE_FILE).exists()
    assert machine.path(STATE_FILE).exists()


def settings_of(cron_file: str) -> list[str]:
    return [line for line in cron_file.splitlines() if line and not line.startswith("#")]


def start_a_run(machine: Machine) -> None:
    """Start the service; its run waits for an only_if that takes its time."""
    file = machine.path(SERVICE_FILE)
    file.write_text(file.read_text() + "only_if = sleep 987\n")
    machine.run("systemctl", "start", "--no-block", SERVICE)
    eventually("the run waits", lambda: running_in(machine, "sleep 987"))


def running_in(machine: Machine, command: str) -> bool:
    words = [file.read_bytes() for file in machine.path("/proc").glob("[0-9]*/cmdline")]
    return any(one.decode().replace("\0", " ").strip() == command for one in words)


def test_the_source_distribution_is_whole_and_pipx_installs_what_it_builds(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    names = [*SOURCE_FILES, "MANIFEST.in", "check_zfs_sync", "zfs_sync_agent", "man", "contrib"]
    subprocess.run(["cp", "-r", *names, str(source)], check=True, cwd=REPOSITORY)
    build = ["/usr/bin/python3", "-m", "build", "--no-isolation", "--outdir", str(tmp_path)]
    built = subprocess.run([*build, str(source)], check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr

    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    kinds = (".py", ".typed", ".1", ".5", ".7", ".8", ".md", ".cfg", ".conf", ".in")
    files = {str(one.relative_to(source)) for one in source.rglob("*") if one.is_file()}
    there = {name for name in files if "." not in name or name.endswith(kinds)}
    assert {name for name in there if ".egg-info" not in name} - held == set()

    # The wheel is built from that archive, not from the folder.
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as zipped:
        assert "zfs_sync_agent/cli.py" in zipped.namelist()
    places = {"PIPX_HOME": str(tmp_path / "pipx"), "PIPX_BIN_DIR": str(tmp_path / "bin")}
    environment = {**os.environ, **places, "PATH": SYSTEM_PATH}
    pipx = ["/usr/bin/pipx", "install", str(wheel)]
    done = subprocess.run(pipx, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    for program, status in (("zfs_sync_agent", 0), ("check_zfs_sync", 3)):
        told = subprocess.run(
            [str(tmp_path / "bin" / program), "-V"], check=False, capture_output=True, text=True
        )
        assert (told.stdout, told.returncode) == (f"{program} {__version__}\n", status)
    pages = tmp_path / "pipx/venvs/zfs-sync/share/man"
    manuals = {page.name for page in (REPOSITORY / "man").iterdir()}
    assert {page.name for page in pages.glob("man*/*")} == manuals
