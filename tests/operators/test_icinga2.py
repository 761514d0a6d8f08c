"""contrib/icinga2, tried with Icinga 2: a master on osol1, and four ways to the check on osol2.

What is asserted is Icinga's own view, the answers of its API; all of them are kept in
build/operators/icinga2.txt. Decides nothing about Icinga: it is set up by its own commands, on top
of what Debian's packages configure.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from check_zfs_sync import plugin
from tests.e2e.conftest import OSOL1, OSOL2
from tests.e2e.world import CRITICAL, OK, RID, SERVICE, UNKNOWN, WARNING, World
from tests.lab import Node
from tests.lab.errors import CommandError, LabError
from tests.lab.process import eventually
from tests.operators.conftest import CONTRIB, PLUGIN, REPOSITORY, Start, let_time_pass
from tests.operators.nrpe import start_nrpe

ICINGA = CONTRIB / "icinga2"
CONFIG = "/etc/icinga2"
CERTS = "/var/lib/icinga2/certs"
CURLRC = "/etc/zfs_sync/icinga2.curlrc"
TRANSCRIPT = REPOSITORY / "build" / "operators" / "icinga2.txt"
HOLDS = 600  # seconds, of a passive result
PLUGINS = "/usr/lib/nagios/plugins"

RESOURCE = f"zfs_sync {SERVICE}/{RID}"
PASSIVE = f"{OSOL2}!{RESOURCE} passive"
# By the master itself, by its agent, by ssh, by NRPE.
ACTIVE = [
    f"{OSOL1}!zfs_sync all",
    f"{OSOL1}!{RESOURCE}",
    f"{OSOL2}!{RESOURCE}",
    f"{OSOL2}!{RESOURCE} by ssh",
    f"{OSOL2}!{RESOURCE} by NRPE",
]

EVERY_WORD = (
    *("--service", "z3.opensvc.com", "--service", "web"),
    *("--rid", "sync#1", "--target", "osol2", "--warning", "~:26h", "--critical", "3d"),
    *("--failed", "warning", "--state-dir", "/var/lib/zfs_sync", "--config-dir", "/etc/zfs_sync"),
    *("--verify", "--timeout", "20", "--verbose"),
)
EVERY_OPTION = f"""
template Service "every option" {{
    import "generic-service"
    vars += {{
        zfs_sync_service = [ "z3.opensvc.com", "web" ]
        zfs_sync_rid = [ "sync#1" ]
        zfs_sync_target = "osol2"
        zfs_sync_warning = "~:26h"
        zfs_sync_critical = "3d"
        zfs_sync_failed = "warning"
        zfs_sync_state_dir = "/var/lib/zfs_sync"
        zfs_sync_config_dir = "/etc/zfs_sync"
        zfs_sync_verify = true
        zfs_sync_timeout = 20
        zfs_sync_verbose = true
    }}
}}
object Service "every option" {{
    import "every option"
    host_name = "{OSOL1}"
    check_command = "zfs_sync"
}}
object Service "every option by ssh" {{
    import "every option"
    host_name = "{OSOL2}"
    check_command = "zfs_sync_by_ssh"
}}
"""

API_USER = """
object ApiUser "zfs_sync" {
    password = "of the passive results"
    permissions = [ "actions/process-check-result" ]
}
"""

AGENT = f"""
object Endpoint "{OSOL2}" {{}}
object Zone "{OSOL2}" {{
    endpoints = [ "{OSOL2}" ]
    parent = "master"
}}
"""

# A host of an Icinga without agents.
OWN_HOST = """
object Host "osol1.opensvc.com" {
    import "generic-host"
    vars.zfs_sync["all"] = {}
    vars.zfs_sync_by_ssh["by ssh"] = {}
    vars.zfs_sync_nrpe["by NRPE"] = { nrpe_command = "check_zfs_sync" }
    vars.zfs_sync_passive["passive"] = {}
}
"""

Answer: TypeAlias = dict[str, Any]


def icinga2(node: Node, *arguments: str) -> str:
    return node.run(["/usr/sbin/icinga2", *arguments]).stdout


def put(node: Node, source: Path | str, place: str, owner: str = "root:nagios") -> None:
    """Copy a file, or write a text, to a place in a node, as an operator would."""
    file = node.inside(place)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source.read_text() if isinstance(source, Path) else source)
    file.chmod(0o640)
    node.run(["chown", owner, place])


class Master:
    """Icinga 2's master on a node, told and asked by its API only."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def set_up(self) -> None:
        """Make it a master, with contrib/ where its comments say."""
        node, zones = self.node, f"{CONFIG}/zones.d"
        prepare(node)
        icinga2(node, "node", "setup", "--master", "--cn", node.name)
        for example in ("hosts", "services"):
            node.inside(f"{CONFIG}/conf.d/{example}.conf").unlink()
        put(node, ICINGA / "zfs_sync_command.conf", f"{zones}/global-templates/zfs_sync.conf")
        put(node, ICINGA / "zfs_sync_services.conf", f"{zones}/master/services.conf")
        put(node, ICINGA / "zfs_sync_hosts.conf", f"{zones}/master/hosts.conf")
        put(node, EVERY_OPTION, f"{zones}/master/every_option.conf")
        for name, text in (("conf.d/api-users.conf", API_USER), ("zones.conf", AGENT)):
            with node.inside(f"{CONFIG}/{name}").open("a") as file:
                file.write(text)

    @property
    def password(self) -> str:
        """The password that the set-up has made for the API's root."""
        users = self.node.inside(f"{CONFIG}/conf.d/api-users.conf").read_text()
        return users.partition('password = "')[2].partition('"')[0]

    def ask(self, path: str, data: Mapping[str, object], method: str) -> list[Any]:
        """Ask the API and return its results."""
        user = ["--user", f"root:{self.password}", "--cacert", f"{CERTS}/ca.crt"]
        headers = ["-H", "Accept: application/json", "-H", f"X-HTTP-Method-Override: {method}"]
        url = f"https://{self.node.name}:5665/v1/{path}"
        curl = ["/usr/bin/curl", "-sS", "--fail-with-body", *user, *headers, "-d", "@-", url]
        results = json.loads(self.node.run(curl, input=json.dumps(data)).stdout)["results"]
        assert isinstance(results, list)
        return results

    def is_up(self) -> bool:
        """Whether the API answers."""
        try:
            return bool(self.ask("status/ApiListener", {}, "GET"))
        except CommandError:
            return False

    def service(self, name: str) -> Answer:
        """Return what Icinga knows of a service."""
        wanted = {"service": name, "attrs": ["state", "last_check_result"]}
        (found,) = self.ask("objects/services", wanted, "GET")
        return dict(found["attrs"])

    def check(self, name: str, seconds: float = 20) -> Answer:
        """Have a service checked now; return what Icinga knows of it then."""
        began = time.time()
        order = {"type": "Service", "service": name, "force": True}
        self.ask("actions/reschedule-check", order, "POST")
        seen: Answer = {}

        def is_new() -> bool:
            seen.update(self.service(name))
            result = seen["last_check_result"]
            return bool(result) and result["execution_start"] >= began

        eventually(f"a new result of {name}", is_new, seconds)
        return seen

    def figures(self, service: Answer) -> dict[str, Answer]:
        """Return by label what Icinga reads in a service's performance data."""
        texts = service["last_check_result"]["performance_data"]
        calls = ", ".join(f"parse_performance_data({json.dumps(text)})" for text in texts)
        (answer,) = self.ask("console/execute-script", {"command": f"[{calls}]"}, "POST")
        return {str(one["label"]): dict(one) for one in answer["result"]}

    def tell(self, step: str, *names: str) -> None:
        """Write to the transcript what Icinga says of services."""
        with TRANSCRIPT.open("a") as file:
            file.write(f"=== {step}\n")
            for name in names:
                service = self.service(name)
                result = service["last_check_result"]
                told = {key: result[key] for key in ("check_source", "output", "performance_data")}
                view = {"service": name, "state": service["state"], **told}
                file.write(f"{json.dumps(view, indent=1)}\n")


