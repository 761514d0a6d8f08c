"""The plugin contract, where a plugin mostly breaks it: one line, 0 to 3, and a silent stderr."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from check_zfs_sync import __version__, plugin

ROOT = Path(__file__).parents[2]
NOW = 1_700_000_000  # past, since some tests run on the real clock
STATUS_LINE = re.compile(r"ZFS_SYNC (OK|WARNING|CRITICAL|UNKNOWN)(?: - [^|\n]*)(?:\| [^|\n]*)?\n")


def document(**changes: object) -> dict[str, object]:
    """A state file's object; `changes` replace fields of its one target."""
    entry = {
        "dst": "tank/dst",
        "status": "ok",
        "clock_offset": 0,
        "snapshot": {"guid": "1", "creation": NOW - 60, "datasets": 1, "digest": ""},
        "equal_as_of": None,
        "flags": [],
        "last_success": {"started": 0, "finished": 5, "bytes": 10, "mode": "full"},
        "last_attempt": {"started": 0, "finished": 5, "result": "ok", "error": None},
    }
    return {
        "format": 1,
        "service": "z3",
        "rid": "sync#1",
        "source": "osol1",
        "here": "osol2",
        "src": "tank/src",
        "sync_max_delay": 2**40,  # no clock will make these replicas late
        "agent": "0.1.0",
        "targets": {"osol2": entry | changes},
    }


def failed(error: str) -> dict[str, object]:
    """The object of a state file whose last attempt failed so."""
    attempt = {"started": 0, "finished": 5, "result": "failed", "error": error}
    return document(status="failed", last_attempt=attempt)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path, document())


def write(folder: Path, content: object, service: str = "z3") -> Path:
    """Writes a state file into the folder."""
    (folder / f"{service}_sync#1_zfs_state").write_text(json.dumps(content))
    return folder


def answer(folder: Path, *argv: str) -> tuple[int, str]:
    """Runs the check in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    folders = ("--state-dir", str(folder), "--config-dir", str(folder / "absent"))
    with redirect_stderr(stderr):
        status = plugin.run((*folders, *argv), now=NOW, nodename="osol2", stdout=stdout)
    assert stderr.getvalue() == ""
    return status, stdout.getvalue()


def spawn(
    folder: Path,
    *argv: str,
    code: str = "from check_zfs_sync.plugin import main; main()",
    env: dict[str, str] | None = None,
    stdout: int = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    """Starts the check as a process of its own."""
    folders = ("--state-dir", str(folder), "--config-dir", str(folder / "absent"))
    return subprocess.Popen(
        [sys.executable, "-c", code, *folders, *argv],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Returns exit status and output of a process; it may have no stderr."""
    output, errors = process.communicate(timeout=60)
    assert errors == b""
    return process.returncode, (output or b"").decode()


# --- any input ---------------------------------------------------------------------------------

OPTIONS = """-s -r -w -c -t -v -vv -vvv -V -h --target --failed --service --rid --warning --critical
    --timeout --verbose --verify --bogus"""
VALUES = """z3 sync#1 osol2 ok warning 90m 26h 10:1d2h ~:5 @0:5 @ : 0 -1 nan inf 1e3 5:1 1:2:3 0.5 é
    99999999999999999999"""
WORDS = st.one_of(
    st.sampled_from(OPTIONS.split()),
    st.sampled_from(VALUES.split()),
    st.just("\udcff"),  # what Python makes of an argument that is not UTF-8
    st.text(max_size=5),
)
JUNK: st.SearchStrategy[object] = st.one_of(
    st.none(), st.booleans(), st.floats(), st.integers(), st.text(), st.just([])
)
FIELDS = st.sampled_from(sorted(document(alerted=None)["targets"]["osol2"]))  # type: ignore[index]
CONTENTS = st.one_of(
    st.binary(max_size=40),
    st.dictionaries(FIELDS, JUNK, max_size=2).map(lambda it: json.dumps(document(**it)).encode()),
    st.text(max_size=30).map(lambda it: json.dumps(failed(it)).encode()),
    st.sampled_from([b"[" * 100_000, b"1" * 5_000, json.dumps(document()).encode()[:-20]]),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WORDS, max_size=5), st.lists(CONTENTS, max_size=3))
