"""What the other tests take for granted about the lab. Says nothing about the project itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import testlab
from .errors import CommandError, LabError
from .host import REPOSITORY
from .node import Node, Pool
from .process import Running, eventually
from .testlab import PREFIX, Lab, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

A, B = "osol1.opensvc.com", "osol2.opensvc.com"
QUICK = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=1"]
SMALL = Pool(size_mib=96)
SMALL_TARGET = Pool(mount=False, size_mib=96)


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Node]]:
    with Lab() as lab:
        yield lab.nodes({A: {"tank": SMALL}, B: {"tank": SMALL_TARGET}})


@pytest.fixture
def a(nodes: list[Node]) -> Node:
    nodes[0].reset()
    return nodes[0]


@pytest.fixture
def b(nodes: list[Node]) -> Node:
    nodes[1].reset()
    return nodes[1]


def replicate(source: Node, snapshot: str, target: Node, dataset: str) -> None:
    command = f"zfs send -R {snapshot} | ssh {target.name} zfs receive -u {dataset}"
    source.run(["/bin/sh", "-c", command])


def make_tree(node: Node) -> None:
    for dataset in ("tank/data", "tank/data/child"):
        node.zfs("create", dataset)
        node.write(dataset, "folder/file", dataset.encode())
    node.zfs("snapshot", "-r", "tank/data@one")


def busy_tree(node: Node) -> None:
    node.zfs("create", "tank/data")
    node.write("tank/data", "large", os.urandom(20 << 20))
    node.zfs("snapshot", "-r", "tank/data@one")


def processes_of(lab: Lab) -> set[Path]:
    """Name every process in the lab's pid namespace by a path that only it ever has."""
    if not Path(f"/proc/{lab.pid}").exists():
        return set()
    own = Path(f"/proc/{lab.pid}/ns/pid").stat().st_ino
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "ns/pid").stat().st_ino == own:
                found.add(folder)
        except OSError:
            continue
    return found


def test_two_nodes_own_pools_of_the_same_name(a: Node, b: Node) -> None:
    a.zfs("create", "tank/only-here")
    assert "tank/only-here" in a.zfs("list", "-H", "-o", "name").split()
    assert b.zfs("list", "-H", "-o", "name").split() == ["tank"]


def test_a_source_pool_is_mounted_and_a_target_pool_is_not(a: Node, b: Node) -> None:
    assert a.zfs("get", "-H", "-o", "value", "mounted", "tank").strip() == "yes"
    assert b.zfs("get", "-H", "-o", "value", "mountpoint", "tank").strip() == "none"


@pytest.mark.parametrize("name", [B, "osol2"])
def test_a_node_reaches_another_by_its_full_and_its_short_name(a: Node, b: Node, name: str) -> None:
    assert a.run(["ssh", *QUICK, name, "cat /proc/sys/kernel/hostname"]).stdout.strip() == b.name


def test_a_command_that_fails_is_told_with_its_own_words(a: Node) -> None:
    with pytest.raises(CommandError, match=r"exit status 7\nstdout: out\n\nstderr: err\n") as error:
        a.run(["/bin/sh", "-c", "echo out; echo err >&2; exit 7"])
    assert error.value.returncode == 7


def test_a_command_that_takes_too_long_is_killed_and_told(a: Node) -> None:
    with pytest.raises(LabError, match="took more than"):
        a.run(["sleep", "600"], timeout=0.2)
    assert not a.strays()


def test_a_wrong_host_key_is_refused_until_it_is_restored(a: Node, b: Node) -> None:
    b.change_host_key()
    refused = a.run(["ssh", *QUICK, B, "true"], check=False)
    assert refused.returncode == 255
    assert "Host key verification failed" in refused.stderr
    b.restore_host_key()
    a.run(["ssh", *QUICK, B, "true"])


def test_a_stopped_sshd_refuses_and_a_started_one_answers(a: Node, b: Node) -> None:
    b.stop_ssh()
    assert "Connection refused" in a.run(["ssh", *QUICK, B, "true"], check=False).stderr
    b.start_ssh()
    a.run(["ssh", *QUICK, B, "true"])


