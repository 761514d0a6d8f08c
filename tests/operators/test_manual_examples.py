"""The manuals' examples, typed as they stand there, on the nodes that they speak of.

A block of examples is known by the sentence above it. Each must be run here: one that is new in a
manual, and unknown here, is a failure.
"""

from __future__ import annotations

import re
import shlex

from tests.e2e.test_failover import mount, unmount
from tests.e2e.world import CONFIG_DIR, OK, World
from tests.operators.conftest import CONTRIB, REPOSITORY

# What every configuration of Icinga has, for those of its files that the manual speaks of.
SHIPPED = ("command", "services")
ICINGA = """
const PluginDir = "/usr/lib/nagios/plugins"
const PluginContribDir = PluginDir
const ManubulonPluginDir = PluginDir
include <itl>
include <plugins>
template Host "generic-host" { check_command = "hostalive", zone = "osol2.opensvc.com" }
template Service "generic-service" { zone = "osol2.opensvc.com" }
object Endpoint "osol2.opensvc.com" {}
object Zone "osol2.opensvc.com" { endpoints = [ "osol2.opensvc.com" ] }
"""
PROMPT = re.compile(r"(?:(osol\d))?[#$] (.*)")


def examples(page: str) -> dict[str, list[str]]:
    """Return the examples of a manual by the text above them, as its source has it."""
    chapter = (REPOSITORY / "man" / page).read_text().partition(".Sh EXAMPLES\n")[2]
    found: dict[str, list[str]] = {}
    text, literal = "", False
    for line in chapter.partition("\n.Sh ")[0].splitlines():
        shown = line.removeprefix(".Dl ")
        if line.startswith(".Bd -literal"):
            literal = True
        elif line == ".Ed":
            literal = False
        elif literal or shown != line:
            found.setdefault(text, []).append(shown)
        elif line == ".Pp" or text in found:
            text = line.removeprefix(".Pp")
        else:
            text = f"{text} {line}".strip()
    return found


class Chapter:
    """The examples of one manual, each taken once, by how the sentence above it begins."""

    def __init__(self, page: str, world: World) -> None:
        self._left = examples(page)
        self._nodes = {node.short_name: node for node in world.nodes}

    def take(self, beginning: str) -> list[str]:
        """Return the lines of one block."""
        [text] = [one for one in self._left if one.startswith(beginning)]
        return self._left.pop(text)

    def type(self, beginning: str, on: str = "osol1") -> list[str]:
        """Type the lines of one block, as root on the node of the prompt; each exits with 0."""
        return [self._typed(line, on) for line in self.take(beginning)]

    def _typed(self, line: str, on: str) -> str:
        match = PROMPT.fullmatch(line)
        assert match, f"no command: {line}"
        result = self._nodes[match[1] or on].run(["/bin/sh", "-c", match[2]], check=False)
        said = f"{line}\n{result.stdout}{result.stderr}"
        assert result.returncode == 0, said
        return said

    def is_used_up(self) -> bool:
        """Whether every block was taken."""
        assert not self._left, f"in no test: {list(self._left)}"
        return True


def set_up_anew(manual: Chapter, world: World) -> None:
    """Let init write the service file that is there, which it never does; put it back then."""
    osol1, file = world.source, f"{CONFIG_DIR}/{world.service}.conf"
    text = osol1.path(file).read_text()
    for node in world.nodes:
        node.path(file).unlink()
    lines = manual.take("A service of two nodes")
    [init] = " ".join(line.removesuffix("\\e") for line in lines).split("osol1# ")[1:]
    osol1.run(["/bin/sh", "-c", init])
    osol1.run(["zfs_sync_agent", "validate"])
    osol1.path(file).unlink()
    world.configure(text)


def test_the_agents_examples_do_what_the_manual_says(installed: World) -> None:
    world = installed
    osol1, osol2 = world.nodes
    manual = Chapter("zfs_sync_agent.8", world)

    [said] = manual.type("Is all as it has to be")
    assert world.dst in said
    set_up_anew(manual, world)

    before = world.picture(osol1), world.picture(osol2)
    [said] = manual.type("What would a run do?")
    assert "zfs snapshot -r" in said
    [said] = manual.type("What would a new full copy cost?")
    assert f"{world.dst}.full" in said
    assert (world.picture(osol1), world.picture(osol2)) == before

    [said] = manual.type("One resource to one target")
    assert re.search("INFO - .*zfs snapshot -r ", said)
    world.assert_equal()

    # By hand, and not by the block's `zfs mount -a` alone: zfs-fuse wants another mountpoint to see
    # that readonly is off.
    unmount(osol1, world.src)
    manual.type("Switch the roles")
    mount(osol2, world.dst)
    osol2.write(world.dst, "taken-over", b"no longer readonly")
    world.sync(node=osol2)
    world.assert_check(OK)
    assert world.prop(osol1, "zfs_sync:replica", world.src).value.startswith(osol2.name)
    # "The way back is the same with the nodes exchanged."
    unmount(osol2, world.dst)
    world.sync(node=osol2)
    world.agent("takeover", node=osol1)
    world.sync()
    world.assert_equal()

    mount(osol1, world.src)
    osol1.write(world.src, "unsent", b"never sent")
    manual.type("osol1 has failed")
    refused = world.sync(node=osol2, expect=3)
    assert "syncresync" in refused.stderr
    unmount(osol1, world.src)
    manual.type("When osol1 is back")
    kept = min(name for name in world.datasets(osol1, "osol1_z3_root") if "unsent" in name)
    mount(osol1, f"osol1_z3_root{kept}")
    assert "unsent" in osol1.checksums(f"osol1_z3_root{kept}")
    world.assert_check(OK)

    # "Once nobody needs the old tree": its clones would keep the base from being forgotten.
    osol1.zfs("destroy", "-r", f"osol1_z3_root{kept}")
    world.agent("takeover", node=osol1)
    world.sync()
    for node in world.nodes:
        node.path(f"{CONFIG_DIR}/{world.service}.conf").unlink()
    manual.type("osol2 is no longer in the service file")
    assert world.state_text(osol1) is None
    assert manual.is_used_up()


def test_the_checks_examples_do_what_the_manual_says(installed: World) -> None:
    manual = Chapter("check_zfs_sync.1", installed)
    [said] = manual.type("All of this node's replicas", on="osol2")
    assert "snapshot of" in said
    manual.type("A warning after 26 hours", on="osol2")
    for line in manual.take("All replicas, and one resource, by NRPE"):
        command = line.partition("]=")[2]
        assert installed.target.run(shlex.split(command)).returncode == OK

    host = (
        "define host {\n use generic-host\n max_check_attempts 5\n host_name osol2.opensvc.com\n}"
    )
    objects = [host, *manual.take("Nagios asks for them")]
    file = installed.target.inside("/etc/nagios4/conf.d/zfs_sync.cfg")
    file.write_text("\n".join(objects) + "\n")
    believed = ["nagios4", "-v", "/etc/nagios4/nagios.cfg"]
    said = installed.target.run(believed, check=False).stdout
    assert "Total Errors:   0" in said, said

    shipped = [(CONTRIB / f"icinga2/zfs_sync_{name}.conf").read_text() for name in SHIPPED]
    objects = [ICINGA, *shipped, *manual.take("Icinga 2: the folder")]
    file = installed.target.inside("/etc/icinga2.conf")
    file.write_text("\n".join(objects) + "\n")
    believed = ["icinga2", "daemon", "--validate", "--config", "/etc/icinga2.conf"]
    said = installed.target.run(believed, check=False).stdout
    assert "Instantiated 2 Services." in said, said
    assert manual.is_used_up()