def prepare(node: Node) -> None:
    """Do what the package and its unit have done on a real host, and link the check as told."""
    # Of the machine's own folders a node only reads.
    node.run(["mkdir", "-p", "/run/plugins/upper", "/run/plugins/work"])
    layers = f"lowerdir={PLUGINS},upperdir=/run/plugins/upper,workdir=/run/plugins/work"
    node.run(["mount", "-t", "overlay", "overlay", PLUGINS, "-o", layers])
    node.run(["ln", "-s", PLUGIN, f"{PLUGINS}/"])
    node.run(["/usr/lib/icinga2/prepare-dirs", "/usr/lib/icinga2/icinga2"])
    # Icinga's library cannot copy a file from a lower layer of the node's overlay.
    node.run(["find", CONFIG, "-type", "f", "-exec", "touch", "{}", "+"])


@pytest.fixture
def master(installed: World, start: Start, tmp_path: Path) -> Master:
    """A running master on osol1."""
    master = Master(installed.source)
    if not master.node.inside(f"{CERTS}/ca.crt").exists():
        master.set_up()
    log = tmp_path / "master.log"
    start(master.node, "/usr/sbin/icinga2", "daemon", log=log)
    wait_until("the master is up", master.is_up, log)
    return master


def wait_until(what: str, condition: Callable[[], bool], log: Path) -> None:
    """Wait for a daemon; its log tells why it is not as it should be."""
    try:
        eventually(what, condition, 60)
    except LabError as late:
        pytest.fail(f"{late}\n{log.read_text()}")