def test_a_cut_link_and_a_silent_drop_end_when_they_are_mended(a: Node, b: Node) -> None:
    b.cut()
    assert a.run(["ssh", *QUICK, B, "true"], check=False).returncode == 255
    b.mend()
    a.run(["ssh", *QUICK, B, "true"])
    b.drop()
    assert "timed out" in a.run(["ssh", *QUICK, B, "true"], check=False).stderr
    b.undrop()
    a.run(["ssh", *QUICK, B, "true"])


def test_a_raw_send_over_ssh_arrives_with_contents_and_guids(a: Node, b: Node) -> None:
    make_tree(a)
    replicate(a, "tank/data@one", b, "tank/copy")
    for dataset in ("", "/child"):
        sent = a.checksums(f"tank/data{dataset}@one")
        assert list(sent) == ["folder/file"]
        assert b.checksums(f"tank/copy{dataset}@one") == sent
        assert b.checksums(f"tank/copy{dataset}") == sent
    sent_guids = a.guids("tank/data")
    assert set(sent_guids) == {"tank/data@one", "tank/data/child@one"}
    assert list(b.guids("tank/copy").values()) == list(sent_guids.values())
    assert list(b.guids("tank/copy", recursive=False)) == ["tank/copy@one"]
    assert b.guids("tank/nothing") == {}


def test_looking_into_a_dataset_leaves_nothing_behind(a: Node) -> None:
    make_tree(a)
    before = a.zfs("list", "-H", "-t", "all", "-o", "name")
    a.zfs("unmount", "tank/data/child")
    assert list(a.checksums("tank/data/child")) == ["folder/file"]
    assert a.zfs("list", "-H", "-t", "all", "-o", "name") == before


def test_a_live_dataset_shows_what_was_written_since_the_snapshot(a: Node) -> None:
    make_tree(a)
    a.write("tank/data", "new", b"new")
    a.remove("tank/data", "folder/file")
    assert list(a.checksums("tank/data")) == ["new"]
    assert list(a.checksums("tank/data@one")) == ["folder/file"]


def test_a_wrapper_logs_local_and_remote_arguments_exactly(a: Node, b: Node) -> None:
    a.wrap("zfs")
    b.wrap("zfs")
    odd = ["get", "a b", "quote'\"", "line\nfeed", "", "é"]
    a.run(["zfs", *odd], check=False)
    a.run(["ssh", B, "zfs list -H"])
    assert a.calls("zfs") == [odd]
    assert b.calls("zfs") == [["list", "-H"]]
    b.clear_calls()
    assert b.calls("zfs") == []


def test_a_wrapped_program_keeps_its_pid_and_gets_its_signals(a: Node) -> None:
    a.wrap("sleep")
    program = a.popen(["sleep", "600"])
    eventually("sleep was called", lambda: a.calls("sleep"))
    assert a.execs("sleep")[0].pid == program.inside
    program.terminate()
    assert program.wait(10) == -signal.SIGTERM


def test_a_fault_fires_after_the_second_match_of_a_remote_command(a: Node, b: Node) -> None:
    fault = b.fault("zfs", ["create"], nth=2, do="zfs list -H -o name >/run/node/log/seen")
    for name in ("one", "two", "three"):
        assert not fault.fired or name == "three"
        a.run(["ssh", B, f"zfs list; zfs create tank/{name}"])
    assert fault.fired
    assert (b.root / "log/seen").read_text().split() == ["tank", "tank/one", "tank/two"]


def test_a_fault_may_come_before_or_instead_of_the_program(a: Node) -> None:
    a.fault("zfs", ["create"], when="before", do="zpool list -H -o name >/run/node/log/before")
    a.run(["zfs", "create", "tank/one"])
    assert (a.root / "log/before").read_text() == "tank\n"
    a.fault("zfs", ["destroy"], when="instead", do="echo no >&2; exit 3")
    refused = a.run(["zfs", "destroy", "tank/one"], check=False)
    assert (refused.returncode, refused.stderr) == (3, "no\n")
    a.zfs("destroy", "tank/one")


