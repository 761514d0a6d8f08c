"""What an operator types, what cron mails and what the exit status says."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from plumbum import local

from check_zfs_sync.service import Target
from check_zfs_sync.statefile import (
    Attempt,
    Snapshot,
    State,
    Success,
    TargetState,
    format_state,
    state_path,
)
from zfs_sync_agent import cli, record, status, transport
from zfs_sync_agent.errors import (
    BrokenChain,
    CommandFailed,
    Misconfigured,
    NoAnswer,
    Refused,
    SyncError,
    worst_exit,
)
from zfs_sync_agent.execute import Outcome
from zfs_sync_agent.record import Record

from .notation import DST, EPOCH, SRC, resource
from .processes import is_gone, wait_for

SERVICE = f"""\
[DEFAULT]
nodes = osol1 osol2
drpnodes = osol3
[sync#1]
type = zfs
src = {SRC}
target = nodes
[sync#2]
type = zfs
src = tank/other
target = drpnodes
"""


@pytest.fixture(autouse=True)
def _quiet_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave this process as it was: its handlers, its logger; no syslog, no zfs."""
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {one: signal.getsignal(one) for one in signals}
    environment = dict(local.env.items())
    monkeypatch.setattr(cli, "SYSLOG", "/nowhere")
    monkeypatch.setattr(cli.LOG, "propagate", cli.LOG.propagate)
    monkeypatch.setattr(transport, "SBIN", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    yield
    local.env.clear()
    local.env.update(environment)
    for one, handler in before.items():
        signal.signal(one, handler)
    for sink in list(cli.LOG.handlers):
        cli.LOG.removeHandler(sink)
        sink.close()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "z3.conf").write_text(SERVICE)
    return folder


def call(config: Path, *words: str) -> int:
    """Run the agent on osol1; return its exit status."""
    folders = ("--config-dir", str(config), "--state-dir", str(config.parent / "state"))
    with pytest.raises(SystemExit) as raised:
        cli.main(["--nodename", "osol1", *folders, *words])
    code = raised.value.code
    assert isinstance(code, int)
    return code


# --- usage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["no-such-action"],
        ["--no-such-option", "status"],
        ["--rid", "sync#9", "status"],
        ["--node", "osol9", "syncnodes"],
        ["syncfull"],
        ["syncresync"],
        ["forget"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_told_on_stderr_with_status_2(
    config: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    code = call(config, *words)
    said = capsys.readouterr()
    assert (code, said.out, bool(said.err)) == (2, "", True)


def test_what_another_service_file_has_is_not_forgotten(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config / "web.conf").write_text(SERVICE.replace("data", "web").replace("other", "more"))
    folder = config.parent / "state"
    folder.mkdir()
    state = State("z3", "sync#1", "osol1", "osol1", SRC, 60, "1", {})
    path = Path(state_path(str(folder), "z3", "sync#1"))
    path.write_text(format_state(state))
    assert call(config, "-s", "web", "forget", "z3", "sync#1") == 2
    assert path.exists(), capsys.readouterr()


def test_an_unknown_service_is_told(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (call(config, "-s", "nope", "status"), "nope" in capsys.readouterr().err) == (2, True)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--rid", "sync#9", "status"], "--rid sync#9: unknown; the service files have: sync#1"),
        (["--node", "osol9", "status"], "--node osol9: unknown; the service files have: osol2"),
        (["syncnodes", "sync#1"], "syncnodes takes no words: sync#1"),
        (["syncfull"], "--node"),
        (["syncresync"], "--node"),
        (["syncfull", "--discard", "--node", "osol2"], "--discard belongs to syncresync"),
        (["syncresync", "--in-place", "--node", "osol2"], "--in-place belongs to syncfull"),
        (["forget"], "say SERVICE RID"),
        (["forget", "z3", "sync#1"], "take it out there first"),
        (["forget", "z3", "sync#1", "osol2"], "take it out there first"),
        (["forget", "z3", "sync#7"], "no state file"),
        (["forget", "-n", "z3", "sync#7"], "no state file"),
        (["forget", "-s", "web", "z3", "sync#1"], "takes no -s"),
        (["forget", "--node", "osol2", "z3", "sync#1"], "takes no -s, --rid or --node"),
        (["takeover", "--node", "osol2"], "takeover takes no --node"),
        (["syncnodes", "--json"], "--json belongs to status"),
    ],
)
def test_a_wrong_command_line_is_told_with_what_to_write(
    config: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    call(config, *words)
    assert text in capsys.readouterr().err


def test_a_consent_is_for_one_resource_at_a_time(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "[sync#1]\ntype = zfs\nsrc = tank/web\ntarget = osol2\n"
    (config / "web.conf").write_text(text)
    assert call(config, "--node", "osol2", "syncfull") == 2
    assert "say which one with -s and --rid: web/sync#1, z3/sync#1" in capsys.readouterr().err


def test_a_folder_without_services_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "etc").mkdir()
    assert (
        call(tmp_path / "etc", "status"),
        "no zfs sync resource" in capsys.readouterr().err,
    ) == (
        2,
        True,
    )


def test_an_error_in_a_service_file_is_told_and_nothing_of_it_runs(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config / "z3.conf").write_text(SERVICE.replace("target = nodes", "targets = nodes"))
    code = call(config, "syncupdate")
    assert (code, "z3.conf" in capsys.readouterr().err) == (2, True)


def test_help_says_what_each_action_and_status_means(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call(config, "--help")
    said = capsys.readouterr().out
    assert (code, all(one in said for one in (*cli.ACTIONS, "exit status"))) == (0, True)


def test_the_version_is_told(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (call(config, "-V"), capsys.readouterr().out.startswith("zfs_sync_agent ")) == (0, True)


@pytest.mark.parametrize(
    ("codes", "worst"),
    [(set(), 0), ({0}, 0), ({0, 1}, 1), ({1, 2}, 2), ({1, 2, 3}, 3), ({0, 3}, 3)],
)
def test_the_worst_status_wins(codes: set[int], worst: int) -> None:
    assert worst_exit(codes) == worst


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandFailed("what"), 1),
        (NoAnswer("what"), 1),
        (Misconfigured("what"), 2),
        (Refused("what"), 3),
        (BrokenChain("what"), 3),
    ],
)
def test_each_failure_has_its_status(error: SyncError, code: int) -> None:
    assert error.exit_code == code


# --- which targets an action reaches ----------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "reached"),
    [
        ("syncnodes", ["nodes", "local", "named"]),
        ("syncdrp", ["drpnodes"]),
        ("syncupdate", ["nodes", "drpnodes", "local", "named"]),
        ("syncfull", ["nodes", "drpnodes", "local", "named"]),
    ],
)
def test_an_action_reaches_its_groups(action: str, reached: list[str]) -> None:
    args = argparse.Namespace(action=action, node=[])
    groups = ("nodes", "drpnodes", "local", "named")
    found = [one for one in groups if cli._is_wanted(args, Target("osol2", one))]
    assert sorted(found) == sorted(reached)


def test_node_narrows_the_targets() -> None:
    args = argparse.Namespace(action="syncnodes", node=["osol3"])
    nodes = [Target(one, "nodes") for one in ("osol2", "osol3")]
    assert [one.node for one in nodes if cli._is_wanted(args, one)] == ["osol3"]


def test_an_action_without_targets_here_is_quiet_and_good(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (call(config, "--rid", "sync#1", "syncdrp"), capsys.readouterr()) == (0, ("", ""))


# --- only_if ----------------------------------------------------------------------------------


def with_only_if(config: Path, command: str) -> Path:
    text = SERVICE.replace("target = nodes", f"target = nodes\nonly_if = {command}")
    (config / "z3.conf").write_text(text)
    return config


@pytest.fixture
def _sh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.defpath)


@pytest.mark.usefixtures("_sh")
def test_a_resource_whose_only_if_fails_is_skipped_quietly(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call(with_only_if(config, "false"), "--rid", "sync#1", "syncnodes")
    assert (code, capsys.readouterr()) == (0, ("", ""))


@pytest.mark.usefixtures("_sh")
@pytest.mark.parametrize("command", ["no-such-command", "/etc/passwd"])
def test_an_only_if_that_cannot_run_is_an_error(
    config: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    code = call(with_only_if(config, command), "--rid", "sync#1", "syncnodes")
    assert (code, f"only_if = {command} cannot be run" in capsys.readouterr().err) == (2, True)


# --- the lock ---------------------------------------------------------------------------------


def test_a_resource_that_another_run_holds_is_skipped(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "acquire", lambda _path: record.now() - 5)
    assert (call(config, "syncnodes"), capsys.readouterr()) == (0, ("", ""))


def test_a_run_that_is_late_itself_is_told(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "acquire", lambda _path: EPOCH)
    code = call(config, "--rid", "sync#1", "syncnodes")
    assert (code, "longer than sync_max_delay" in capsys.readouterr().err) == (1, True)


# --- what is told -----------------------------------------------------------------------------

FAILURE = CommandFailed(
    "zfs rename failed on osol2",
    command="ssh osol2 'zfs rename a b'",
    detail="exit 1: dataset is busy",
    untouched="what would have come after",
    hint="the next run goes on from here",
)


def test_a_block_has_all_of_its_parts() -> None:
    assert FAILURE.block("z3/sync#1 to osol2").splitlines() == [
        "z3/sync#1 to osol2: zfs rename failed on osol2",
        "  command:   ssh osol2 'zfs rename a b'",
        "  answer:    exit 1: dataset is busy",
        "  untouched: what would have come after",
        "  next:      the next run goes on from here",
    ]


def test_a_reason_is_one_line() -> None:
    error = CommandFailed("failed", detail="exit 1:\n  first\n  second")
    assert error.reason == "failed: exit 1: first second"


def fresh(tmp_path: Path) -> Record:
    return Record(str(tmp_path), State("z3", "sync#1", "osol1", "osol1", SRC, 90000, "0", {}))


def tell(rec: Record, *errors: SyncError | None) -> int:
    """Tell of one run with a target per error; return the exit status."""
    outcomes = [Outcome(f"osol{n}", DST, error) for n, error in enumerate(errors, start=2)]
    return cli._tell("z3/sync#1", resource(), rec, outcomes)


def blocks(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if not line.startswith(" ")]


def at(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    monkeypatch.setattr(record, "now", lambda: epoch)


def test_nothing_is_told_of_what_went_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (tell(fresh(tmp_path), None, None), blocks(capsys)) == (0, [])


def test_a_first_failure_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (tell(fresh(tmp_path), FAILURE), blocks(capsys)) == (
        1,
        ["z3/sync#1 to osol2: zfs rename failed on osol2"],
    )


def test_the_same_failure_is_not_told_again_but_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rec = fresh(tmp_path)
    tell(rec, FAILURE)
    capsys.readouterr()
    assert (tell(rec, FAILURE), blocks(capsys)) == (1, [])


def test_numbers_make_no_news(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rec = fresh(tmp_path)
    tell(rec, NoAnswer("no answer after 4711 bytes"))
    capsys.readouterr()
    tell(rec, NoAnswer("no answer after 815 bytes"))
    assert blocks(capsys) == []


def test_another_reason_is_news(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rec = fresh(tmp_path)
    tell(rec, FAILURE)
    capsys.readouterr()
    tell(rec, NoAnswer("no answer"))
    assert blocks(capsys) == ["z3/sync#1 to osol2: no answer"]


def test_a_failure_is_told_again_after_sync_max_delay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rec, told = fresh(tmp_path), []
    for after in (0, 89999, 90000, 100000):
        at(monkeypatch, EPOCH + after)
        tell(rec, FAILURE)
        told.append(len(blocks(capsys)))
    assert told == [1, 0, 1, 0]


def test_a_failure_after_a_success_is_news(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rec = fresh(tmp_path)
    tell(rec, FAILURE)
    rec.update("osol2", DST, lambda one: record.succeeded(one, Success(1, 2, 3, "none")))
    capsys.readouterr()
    tell(rec, FAILURE)
    assert len(blocks(capsys)) == 1


def test_one_failure_of_all_targets_is_one_block(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(fresh(tmp_path), FAILURE, FAILURE)
    assert blocks(capsys) == ["z3/sync#1 to osol2, osol3: zfs rename failed on osol2"]


def test_two_failures_are_two_blocks_and_the_worst_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tell(fresh(tmp_path), FAILURE, BrokenChain("chain broken"))
    assert (code, len(blocks(capsys))) == (3, 2)


def test_a_failure_that_cannot_be_remembered_is_told_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    rec = fresh(tmp_path / "file" / "below")
    tell(rec, FAILURE)
    tell(rec, FAILURE)
    assert len(blocks(capsys)) == 2


def test_a_missing_zfs_is_told_once_for_all_targets(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.defpath)
    (config / "z3.conf").write_text(SERVICE.replace("type = zfs\n", "type = zfs\nzfs = no-zfs\n"))
    code = call(config, "--rid", "sync#1", "syncnodes")
    assert (code, "there is no program no-zfs on osol1" in capsys.readouterr().err) == (1, True)


# --- syslog -----------------------------------------------------------------------------------


@pytest.fixture
def syslog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "log"))
        heard.settimeout(5)
        monkeypatch.setattr(cli, "SYSLOG", str(tmp_path / "log"))
        cli._log_to(False)
        yield heard


def heard_of(heard: socket.socket) -> tuple[int, str]:
    """Return the severity (syslog's: 1 is alert, 3 error, 6 info) and the line."""
    priority, _, line = heard.recv(4096).decode().partition(">")
    return int(priority.removeprefix("<")) % 8, line.rstrip("\0")


def test_a_broken_chain_is_logged_at_alert(tmp_path: Path, syslog: socket.socket) -> None:
    tell(fresh(tmp_path / "state"), BrokenChain("chain broken: x"))
    severity, line = heard_of(syslog)
    assert (severity, line.partition(": ")[2]) == (
        1,
        "Z3.SYNC#1 - ALERT - z3/sync#1 to osol2: chain broken: x",
    )


def test_another_failure_is_logged_as_an_error(tmp_path: Path, syslog: socket.socket) -> None:
    tell(fresh(tmp_path / "state"), FAILURE)
    assert heard_of(syslog)[0] == 3


def test_a_line_of_syslog_names_the_program_and_its_process(syslog: socket.socket) -> None:
    cli.LOG.info("hello")
    assert heard_of(syslog) == (6, f"zfs_sync_agent[{os.getpid()}]: hello")


def test_a_failure_that_is_no_news_is_logged_all_the_same(
    tmp_path: Path, syslog: socket.socket
) -> None:
    rec = fresh(tmp_path / "state")
    tell(rec, FAILURE)
    tell(rec, FAILURE)
    assert [heard_of(syslog)[0] for _ in range(2)] == [3, 3]


def test_a_dead_syslog_socket_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").touch()
    monkeypatch.setattr(cli, "SYSLOG", str(tmp_path / "log"))
    cli._log_to(False)
    cli.LOG.info("hello")
    assert capsys.readouterr() == ("", "")


def test_verbose_shows_the_log_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    cli._log_to(True)
    cli.LOG.info("hello")
    assert capsys.readouterr().err == "* hello\n"


# --- the process ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_run_and_its_children(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "etc").mkdir()
    command = f"sh -c 'echo $$ > {tmp_path}/pid; exec sleep 60'"
    text = SERVICE.replace("target = nodes", f"target = nodes\nonly_if = {command}")
    (tmp_path / "etc" / "z3.conf").write_text(text)
    words = [sys.executable, "-m", "zfs_sync_agent", "--nodename", "osol1", "syncnodes"]
    words += ["--config-dir", str(tmp_path / "etc"), "--state-dir", str(tmp_path / "state")]
    environment = {**os.environ, "PATH": os.defpath}
    with subprocess.Popen(words, stderr=subprocess.PIPE, env=environment) as agent:
        wait_for(tmp_path / "pid")
        agent.send_signal(number)
        _, said = agent.communicate(timeout=20)
    assert (agent.returncode, said.decode(), is_gone(tmp_path / "pid")) == (
        128 + number,
        f"zfs_sync_agent: ended by signal {int(number)}\n",
        True,
    )


def test_a_closed_stdout_is_no_traceback(config: Path) -> None:
    words = [sys.executable, "-m", "zfs_sync_agent", "--config-dir", str(config), "validate"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert b"Traceback" not in done.stderr


# --- validate ---------------------------------------------------------------------------------


def test_validate_shows_each_resource(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = call(config, "validate")
    assert (code, capsys.readouterr().out.splitlines()) == (
        0,
        [
            f"{config}/z3.conf: sync#1: {SRC} to osol2: valid",
            f"{config}/z3.conf: sync#2: tank/other to osol3: valid",
        ],
    )


def test_validate_shows_what_is_ignored(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config / "z3.conf").write_text(f"{SERVICE}[fs#1]\ntype = zfs\n")
    call(config, "validate")
    assert "ignored: " in capsys.readouterr().out


def test_validate_says_what_is_wrong(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config / "z3.conf").write_text(SERVICE.replace("target = nodes", "targets = nodes"))
    assert (call(config, "validate"), "targets" in capsys.readouterr().err) == (2, True)


# --- status -----------------------------------------------------------------------------------


def prepared(config: Path, entry: TargetState, *, sender: str = "osol1") -> Path:
    """Put a state file for sync#1 beside the configuration."""
    folder = config.parent / "state"
    folder.mkdir()
    state = State("z3", "sync#1", sender, "osol1", SRC, 90000, "0", {"osol2": entry})
    (folder / "z3_sync#1_zfs_state").write_text(format_state(state))
    return config


def entry(**changes: object) -> TargetState:
    plain = TargetState(
        SRC,
        "ok",
        0,
        Snapshot("71", EPOCH, 2, ""),
        None,
        (),
        Success(EPOCH, EPOCH + 9, 4096, "incremental"),
        Attempt(EPOCH, EPOCH + 9, "ok", None),
    )
    return plain._replace(**changes)  # type: ignore[arg-type]  # a test names what it changes


def row(config: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    call(config, "--rid", "sync#1", *words, "--json", "status")
    (found,) = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_status_as_json_has_the_documented_fields(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, EPOCH + 3600)
    assert row(prepared(config, entry()), capsys) == {
        "service": "z3",
        "rid": "sync#1",
        "target": "osol2",
        "dst": SRC,
        "status": "up",
        "lag": 3600,
        "limit": 90000,
        "kept_bases": [],
        "last_attempt": {
            "started": EPOCH,
            "finished": EPOCH + 9,
            "result": "ok",
            "error": None,
        },
    }


@pytest.mark.parametrize(
    ("changes", "age", "row_says"),
    [
        ({}, 90000, ("up", 90000)),
        ({}, 90001, ("warn", 90001)),
        ({}, -50, ("up", 0)),
        ({}, -61, ("warn", 0)),
        ({"clock_offset": 61}, 60, ("warn", 60)),
        ({"clock_offset": -60}, 60, ("up", 60)),
        ({"last_attempt": Attempt(EPOCH, EPOCH + 121, "failed", "")}, 60, ("warn", 60)),
        ({"equal_as_of": EPOCH + 80000}, 100000, ("up", 20000)),
        ({"status": "failed"}, 60, ("up", 60)),
        ({"status": "broken"}, 60, ("broken", 60)),
        ({"status": "refused"}, 60, ("broken", 60)),
        ({"status": "never", "snapshot": None}, 60, ("warn", None)),
    ],
)
def test_the_word_of_a_target_follows_from_its_lag_and_its_last_result(
    config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    changes: dict[str, object],
    age: int,
    row_says: tuple[str, int | None],
) -> None:
    at(monkeypatch, EPOCH + age)
    found = row(prepared(config, entry(**changes)), capsys)
    assert (found["status"], found["lag"]) == row_says


def test_a_target_that_was_never_tried_warns(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = row(config, capsys)
    assert (found["status"], found["lag"], found["last_attempt"]) == ("warn", None, None)


def test_a_node_that_receives_is_a_standby(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, EPOCH + 60)
    prepared(config, entry(), sender="osol2")
    state = config.parent / "state" / "z3_sync#1_zfs_state"
    state.write_text(state.read_text().replace('"osol2": {', '"osol1": {'))
    found = row(config, capsys)
    assert (found["status"], found["target"]) == ("standby", "osol1")


def test_a_torn_state_file_is_told_and_warns(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(config, entry())
    (config.parent / "state" / "z3_sync#1_zfs_state").write_text("{torn")
    call(config, "--rid", "sync#1", "--json", "status")
    said = capsys.readouterr()
    assert (json.loads(said.out)[0]["status"], "torn" in said.err) == ("warn", True)


def test_the_table_has_a_row_per_target(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, EPOCH + 3 * 3600 + 600)
    failed = entry(last_attempt=Attempt(EPOCH, EPOCH, "failed", "no answer from osol2"))
    call(prepared(config, failed), "status")
    head, first, second = capsys.readouterr().out.splitlines()
    assert (head.split()[:4], first.split()[:6], second.split()[:5]) == (
        ["SERVICE", "RID", "TARGET", "STATUS"],
        ["z3", "sync#1", "osol2", "up", "3h10m", "1d1h"],
        ["z3", "sync#2", "osol3", "warn", "-"],
    )
    assert first.endswith("failed: no answer from osol2")


def test_node_narrows_the_table(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(config, "--node", "osol3", "status")
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["TARGET", "osol3"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0s"),
        (59, "59s"),
        (60, "1m"),
        (3599, "59m"),
        (11400, "3h10m"),
        (86399, "23h59m"),
        (187200, "2d4h"),
    ],
)
def test_a_duration_is_shown_as_people_read_it(seconds: int | None, text: str) -> None:
    assert status.human(seconds) == text


# --- metrics ----------------------------------------------------------------------------------


@pytest.fixture
def prom(config: Path) -> Path:
    """The metrics file that node.conf names."""
    file = config.parent / "zfs_sync.prom"
    (config / "node.conf").write_text(f"[DEFAULT]\nmetrics_file = {file}\n")
    return file


def targets_in(file: Path) -> list[str]:
    lines = [one for one in file.read_text().splitlines() if one.startswith("zfs_sync_max_delay")]
    return [line.partition('target="')[2].partition('"')[0] for line in lines]


def test_a_run_tells_prometheus_of_all_services_whatever_it_ran(config: Path, prom: Path) -> None:
    (config / "web.conf").write_text(SERVICE.replace("data", "web").replace("other", "more"))
    call(config, "-s", "z3", "--rid", "sync#1", "syncnodes")
    assert targets_in(prom) == ["osol2", "osol3"] * 2


def test_a_node_that_sends_nothing_tells_of_what_it_holds(config: Path, prom: Path) -> None:
    folder = config.parent / "state"
    folder.mkdir()
    copy = State("z3", "sync#1", "osol9", "osol1", SRC, 60, "1", {"osol1": record.never(DST)})
    Path(state_path(str(folder), "z3", "sync#1")).write_text(format_state(copy))
    (config / "z3.conf").write_text("[sync#1]\ntype = zfs\nsrc@osol9 = tank/x\ntarget = osol1\n")
    assert call(config, "syncnodes") == 0
    assert targets_in(prom) == ["osol1"]
    assert 'role="target"' in prom.read_text()


def test_service_files_that_cannot_be_used_are_counted(config: Path, prom: Path) -> None:
    (config / "web.conf").write_text("[sync#1]\ntype = zfs\nsrcs = tank/web\nx = 1\n")
    assert call(config, "syncnodes") == 2
    assert "\nzfs_sync_unusable_files 1\n" in prom.read_text()


@pytest.mark.parametrize("words", [["-n", "syncnodes"], ["status"], ["validate"]], ids=" ".join)
def test_what_changes_nothing_writes_no_metrics(config: Path, prom: Path, words: list[str]) -> None:
    call(config, *words)
    assert not prom.exists()


def test_what_is_forgotten_is_gone_from_the_metrics(config: Path, prom: Path) -> None:
    folder = config.parent / "state"
    folder.mkdir()
    path = Path(state_path(str(folder), "gone", "sync#1"))
    state = State("gone", "sync#1", "osol1", "osol1", SRC, 60, "1", {"osol5": record.never(DST)})
    path.write_text(format_state(state))
    call(config, "syncnodes")
    assert "osol5" in targets_in(prom)
    path.unlink()
    call(config, "forget", "gone", "sync#1")
    assert "osol5" not in targets_in(prom)


def test_metrics_that_cannot_be_written_are_told_once_and_fail_nothing(
    config: Path, prom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = call(config, "syncupdate")
    capsys.readouterr()
    prom.unlink()
    prom.mkdir()
    assert call(config, "-v", "syncupdate") == before
    said = capsys.readouterr().err
    assert said.count(f"WARNING - metrics_file {prom} is not written: ") == 1
    assert list(config.parent.glob("*.tmp")) == []