def set_up_agent(master: Master, node: Node, start: Start, log: Path) -> None:
    """Make a node an agent of the master, as Icinga's manual says, and start it."""
    prepare(node)
    trusted = f"{CERTS}/trusted-parent.crt"
    node.run(["install", "-o", "nagios", "-g", "nagios", "-m", "700", "-d", CERTS])
    icinga2(node, "pki", "save-cert", "--host", OSOL1, "--trustedcert", trusted)
    ticket = icinga2(master.node, "pki", "ticket", "--cn", node.name).strip()
    parent = ["--parent_zone", "master", "--parent_host", OSOL1, "--trustedcert", trusted]
    itself = ["--cn", node.name, "--zone", node.name, "--endpoint", f"{OSOL1},{OSOL1},5665"]
    accepts = ["--accept-config", "--accept-commands", "--disable-confd"]
    icinga2(node, "node", "setup", "--ticket", ticket, *itself, *parent, *accepts)

    def answers() -> bool:
        try:
            return bool(master.check(f"{OSOL2}!{RESOURCE}", seconds=2)["state"] != UNKNOWN)
        except LabError:
            return False  # not connected yet, or it reloads with the command that it was sent

    start(node, "/usr/sbin/icinga2", "daemon", log=log)
    wait_until("the agent runs checks", answers, log)


def set_up_ssh(master: Node, node: Node) -> None:
    """Let Icinga's user log in to a node, as the user nagios there."""
    home = "/var/lib/nagios/.ssh"
    for host in (master, node):
        host.run(["install", "-o", "nagios", "-g", "nagios", "-m", "700", "-d", home])
    master.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{home}/id_ed25519"])
    master.run(["cp", "/root/.ssh/known_hosts", home])
    master.run(["chown", "-R", "nagios:nagios", home])
    put(node, master.inside(f"{home}/id_ed25519.pub"), f"{home}/authorized_keys", owner="nagios")
    node.run(["usermod", "--shell", "/bin/sh", "--password", "*", "nagios"])


def set_up_passive(master: Node, node: Node) -> None:
    """Give a node what zfs_sync_push_icinga2 needs."""
    url = f"https://{OSOL1}:5665/v1/actions/process-check-result"
    user, ca = "zfs_sync:of the passive results", "/etc/zfs_sync/icinga2-ca.crt"
    put(node, f'url = "{url}"\nuser = "{user}"\ncacert = "{ca}"\n', CURLRC, owner="nagios")
    put(node, master.inside(f"{CERTS}/ca.crt"), ca, owner="nagios")
    put(node, ICINGA / "zfs_sync_push_icinga2", "/usr/local/bin/zfs_sync_push_icinga2")
    node.run(["chmod", "755", "/usr/local/bin/zfs_sync_push_icinga2"])


def hand_in(node: Node, seconds: int, service: str = PASSIVE) -> tuple[int, str]:
    """Run zfs_sync_push_icinga2 as its user; return its exit status and all that it says."""
    command = ["/usr/local/bin/zfs_sync_push_icinga2", *service.split("!"), str(seconds)]
    options = ["-v", "-s", SERVICE, "-r", RID]
    result = node.run(["runuser", "-u", "nagios", "--", *command, *options], check=False)
    return result.returncode, result.stdout + result.stderr


# --- the files ----------------------------------------------------------------------------------


def test_icinga_as_debian_configures_it_accepts_the_files(installed: World) -> None:
    node, place = installed.target, "/etc/icinga2-of-debian"
    shutil.copytree(CONFIG, node.inside(place), symlinks=True)
    for name in ("command", "services"):
        put(node, ICINGA / f"zfs_sync_{name}.conf", f"{place}/conf.d/zfs_sync_{name}.conf")
    put(node, OWN_HOST, f"{place}/conf.d/hosts.conf")
    node.run(["chown", "-R", "nagios:nagios", place])
    file = f"{place}/icinga2.conf"
    said = icinga2(node, "daemon", "-C", "-c", file, "-D", f"ConfigDir={place}")
    assert "critical" not in said
    assert "Instantiated 4 Services." in said