def test_whatever_is_given_the_answer_is_a_plugins(
    tmp_path: Path, argv: list[str], contents: list[bytes]
) -> None:
    for number in range(3):
        path = tmp_path / f"z{number + 3}_sync#1_zfs_state"
        path.unlink(missing_ok=True)
        if number < len(contents):
            path.write_bytes(contents[number])
    status, text = answer(tmp_path, *argv)
    if text.startswith(("usage:", "check_zfs_sync ")):
        assert status == 3
        return
    first, *_ = text.splitlines(keepends=True)
    match = STATUS_LINE.fullmatch(first)
    assert match is not None
    assert status == ("OK", "WARNING", "CRITICAL", "UNKNOWN").index(match[1])
    assert text.count("|") <= 1
    if not any(word.startswith(("-v", "--verb")) for word in argv):
        assert text.count("\n") == 1


@pytest.mark.parametrize(
    "error", ["a | b", "x\nZFS_SYNC OK - fine", "\x1b[2J\x85\u2028y", "\ud800"]
)
def test_text_of_a_state_file_forges_neither_a_line_nor_performance_data(
    tmp_path: Path, error: str
) -> None:
    write(tmp_path, failed(error))
    status, text = answer(tmp_path)
    assert status == 0
    assert text.count("\n") == text.count("|") == 1
    assert "\x1b" not in text
    text.encode()  # no surrogate is left


def test_a_label_that_the_library_refuses_is_rewritten(tmp_path: Path) -> None:
    content = document() | {"service": "it's=1"}
    write(tmp_path, content, service="it's=1")
    status, text = answer(tmp_path)
    assert status == 0
    assert "'it_s_1/sync#1/osol2_lag'=60s" in text


@pytest.mark.parametrize(
    "argv",
    [
        ("--bogus",),
        ("extra",),
        ("-w",),
        ("-w", "nan"),
        ("-w", "1e3"),
        ("-w", "5:1"),
        ("-w", "1:2:3"),
        ("-w", "@"),
        ("-w", ""),
        ("-w", "-5"),
        ("-c", "1w"),
        ("-t", "0"),
        ("-t", "nan"),
        ("-t", "soon"),
        ("--failed", "no"),
        ("--verb",),
    ],
)
def test_bad_arguments_are_one_unknown_line(folder: Path, argv: tuple[str, ...]) -> None:
    status, text = answer(folder, *argv)
    assert status == 3
    assert text.startswith("ZFS_SYNC UNKNOWN - bad arguments: ")
    assert text.count("\n") == 1


def test_help_and_version_are_on_stdout_and_no_result(folder: Path) -> None:
    status, text = answer(folder, "--help")
    assert (status, text.startswith("usage: check_zfs_sync ")) == (3, True)
    assert answer(folder, "-V") == (3, f"check_zfs_sync {__version__}\n")


def test_a_defect_of_the_check_is_unknown_and_its_traceback_only_for_vvv(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a|b\nc")

    monkeypatch.setattr(plugin, "gather", fail)
    assert answer(folder, "-vv") == (3, "ZFS_SYNC UNKNOWN - AssertionError: a b c\n")
    assert "Traceback" in answer(folder, "-vvv")[1]


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), MemoryError()])
def test_no_exception_gets_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(plugin, "gather", fail)
    status, text = answer(folder)
    assert (status, text.startswith("ZFS_SYNC UNKNOWN - ")) == (3, True)


def test_a_timeout_below_a_second_is_a_timeout(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*_: object) -> None:
        try:
            time.sleep(60)
        except Exception as error:
            raise AssertionError from error  # the timer must not be an ordinary exception

    monkeypatch.setattr(plugin, "gather", hang)
    assert answer(folder, "-t", "0.05") == (3, "ZFS_SYNC UNKNOWN - timed out after 0.05s\n")


