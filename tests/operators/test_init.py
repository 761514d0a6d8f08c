"""A service file made by `init`, tried by `validate --deep`: with it a sync and the check are well.

Whatever is not as it has to be is one line that says what to type; then nothing is written.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.conftest import OSOL1, OSOL2
from tests.e2e.test_clock import set_date
from tests.e2e.world import CONFIG_DIR, OK, STATE_DIR, World
from tests.lab import Node
from tests.lab.process import PATIENCE
from tests.operators.conftest import PLUGIN, install

AGENT = "/usr/local/bin/zfs_sync_agent"
SERVICE = "z3.opensvc.com"
FILE = f"{CONFIG_DIR}/{SERVICE}.conf"
SRC, DST = "osol1_z3_root/data", "osol2_z3_root/data"
WORDS = (f"nodes={OSOL1} {OSOL2}", f"src={SRC}", f"dst={DST}")
DAY = 24 * 3600


@pytest.fixture
def bare(one_target: World, wheels: Path) -> World:
    """Two nodes with both programs and nothing set up; osol1 has the data."""
    for node in one_target.nodes:
        if not node.inside(PLUGIN).exists():
            install(node, wheels)
        node.path(FILE).unlink()
    return one_target


def agent(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    return node.run([AGENT, *words], check=False)


def init(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    return agent(node, "-s", SERVICE, "init", *words)


def lines_for(result: subprocess.CompletedProcess[str], heading: str) -> list[str]:
    """Return what `init` shows below the heading that begins so."""
    block = re.search(rf"^{heading}.*:\n((?:    .*\n)+)", result.stdout, re.MULTILINE)
    assert block, result.stdout
    return [line.strip() for line in block[1].splitlines()]


def contents(node: Node) -> dict[str, str]:
    """Return everything in the two folders of the programs."""
    folders = (node.path(CONFIG_DIR), node.path(STATE_DIR))
    files = (file for folder in folders for file in folder.rglob("*"))
    return {str(file): file.read_text() if file.is_file() else "" for file in files}


def add_lines(file: Path, *lines: str) -> None:
    with file.open("a") as stream:
        stream.write("".join(f"{line}\n" for line in lines))


def test_what_init_writes_and_shows_is_all_that_a_pair_needs(bare: World) -> None:
    source, target = bare.nodes
    before = [bare.picture(node) for node in bare.nodes]
    bare.watch("ssh")
    made = init(source, *WORDS)
    assert (made.returncode, made.stderr) == (0, "")
    # It asked each node once, and only read.
    assert len(source.calls("ssh")) == 1
    for node in bare.nodes:
        assert {call[0] for call in node.calls("zfs") if call} == {"list", "get"}
    assert [bare.picture(node) for node in bare.nodes] == before
    assert not target.path(FILE).exists()

    for command in lines_for(made, "The same file"):
        source.run(["/bin/sh", "-c", command])
    assert target.path(FILE).read_bytes() == source.path(FILE).read_bytes()
    for node in bare.nodes:
        assert agent(node, "validate").returncode == 0
    assert lines_for(made, "Then")[0] == f"{AGENT} -s {SERVICE} validate --deep"
    for command in lines_for(made, "Then"):
        source.run(shlex.split(command))
    bare.assert_equal()

    [cron] = lines_for(made, "A line for cron")
    [nrpe] = lines_for(made, "A line for NRPE")
    assert cron.startswith("0 * * * * root ")
    assert nrpe.startswith("command[check_zfs_sync]=/")
    for node in bare.nodes:
        run = node.run(shlex.split(cron)[6:], env={"PATH": "/usr/bin:/bin"})
        assert (run.stdout, run.stderr) == ("", "")
        assert node.run(shlex.split(nrpe.partition("=")[2]), check=False).returncode == OK
        # The standby too finds all as it has to be.
        deep = agent(node, "validate", "--deep")
        assert (deep.returncode, deep.stderr) == (0, ""), deep.stdout

    # The way back is in it.
    agent(target, "takeover")
    assert agent(target, "-v", "syncupdate").returncode == 0
    assert agent(target, "validate", "--deep").returncode == 0


# --- on a terminal ----------------------------------------------------------------------------


class Terminal:
    """A program on a terminal of its own, and a person who answers its questions."""

    def __init__(self, node: Node, *words: str) -> None:
        self.fd, inside = pty.openpty()
        self.running = node.popen([AGENT, *words], stdin=inside, stdout=inside, stderr=inside)
        os.close(inside)
        self.said = ""

    def answer(self, question: str, text: str) -> None:
        """Wait until the program asks this, and type; what it said before is gone then."""
        self._listen(question)
        self.said = ""
        os.write(self.fd, f"{text}\n".encode())

    def end(self) -> int:
        """Listen until the program ends; return its exit status."""
        self._listen(None)
        os.close(self.fd)
        return self.running.wait(60)

    def _listen(self, question: str | None) -> None:
        while question is None or question not in self.said:
            if not select.select([self.fd], [], [], 60 * PATIENCE)[0]:
                pytest.fail(f"it says no more, and should ask {question}:\n{self.said}")
            try:
                heard = os.read(self.fd, 4096)
            except OSError:  # Linux: the other end is closed
                heard = b""
            if not heard and question is not None:
                pytest.fail(f"it ended, and should ask {question}:\n{self.said}")
            if not heard:
                return
            self.said += heard.decode().replace("\r\n", "\n")


def test_on_a_terminal_it_asks_shows_and_writes_only_what_is_agreed_to(bare: World) -> None:
    source, target = bare.nodes
    for agreed in (False, True):
        person = Terminal(source, "init", "sync_max_delay=30m")
        person.answer("service", SERVICE)
        person.answer("nodes", f"{OSOL1}, {OSOL2}")
        person.answer(f"src, the dataset that {OSOL1} sends", SRC)
        person.answer("[the same]", DST)
        person.answer("recursive", "")
        person.answer("[y/N]", "y" if agreed else "")
        code = person.end()
        assert (code, source.path(FILE).exists()) == ((0, True) if agreed else (2, False))
        if not agreed:
            [again] = re.findall("^the same without questions: (.*)$", person.said, re.MULTILINE)
    assert "*/15 * * * * root" in person.said
    by_person = source.path(FILE).read_bytes()
    source.path(FILE).unlink()
    source.run(shlex.split(again))
    assert source.path(FILE).read_bytes().split(b"\n") == by_person.split(b"\n")

    target.path(FILE).write_bytes(by_person)
    bare.sync()
    bare.assert_equal()
    bare.assert_check(OK)
    # A file that is there is never touched, and nothing is asked in vain.
    person = Terminal(source, "init")
    person.answer("service", SERVICE)
    assert (person.end(), "is there, and init changes no file" in person.said) == (2, True)
    assert source.path(FILE).read_bytes() == by_person


# --- what is not as it has to be --------------------------------------------------------------


class Fault(NamedTuple):
    """Something that is wrong with two nodes, and the words of the one line that tells it."""

    begin: Callable[[Node, Node], object]
    mend: Callable[[Node, Node], object]
    line: str


def hide(path: str) -> tuple[Callable[[Node, Node], object], Callable[[Node, Node], object]]:
    """Return how a file of the source's root goes away, and comes back."""
    return (
        lambda source, _: source.path(path).rename(source.path(f"{path}.away")),
        lambda source, _: source.path(f"{path}.away").rename(source.path(path)),
    )