def test_a_fault_on_one_node_kills_a_process_on_another(a: Node, b: Node) -> None:
    victim = a.popen(["sleep", "600"])
    fault = b.fault("zfs", ["list"], do=f"kill -9 {victim.inside}")
    a.run(["ssh", B, "zfs list"])
    fault.wait()
    assert victim.wait(10) == -signal.SIGKILL


def test_holds_of_a_killed_send_are_released(a: Node) -> None:
    busy_tree(a)
    send = a.popen(["zfs", "send", "-R", "tank/data@one"], stdout=subprocess.PIPE)
    with send:
        assert send.stdout
        # The pipe fills up behind the first byte: the send cannot have ended by itself.
        os.read(send.stdout.fileno(), 1)
        send.kill()
    assert send.returncode == -signal.SIGKILL
    assert a.holds() == {"tank/data@one": 1}
    a.release_holds()
    assert a.holds() == {}
    a.zfs("destroy", "-r", "tank/data@one")


def test_syslog_is_collected_per_node(a: Node, b: Node) -> None:
    for number in range(50):
        a.run(["logger", "--tag", "test", f"message {number}"])
    messages = a.log()
    assert len(messages) == 50
    assert messages[-1].endswith("test: message 49")
    assert b.log() == []


def test_a_file_of_a_shared_folder_is_the_same_inside_and_outside(a: Node) -> None:
    a.path("/etc/zfs_sync/z3.conf").write_text("[DEFAULT]\n")
    assert a.run(["cat", "/etc/zfs_sync/z3.conf"]).stdout == "[DEFAULT]\n"
    a.run(["cp", "/etc/zfs_sync/z3.conf", "/var/lib/zfs_sync/copy"])
    assert a.path("/var/lib/zfs_sync/copy").read_text() == "[DEFAULT]\n"


@pytest.mark.parametrize("folder", ["/etc", "/root", "/root/.ssh", "/run", "/dev", "/var/lib"])
def test_what_a_node_writes_is_not_on_the_machine(a: Node, folder: str) -> None:
    a.run(["touch", f"{folder}/lab-was-here"])
    assert a.inside(f"{folder}/lab-was-here").exists()
    assert not (Path(folder) / "lab-was-here").exists()


def test_the_environment_is_clean_and_may_be_that_of_cron(a: Node) -> None:
    assert a.run(["printenv", "HOME"]).stdout == "/root\n"
    assert a.run(["printenv", "PATH"], env={"PATH": "/usr/bin:/bin"}).stdout == "/usr/bin:/bin\n"
    with pytest.raises(CommandError):
        a.run(["printenv", "SSH_AUTH_SOCK"])


def test_a_pool_can_go_and_come_back(a: Node) -> None:
    make_tree(a)
    a.export_pool("tank")
    assert a.run(["zfs", "list", "tank"], check=False).returncode == 1
    a.import_pool("tank")
    assert list(a.checksums("tank/data")) == ["folder/file"]


def test_pools_survive_the_death_of_the_zfs_daemon(a: Node) -> None:
    make_tree(a)
    a.kill_zfs()
    a.start_zfs()
    assert list(a.checksums("tank/data")) == ["folder/file"]


def test_reset_makes_a_used_node_as_good_as_new(a: Node) -> None:
    make_tree(a)
    a.wrap("zfs")
    a.run(["zfs", "list"])
    a.run(["logger", "old"])
    a.path("/etc/zfs_sync/old.conf").write_text("")
    a.stop_ssh()
    stray = a.popen(["tail", "-f", "/run/pools/tank/data/folder/file"])
    assert stray.outside in a.strays()
    a.reset()
    assert stray.wait(10) == -signal.SIGKILL
    assert a.zfs("list", "-H", "-t", "all", "-o", "name").split() == ["tank"]
    assert (a.calls("zfs"), a.log()) == ([], [])
    assert a.run(["ls", "/etc/zfs_sync", "/run/node/bin"]).stdout.split() == [
        "/etc/zfs_sync:",
        "/run/node/bin:",
    ]
    a.run(["ssh", *QUICK, A, "true"])


def test_a_node_that_joins_later_is_known_to_all(a: Node) -> None:
    with Lab() as lab:
        first = lab.node("first.example.com")
        second = lab.node("second.example.com")
        first.run(["ssh", *QUICK, "second.example.com", "ssh first.example.com true"])
        assert second.name in first.run(["cat", "/etc/hosts"]).stdout
    assert A in a.run(["cat", "/etc/hosts"]).stdout