def test_the_alarm_is_off_and_its_handler_back_when_the_check_is_done(folder: Path) -> None:
    before = signal.getsignal(signal.SIGALRM)
    answer(folder)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) is before


# --- other formats -----------------------------------------------------------------------------

# checkmk's own rules for a line: a state, a name in quotes without any, figures without a space.
LOCAL_CHECK = re.compile(r'([0-3]) "([^"\'|\\\n]+)" (-|[a-z]+=[^ \n"]+) ([^\\\n]+)')


def local_checks(text: str) -> dict[str, tuple[int, str, str]]:
    """Returns the state, the figures and the text of each service of a local check."""
    assert text.endswith("\n")
    found = [LOCAL_CHECK.fullmatch(line) for line in text[:-1].split("\n")]
    assert None not in found, text
    return {it[2]: (int(it[1]), it[3], it[4]) for it in found if it}


def levels(text: str) -> int:
    """Returns Nagios's state of what checkmk is told: its services, the worst first."""
    order = (0, 3, 1, 2)
    return max((it[0] for it in local_checks(text).values()), key=order.index)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WORDS, max_size=5), st.lists(CONTENTS, max_size=3))
def test_whatever_is_given_the_other_formats_say_the_same(
    tmp_path: Path, argv: list[str], contents: list[bytes]
) -> None:
    for number in range(3):
        path = tmp_path / f"z{number + 3}_sync#1_zfs_state"
        path.unlink(missing_ok=True)
        if number < len(contents):
            path.write_bytes(contents[number])
    status, text = answer(tmp_path, *argv)
    if text.startswith(("usage:", "check_zfs_sync ")):
        return
    # Before the other words, as one of these may be an option that wants a word.
    as_local_check = answer(tmp_path, "--checkmk", *argv)
    assert (as_local_check[0], levels(as_local_check[1])) == (0, status)
    as_json = answer(tmp_path, "--json", *argv)
    assert as_json[0] == status
    document = json.loads(as_json[1])
    assert document["state"] == ("OK", "WARNING", "CRITICAL", "UNKNOWN")[status]
    assert f"{document['state']} - {document['text']}" in text
    worst = [it["state"] for it in (*document["replicas"], *document["unjudged"])]
    assert not worst or document["state"] in worst


def test_a_local_check_names_each_replica_with_its_figures(folder: Path) -> None:
    assert local_checks(answer(folder, "--checkmk")[1]) == {
        "ZFS sync": (0, "-", "replicas judged: 1"),
        "ZFS sync z3/sync#1 to osol2": (
            0,
            f"lag=60;{2**40};;0|bytes=10;;;0|duration=5;;;0",
            f"1m (limit {plugin.human_duration(2**40)})",
        ),
    }


def test_a_local_check_has_the_thresholds_of_the_command_line(folder: Path) -> None:
    status, text = answer(folder, "--checkmk", "-w", "30s", "-c", "45s")
    assert status == 0
    state, figures, _ = local_checks(text)["ZFS sync z3/sync#1 to osol2"]
    assert (state, figures.partition("|")[0]) == (2, "lag=60;30;45;0")


@pytest.mark.parametrize("error", ["a | b", 'x\n2 "y" - z', "back\\nslash", "\ud800\x1b[2J"])
def test_text_of_a_state_file_forges_no_local_check(tmp_path: Path, error: str) -> None:
    write(tmp_path, failed(error) | {"service": "it's=1"}, service="it's=1")
    services = local_checks(answer(tmp_path, "--checkmk")[1])
    assert list(services) == ["ZFS sync", "ZFS sync it_s_1/sync#1 to osol2"]


def test_what_could_not_be_judged_is_a_local_check_that_was_there_before(folder: Path) -> None:
    (folder / "z4_sync#1_zfs_state").write_text("{")
    services = local_checks(answer(folder, "--checkmk")[1])
    state, _, text = services["ZFS sync"]
    assert (state, "z4_sync#1_zfs_state: torn" in text) == (3, True)
    assert services["ZFS sync z3/sync#1 to osol2"][0] == 0