def inside(number: int, *command: str) -> Callable[[Node, Node], object]:
    """Return how a command is run on the source (0) or the target (1)."""
    return lambda *nodes: nodes[number].run(command)


FAULTS = {
    "no key": Fault(
        *hide("/root/.ssh/id_ed25519"),
        rf"{OSOL2}: ssh: .*Permission denied.*; next: ssh-copy-id {OSOL2}; .*",
    ),
    "unknown host key": Fault(
        *hide("/root/.ssh/known_hosts"),
        rf"{OSOL2}: ssh: Host key verification failed\.; next: ssh {OSOL2} true, .*",
    ),
    "changed host key": Fault(
        lambda _, target: target.change_host_key(),
        lambda _, target: target.restore_host_key(),
        rf"{OSOL2}: ssh: .*; next: if .* anew: ssh-keygen -R {OSOL2}; then ssh {OSOL2} true, .*",
    ),
    "no sshd": Fault(
        lambda _, target: target.stop_ssh(),
        lambda _, target: target.start_ssh(),
        rf"{OSOL2}: ssh: .*Connection refused; next: start sshd there, .*",
    ),
    "no address": Fault(
        inside(0, "mount", "--bind", "/dev/null", "/etc/hosts"),
        inside(0, "umount", "/etc/hosts"),
        rf"{OSOL2}: ssh: .*Could not resolve .*; next: write its address into /etc/hosts, .*",
    ),
    "no zfs": Fault(
        inside(1, "mount", "--bind", "/dev/null", "/usr/sbin/zfs"),
        inside(1, "umount", "/usr/sbin/zfs"),
        rf"{OSOL2}: zfs: there is no program zfs; next: .*zfs@{OSOL2} = /path/to/zfs",
    ),
    "no zfs here": Fault(
        inside(0, "mount", "--bind", "/dev/null", "/usr/sbin/zfs"),
        inside(0, "umount", "/usr/sbin/zfs"),
        rf"{OSOL1}: zfs: there is no program zfs; next: .*",
    ),
    "no pool": Fault(
        lambda _, target: target.export_pool("osol2_z3_root"),
        lambda _, target: target.import_pool("osol2_z3_root"),
        rf"{OSOL2}: {SERVICE}/sync#1: dst {DST}: there is no pool osol2_z3_root; next: zpool"
        r" import osol2_z3_root there, .*",
    ),
    "no src": Fault(
        lambda source, _: source.zfs("rename", SRC, f"{SRC}.away"),
        lambda source, _: source.zfs("rename", f"{SRC}.away", SRC),
        rf"{OSOL1}: {SERVICE}/sync#1: src {SRC}: does not exist; next: zfs create -p {SRC}; .*",
    ),
    "another's dst": Fault(
        lambda _, target: target.zfs("create", DST),
        lambda _, target: target.zfs("destroy", DST),
        rf"{OSOL2}: {SERVICE}/sync#1: dst {DST}: exists, and is not a replica.*; next: write .*",
    ),
    "state folder": Fault(
        inside(1, "mount", "-t", "tmpfs", "-o", "ro", "tmpfs", STATE_DIR),
        inside(1, "umount", STATE_DIR),
        rf"{OSOL2}: state folder {STATE_DIR}: root cannot write to {STATE_DIR}; next: .*",
    ),
    "state folder here": Fault(
        inside(0, "mount", "-t", "tmpfs", "-o", "ro", "tmpfs", STATE_DIR),
        inside(0, "umount", STATE_DIR),
        rf"{OSOL1}: state folder {STATE_DIR}: root cannot write to {STATE_DIR}; next: .*",
    ),
    "clock": Fault(
        lambda _, target: set_date(target, -DAY),
        lambda _, target: target.clear_faults("date"),
        rf"{OSOL2}: clock: 8640\d s behind this node's; next: date on both; .*",
    ),
    "another file": Fault(
        lambda _, target: target.path(FILE).write_text("[sync#1]\ntype = docker\n"),
        lambda _, target: target.path(FILE).unlink(),
        rf"{OSOL2}: service file {FILE}: differs from the one here, first in line 1; next: ssh"
        rf" {OSOL2} 'cat {FILE}'; .*",
    ),
}