def test_every_option_of_the_check_is_an_argument_and_reaches_it(master: Master) -> None:
    (command,) = master.ask("objects/checkcommands", {"checkcommand": "zfs_sync"}, "GET")
    arguments = command["attrs"]["arguments"]
    # The others are no check, or not in Icinga's format.
    others = {"--help", "--version", "--checkmk", "--json"}
    actions = [one for one in plugin._parser()._actions if one.option_strings[-1] not in others]
    assert sorted(arguments) == sorted(one.option_strings[-1] for one in actions)
    for one in actions:
        argument = arguments[one.option_strings[-1]]
        variable = f"$zfs_sync_{one.dest}$"
        assert argument.pop("description")
        if one.nargs == 0:
            assert argument == {"set_if": variable}
        elif isinstance(one.default, list):
            assert argument == {"value": variable, "repeat_key": True}
        else:
            assert argument == {"value": variable}

    service = master.check(f"{OSOL1}!every option")
    given = service["last_check_result"]["command"]
    by_ssh = master.check(f"{OSOL2}!every option by ssh")["last_check_result"]["command"]
    typed = shlex.split(by_ssh[by_ssh.index("-C") + 1])
    assert (given[0], typed[0]) == (f"{PLUGINS}/check_zfs_sync", PLUGIN)
    for words in (given, typed):
        assert plugin.parse_arguments(words[1:]) == plugin.parse_arguments(EVERY_WORD)
    lag = master.figures(service)[f"{SERVICE}/{RID}/{OSOL2}_lag"]
    assert (lag["warn"], lag["crit"]) == (26 * 3600, 3 * 86400)


# --- what Icinga shows --------------------------------------------------------------------------


def test_icinga_shows_the_state_of_replicas_whichever_way_it_asks(
    master: Master, installed: World, start: Start, tmp_path: Path
) -> None:
    world, source, target = installed, installed.source, installed.target
    set_up_agent(master, target, start, tmp_path / "agent.log")
    set_up_ssh(source, target)
    start_nrpe(target, source, start, tmp_path / "nrpe.log")
    set_up_passive(source, target)
    TRANSCRIPT.parent.mkdir(parents=True, exist_ok=True)
    TRANSCRIPT.write_text("")

    def show(step: str, state: int, words: str) -> None:
        assert hand_in(target, HOLDS) == (0, "")
        for name in ACTIVE:
            master.check(name)
        master.tell(step, *ACTIVE, PASSIVE)
        for name in (*ACTIVE, PASSIVE):
            service = master.service(name)
            assert (name, service["state"]) == (name, state)
            assert words in service["last_check_result"]["output"]
            assert_whole(master.figures(service), world)

    show("synchronized", OK, f"OK - 1 replica: {SERVICE}/{RID} to osol2 ")
    let_time_pass(world, 26 * 3600)
    show("26 hours later", WARNING, f"WARNING - 1 of 1 late: {SERVICE}/{RID} to osol2 26h ")
    source.zfs("destroy", "-r", f"{world.src}@sent")
    world.sync(expect=3)
    show("broken", CRITICAL, f"CRITICAL - 1 of 1 broken: {SERVICE}/{RID} to osol2 broken, 26h ")
    world.agent("-s", SERVICE, "--rid", RID, "--node", OSOL2, "syncfull")
    show("mended by syncfull", OK, f"OK - 1 replica: {SERVICE}/{RID} to osol2 ")

    assert master.service(PASSIVE)["last_check_result"]["ttl"] == HOLDS
    assert hand_in(target, 1) == (0, "")
    eventually("no result came in time", lambda: master.service(PASSIVE)["state"] == UNKNOWN, 30)
    master.tell("no result came in time", PASSIVE)
    assert "no result came" in master.service(PASSIVE)["last_check_result"]["output"]
    status, said = hand_in(target, 1, f"{OSOL2}!none of that name")
    assert status == 1
    assert f"did not take the result of {OSOL2}!none of that name" in said


def assert_whole(figures: dict[str, Answer], world: World) -> None:
    """Assert that Icinga has all figures, with their units and thresholds."""
    name = f"{SERVICE}/{RID}/{OSOL2}"
    entry = world.entry(world.target)
    success = entry["last_success"]
    age = time.time() - entry["snapshot"]["creation"]
    lag = figures[f"{name}_lag"]["value"]
    assert abs(age - lag) < 60
    found = {
        label: (one["value"], one["unit"], one["warn"], one["min"])
        for label, one in figures.items()
    }
    assert found == {
        f"{name}_lag": (lag, "seconds", 25 * 3600, 0),
        f"{name}_bytes": (success["bytes"], "bytes", None, 0),
        f"{name}_duration": (success["finished"] - success["started"], "seconds", None, 0),
    }