def test_a_late_answer_and_a_defect_are_told_in_the_format_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a|b\nc")

    monkeypatch.setattr(plugin, "gather", fail)
    assert answer(folder, "-vvv", "--checkmk") == (0, '3 "ZFS sync" - AssertionError: a b c\n')
    status, text = answer(folder, "-vvv", "--json")
    assert (status, json.loads(text)["text"]) == (3, "AssertionError: a b c")


def test_the_other_formats_exclude_each_other(folder: Path) -> None:
    status, text = answer(folder, "--json", "--checkmk")
    assert (status, local_checks(text)["ZFS sync"][0]) == (0, 3)


def test_json_tells_what_the_state_file_does(folder: Path) -> None:
    document_ = json.loads(answer(folder, "--json")[1])
    [replica] = document_["replicas"]
    assert {key: replica[key] for key in ("state", "kind", "lag", "limit", "dst", "source")} == {
        "state": "OK",
        "kind": "ok",
        "lag": 60,
        "limit": 2**40,
        "dst": "tank/dst",
        "source": "osol1",
    }
    assert replica["snapshot"] == {
        "guid": "1",
        "creation": NOW - 60,
        "datasets": 1,
        "digest": "",
    }
    assert document_["unjudged"] == []


def test_without_the_library_a_local_check_tells_so(folder: Path) -> None:
    code = "import sys; sys.modules['nagiosplugin'] = None; import check_zfs_sync.plugin"
    status, text = ended(spawn(folder, "--checkmk", code=code))
    assert (status, local_checks(text)["ZFS sync"][0]) == (0, 3)