def test_what_is_wrong_is_one_line_that_says_what_to_type_and_nothing_is_written(
    bare: World,
) -> None:
    source, target = bare.nodes
    init(source, *WORDS)
    text = source.path(FILE).read_text()
    source.path(FILE).unlink()
    for name, fault in FAULTS.items():
        fault.begin(source, target)
        before = [contents(node) for node in bare.nodes]
        made = init(source, *WORDS)
        first, *rest = made.stderr.splitlines()
        assert re.fullmatch(fault.line, first), f"{name}: {made.stderr}"
        assert (made.returncode, len(rest), rest[-1]) == (
            2,
            2,
            "zfs_sync_agent: init: nothing was written",
        ), f"{name}: {made.stderr}"
        assert [contents(node) for node in bare.nodes] == before, name

        source.path(FILE).write_text(text)
        if name != "another file":
            target.path(FILE).write_text(text)
        if name == "clock":  # it struck once
            fault.begin(source, target)
        before = [contents(node) for node in bare.nodes]
        deep = agent(source, "validate", "--deep")
        assert len(deep.stderr.splitlines()) == 1, f"{name}: {deep.stderr}"
        [line] = deep.stderr.splitlines()
        assert (deep.returncode, bool(re.fullmatch(fault.line, line))) == (2, True), (
            f"{name}: {line}"
        )
        assert [contents(node) for node in bare.nodes] == before, name
        fault.mend(source, target)
        source.path(FILE).unlink()
        target.path(FILE).unlink(missing_ok=True)
    made = init(source, *WORDS)
    assert (made.returncode, made.stderr) == (0, "")
    # Here the other node is one that sends some day: it needs the file.
    deep = agent(source, "validate", "--deep")
    missing = rf"{OSOL2}: service file {FILE}: is not there; next: (.*)\n"
    copying = re.fullmatch(missing, deep.stderr)
    assert copying, deep.stderr
    source.run(["/bin/sh", "-c", copying[1]])
    assert agent(source, "validate", "--deep").returncode == 0


def test_a_user_without_rights_is_told_the_line_for_sudoers(bare: World) -> None:
    source, target = bare.nodes
    target.run(["usermod", "--shell", "/bin/sh", "backup"])
    folder = target.inside("/var/backups/.ssh")
    folder.mkdir()
    (folder / "authorized_keys").write_text(f"{source.public_key}\n")
    words = (*WORDS, f"sudo@{OSOL2}=True", "ssh=ssh -l backup")

    def told() -> list[str]:
        result = init(source, *words)
        return [line for line in result.stderr.splitlines() if "init:" not in line]

    state, zfs = told()
    assert state.startswith(f"{OSOL2}: state folder {STATE_DIR}: backup cannot write to ")
    target.run(["chown", "backup", STATE_DIR])
    told_of = re.fullmatch(rf"{OSOL2}: zfs: sudo: .*; next: visudo there: (.*)", zfs)
    assert told_of, zfs
    add_lines(target.inside("/etc/sudoers"), told_of[1])
    assert told() == []
    target.path(FILE).write_text(source.path(FILE).read_text())
    assert agent(source, "validate", "--deep").returncode == 0
    bare.sync()
    bare.assert_equal()
    bare.assert_check(OK)