def test_two_labs_run_in_parallel_with_the_same_names(a: Node) -> None:
    with Lab() as lab:
        twin = lab.node(A, {"tank": SMALL})
        twin.zfs("create", "tank/twin")
        assert a.zfs("list", "-H", "-o", "name").split() == ["tank"]
        a.zfs("create", "tank/first")
        assert twin.zfs("list", "-H", "-o", "name").split() == ["tank", "tank/twin"]
    a.run(["ssh", *QUICK, A, "zfs list tank/first"])


def test_nothing_of_a_lab_is_left_when_it_ends() -> None:
    with Lab() as lab:
        node = lab.node(A, {"tank": SMALL})
        node.popen(["setsid", "sleep", "600"])
        processes = processes_of(lab)
        assert len(processes) >= 4
    assert not [folder for folder in processes if folder.exists()]
    assert not lab.root.exists()


KILLED = f"""
import sys
from tests.lab import Lab
with Lab() as lab:
    node = lab.node({A!r}, {{"tank": "source"}})
    node.popen(["setsid", "sleep", "600"])
    print(lab.pid, lab.root, flush=True)
    sys.stdin.read()
"""


def test_a_killed_test_process_leaves_no_process_and_its_folder_is_swept() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as tester:
        assert tester.stdout
        pid, root = tester.stdout.readline().split()
        lab = Lab()
        lab.pid = int(pid)
        processes = processes_of(lab)
        names = {(folder / "comm").read_text().strip() for folder in processes}
        assert {"zfs-fuse", "sshd", "sleep"} <= names
        tester.kill()
    eventually(
        "all processes of the killed lab are gone",
        lambda: not [folder for folder in processes if folder.exists()],
    )
    assert Path(root).name.startswith(PREFIX)
    with Lab():
        assert not Path(root).exists()


def test_a_daemon_that_cannot_start_is_told_with_its_log(a: Node) -> None:
    a.stop_ssh()
    config = a.path("/etc/ssh/sshd_config")
    good = config.read_text()
    config.write_text("NoSuchOption yes\n")
    try:
        with pytest.raises(LabError, match="NoSuchOption"):
            a.start_ssh()
    finally:
        config.write_text(good)
        a.start_ssh()


def test_a_node_that_cannot_start_ends_its_lab_without_a_trace() -> None:
    with pytest.raises(CommandError, match="invalid character"), Lab() as lab:
        lab.node(A, {"not a pool name!": SMALL})
    assert not processes_of(lab)
    assert not lab.root.exists()


def test_a_lab_that_may_not_be_made_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testlab, "HOLDER", "echo no network here >&2; exit 1")
    with pytest.raises(LabError, match="no network here"), Lab():
        pass


def test_the_lab_command_goes_up_runs_a_command_and_goes_down() -> None:
    command = Path(__file__).with_name("lab")
    if (
        subprocess.run([command, "exec", "x", "true"], check=False, capture_output=True).returncode
        != 1
    ):
        pytest.skip("a lab is up already")

    def lab(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command, *words], check=False, capture_output=True, text=True, timeout=60
        )

    assert "osol1_z3_root" in lab("up").stdout
    try:
        listed = lab("exec", "osol1", "ssh", B, "zfs", "list", "-H", "-o", "name")
        assert listed.stdout == "osol2_z3_root\n"
        assert lab("exec", "osol1", "/bin/sh", "-c", "exit 5").returncode == 5
        assert "up already" in lab("up").stderr
    finally:
        assert lab("down").returncode == 0
    assert "no lab is up" in lab("exec", "osol1", "true").stderr


def test_a_running_command_can_be_killed_with_its_group(a: Node) -> None:
    shell: Running = a.popen(["/bin/sh", "-c", "sleep 600 & sleep 600 & wait"])
    eventually("the shell and both children run", lambda: len(a.strays()) == 4)
    shell.kill_group()
    assert shell.wait(10) == -signal.SIGKILL
    eventually("no child is left", lambda: not a.strays())