def test_a_local_check_that_cannot_be_printed_is_no_success(folder: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        assert ended(spawn(folder, "--checkmk", stdout=full.fileno()))[0] == 3


# --- a process of its own ----------------------------------------------------------------------


def test_five_hundred_replicas_are_one_line_whose_text_stands_before_the_figures(
    tmp_path: Path,
) -> None:
    for number in range(500):
        service = f"z{number}.opensvc.com"
        write(tmp_path, document() | {"service": service}, service=service)
    status, text = ended(spawn(tmp_path))
    assert status == 0
    assert STATUS_LINE.fullmatch(text)
    words, _, figures = text.partition(" | ")
    assert words.startswith("ZFS_SYNC OK - 500 replicas, oldest ")
    assert len(words) < 200  # of a longer answer Nagios and NRPE cut off the end
    assert len(figures.split()) == 1500


def test_the_process_says_what_run_says(folder: Path) -> None:
    status, text = ended(spawn(folder))
    assert status == 0
    assert STATUS_LINE.fullmatch(text)


def test_the_module_can_be_run(folder: Path) -> None:
    code = "import runpy; runpy.run_module('check_zfs_sync', run_name='__main__')"
    assert ended(spawn(folder, "-s", "nix", code=code))[0] == 3


def test_without_the_library_the_check_is_unknown(folder: Path) -> None:
    code = "import sys; sys.modules['nagiosplugin'] = None; import check_zfs_sync.plugin"
    status, text = ended(spawn(folder, code=code))
    assert status == 3
    assert text.startswith("ZFS_SYNC UNKNOWN - the library nagiosplugin is missing: ")
    assert text.count("\n") == 1


# What nagiosplugin loads itself costs nothing more, and what these load is theirs.
NEEDED = "nagiosplugin, argparse, gc, encodings.utf_8_sig, gettext, locale, typing"
OWN = ["", ".dialect", ".plugin", ".service", ".statefile"]


def loaded(folder: Path, config: Path, *known: str) -> tuple[str, list[str]]:
    """Return what a run of its own says first, and what it loads besides what is known."""
    code = (
        f"import io, sys, {', '.join((NEEDED, *known))}; before = set(sys.modules); "
        "answer = io.StringIO(); from check_zfs_sync.plugin import run; "
        f"run(sys.argv[1:], now={NOW}, nodename='osol1', stdout=answer); "
        "print(answer.getvalue().split(' - ')[0], *sorted(set(sys.modules) - before), sep=',')"
    )
    status, text = ended(spawn(folder, "--config-dir", str(config), code=code))
    assert status == 0
    said, *names = text.strip().split(",")
    return said, names


def test_an_ordinary_run_loads_what_the_check_needs_and_no_other_module(folder: Path) -> None:
    config = folder / "conf"
    config.mkdir()
    text = "[sync#1]\ntype = zfs\nsrc@osol1 = tank/src\ndst = tank/dst\ntarget = osol2\n"
    (config / "z3.conf").write_text(text)
    own = [f"check_zfs_sync{name}" for name in OWN]
    assert loaded(folder, config, "configparser") == ("ZFS_SYNC OK", own)


def test_where_nothing_is_configured_nothing_is_loaded_to_read_it(folder: Path) -> None:
    own = [f"check_zfs_sync{name}" for name in OWN if name != ".dialect"]
    assert loaded(folder, folder / "none") == ("ZFS_SYNC OK", own)


def test_a_full_stdout_is_unknown(folder: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        assert ended(spawn(folder, stdout=full.fileno()))[0] == 3


def test_a_closed_stdout_is_unknown(folder: Path) -> None:
    code = "import os; os.close(1); import sys; sys.stdout = None; " + (
        "from check_zfs_sync.plugin import main; main()"
    )
    assert ended(spawn(folder, code=code))[0] == 3


def test_a_stdout_that_the_shell_closed_is_unknown(folder: Path) -> None:
    command = 'exec "$0" -m check_zfs_sync --state-dir "$1" --config-dir "$1/absent" >&-'
    argv = ["sh", "-c", command, sys.executable, str(folder)]
    done = subprocess.run(argv, cwd=ROOT, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (3, b"")


def test_a_reader_that_has_left_is_unknown(folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = spawn(folder, stdout=writer)
    os.close(writer)
    assert ended(process)[0] == 3


def test_a_name_outside_ascii_survives_a_locale_that_has_none(tmp_path: Path) -> None:
    write(tmp_path, failed("größer als der Pool"))
    env = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    status, text = ended(spawn(tmp_path, env=env))
    assert status == 0
    assert "gr\\xf6\\xdfer als der Pool" in text


@contextmanager
def hanging_zfs(folder: Path) -> Iterator[tuple[dict[str, str], Path]]:
    """A zfs on PATH that says so through a fifo when it runs, holds it open and hangs."""
    (folder / "bin").mkdir()
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    script = folder / "bin" / "zfs"
    script.write_text(f"#!/bin/sh\nexec 3>{fifo}\necho running >&3\nexec sleep 60\n")
    script.chmod(0o755)
    yield {"PATH": f"{script.parent}:/usr/bin:/bin"}, fifo


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_check_as_unknown_and_its_zfs_too(
    folder: Path, number: signal.Signals
) -> None:
    with hanging_zfs(folder) as (env, fifo):
        process = spawn(folder, "--verify", "-t", "600", env=env)
        with fifo.open() as alive:
            assert alive.readline() == "running\n"
            process.send_signal(number)
            assert ended(process) == (3, f"ZFS_SYNC UNKNOWN - ended by {number.name}\n")
            assert alive.read() == ""  # the end of file: nobody holds the fifo any more


def test_a_zfs_that_hangs_is_ended_in_time(folder: Path) -> None:
    with hanging_zfs(folder) as (env, fifo):
        process = spawn(folder, "--verify", "-t", "3", env=env)
        with fifo.open() as alive:
            assert alive.read() == "running\n"
        status, text = ended(process)
    assert status == 3
    assert "zfs list: no answer in time" in text


# --- the manual --------------------------------------------------------------------------------


def test_every_option_is_in_the_manual() -> None:
    manual = (ROOT / "man" / "check_zfs_sync.1").read_text()
    help_text = plugin._parser().format_help()
    options = set(re.findall(r"(?<![\w-])--?[a-zA-Z][a-z-]*", help_text.partition("options:")[2]))
    assert len(options) > 20
    assert [it for it in sorted(options) if not re.search(rf"Fl {it[1:]}\b", manual)] == []
