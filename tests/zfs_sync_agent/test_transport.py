"""Commands reach a shell as they are meant and answer wholly; transfers end, whatever happens."""

import errno
import fcntl
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from zfs_sync_agent import transport
from zfs_sync_agent.errors import NoAnswer, Stalled
from zfs_sync_agent.transport import Answer, Passage, Shell, Transfer, quote, transfer

from .processes import is_gone, wait_for

HOSTILE = [
    "; rm -rf x",
    "it's",
    '"quoted"',
    "$HOME `id` $(id)",
    "two  spaces",
    "sync#1",
    "# no comment",
    "back\\slash",
    "*",
    "~",
    "!",
    "-n",
    "",
    "two\nlines",
    "ümlaut",
    "tab\there",
]


@pytest.fixture
def shell() -> Iterator[Shell]:
    opened = Shell("here", ())
    yield opened
    opened.close()


@pytest.fixture
def through_sh(tmp_path: Path) -> Shell:
    """Return a shell on a node whose ssh runs the remote command here."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
    ssh.chmod(0o755)
    return Shell("osol2", (str(ssh),))


# --- a shell ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("printf", "out"), Answer(0, "out", "")),
        (("printf", "out\n"), Answer(0, "out\n", "")),
        (("printf", "\n\nout\n\n"), Answer(0, "\n\nout\n\n", "")),
        (("true",), Answer(0, "", "")),
        (("false",), Answer(1, "", "")),
        (("sh", "-c", "exit 77"), Answer(77, "", "")),
        (("sh", "-c", "echo bad >&2; echo good; exit 3"), Answer(3, "good\n", "bad\n")),
        (("sh", "-c", "printf half >&2"), Answer(0, "", "half")),
    ],
)
def test_an_answer_is_what_the_command_said(
    shell: Shell, words: Sequence[str], answer: Answer
) -> None:
    assert shell.run(words) == answer


def test_a_missing_command_is_an_answer(shell: Shell) -> None:
    assert shell.run(("no-such-program",)).status == 127


def test_commands_are_answered_in_turn(shell: Shell) -> None:
    assert [shell.run(("echo", str(one))).stdout for one in range(5)] == [
        f"{one}\n" for one in range(5)
    ]


def test_several_commands_are_answered_in_one_round_trip(shell: Shell) -> None:
    assert shell.ask([("printf", "a"), ("sh", "-c", "echo b >&2; exit 2"), ("true",)]) == [
        Answer(0, "a", ""),
        Answer(2, "", "b\n"),
        Answer(0, "", ""),
    ]


def test_a_large_output_arrives_whole(shell: Shell) -> None:
    answer = shell.run(("sh", "-c", "head -c 1048576 /dev/zero | tr '\\0' x"))
    assert answer.stdout == "x" * 1048576


def test_a_large_output_on_stderr_arrives_whole(shell: Shell) -> None:
    answer = shell.run(("sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x >&2"))
    assert answer.stderr == "x" * 300000


def test_bytes_that_are_no_utf8_are_replaced(shell: Shell) -> None:
    assert shell.run(("printf", "a\\377b")).stdout == "a\ufffdb"


@pytest.mark.parametrize("word", HOSTILE)
def test_a_hostile_word_arrives_as_it_is(shell: Shell, word: str) -> None:
    assert shell.run(("printf", "%s", "-", word, "-")).stdout == f"-{word}-"


def test_hostile_words_leave_the_shell_usable(shell: Shell) -> None:
    shell.run(("printf", "%s", *HOSTILE))
    assert shell.run(("echo", "alive")).stdout == "alive\n"


def test_names_reach_the_command_however_many_there_are(shell: Shell) -> None:
    names = [f"tank/data set {number}@sent" for number in range(20000)]
    answer = shell.run(("printf", "%s\\n"), names)
    assert answer.stdout.splitlines() == names


@pytest.fixture(params=["few", "many"])
def amount(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Names are arguments at once, or reach the command by xargs, however many there are."""
    if request.param == "many":
        monkeypatch.setattr(transport, "ARGUMENT_BYTES", 0)
    return str(request.param)


@pytest.mark.usefixtures("amount")
@pytest.mark.parametrize("name", [one for one in HOSTILE if "\n" not in one and one])
def test_a_hostile_name_arrives_as_it_is(shell: Shell, name: str) -> None:
    assert shell.run(("printf", "%s|", "x"), ["a", name, "b"]).stdout == f"x|a|{name}|b|"


@pytest.mark.usefixtures("amount")
def test_a_name_with_a_newline_is_never_a_command(shell: Shell, tmp_path: Path) -> None:
    shell.run(("true",), [f"a\ntouch {tmp_path}/made"])
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_fails_for_some_names_says_so_by_its_status(
    shell: Shell, amount: str
) -> None:
    status = shell.run(("sh", "-c", "exit 1", "sh"), ["a"]).status
    assert status == {"few": 1, "many": 123}[amount]


def test_few_names_cost_one_process(shell: Shell) -> None:
    parent = ("sh", "-c", "echo $PPID $#", "sh")
    few, many = (shell.run(parent, ["name"] * count).stdout.split() for count in (50, 5000))
    here = shell.run(("sh", "-c", "echo $PPID")).stdout.strip()
    assert (few, many[0] == here) == ([here, "50"], False)


def test_no_name_is_never_all_names(shell: Shell) -> None:
    assert shell.run(("sh", "-c", "echo $#", "sh"), []).stdout == "1\n"


def test_text_is_the_commands_standard_input(shell: Shell) -> None:
    text = 'one\n$HOME `id`\n\\\nEOF\n"\n'
    assert shell.run(("cat",), text=text).stdout == text


def test_a_large_text_does_not_block(shell: Shell) -> None:
    text = "0123456789abcdef\n" * 60000
    assert shell.run(("cat",), text=text).stdout == text


def test_a_command_that_reads_its_input_does_not_eat_the_script(shell: Shell) -> None:
    assert (shell.run(("cat",)).stdout, shell.run(("echo", "next")).stdout) == ("", "next\n")


def test_the_shell_speaks_english_and_finds_sbin(shell: Shell) -> None:
    answer = shell.run(("sh", "-c", "echo $LC_ALL $PATH"))
    assert (answer.stdout.startswith("C "), "/usr/sbin" in answer.stdout) == (True, True)


def test_a_shell_that_dies_is_no_answer(shell: Shell) -> None:
    with pytest.raises(NoAnswer, match="no answer from here"):
        shell.run(("sh", "-c", "kill -9 $PPID"))


def test_a_dead_shell_stays_dead(shell: Shell) -> None:
    with pytest.raises(NoAnswer):
        shell.run(("sh", "-c", "kill -9 $PPID"))
    with pytest.raises(NoAnswer):
        shell.run(("true",))


def test_the_last_words_of_a_dead_connection_are_told(tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\necho 'Host key verification failed.' >&2\nexit 255\n")
    ssh.chmod(0o755)
    dead = Shell("osol2", (str(ssh),))
    with pytest.raises(NoAnswer, match=r"exit 255 Host key verification failed\.") as raised:
        dead.run(("true",))
    dead.close()
    assert (raised.value.untouched, "BatchMode=yes osol2 true" in raised.value.hint) == (
        "everything on osol2",
        True,
    )


def test_ssh_gets_a_command_as_one_word(through_sh: Shell) -> None:
    answers = [through_sh.run(("printf", "%s", word)).stdout for word in HOSTILE]
    through_sh.close()
    assert answers == HOSTILE


def test_a_missing_ssh_is_no_answer_that_names_it() -> None:
    with pytest.raises(NoAnswer, match=r"exit 127 .*no-such-ssh: not found"):
        Shell("osol2", ("no-such-ssh",)).run(("true",))


def test_a_command_is_shown_as_it_can_be_pasted() -> None:
    words = ("zfs", "rename", "tank/a b@sent", "tank/a b@kept")
    assert shlex.split(Shell("here", ()).shown(words)) == list(words)


def test_a_remote_command_is_shown_with_its_ssh() -> None:
    shown = Shell("osol2", ("ssh", "-p", "22")).shown(("zfs", "list", "a b"))
    assert shown == "ssh -p 22 osol2 'zfs list '\"'\"'a b'\"'\"''"


def test_a_child_inherits_the_lock(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        holder = Shell("here", (), (lock.fileno(),))
        holder.run(("true",))
    with (tmp_path / "lock").open() as again, pytest.raises(BlockingIOError):
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    holder.close()


def test_a_closed_shell_lets_go_of_the_lock(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        holder = Shell("here", (), (lock.fileno(),))
        holder.run(("true",))
    holder.close()
    with (tmp_path / "lock").open() as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_no_other_descriptor_is_inherited(tmp_path: Path) -> None:
    with (tmp_path / "other").open("w") as other:
        os.set_inheritable(other.fileno(), True)
        holder = Shell("here", ())
        found = holder.run(("sh", "-c", f"test -e /proc/self/fd/{other.fileno()}")).status
        holder.close()
    assert found == 1


def test_one_shell_serves_threads_one_after_the_other(shell: Shell) -> None:
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        answers[number] = shell.run(("echo", str(number))).stdout

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: f"{number}\n" for number in range(8)}


@pytest.mark.parametrize(
    ("names", "text"),
    [
        pytest.param(None, None, id="a command"),
        pytest.param(["first", "second"], None, id="a command with a list"),
        pytest.param(None, "first\nsecond\n", id="a command with a text"),
    ],
)
def test_a_command_that_was_cut_on_its_way_is_not_run(
    names: list[str] | None, text: str | None, tmp_path: Path
) -> None:
    """`zfs destroy -r tank/data` is the beginning of `zfs destroy -r tank/data@sent`."""
    words = ("tee", "third") if text else ("touch", "third")
    whole = {"third", *(names or ())}
    script = Shell._script(words, names, text, "token").encode()
    for size in range(len(script) + 1):
        place = tmp_path / str(size)
        place.mkdir()
        cut = script[:size]
        subprocess.run(["sh"], check=False, input=cut, cwd=place, capture_output=True)
        made = {one.name: one.read_text() for one in place.iterdir()}
        if made:
            assert (set(made), made.get("third")) == (whole, text or ""), cut
    assert made


# --- a transfer -------------------------------------------------------------------------------


def sh(script: str) -> tuple[str, str, str]:
    return ("sh", "-c", script)


def move(
    senders: Sequence[Sequence[str]],
    receiver: Sequence[str],
    stall_timeout: int = 60,
    **how: Any,
) -> Transfer:
    return transfer(senders, receiver, (), Passage(stall_timeout, **how))


@pytest.fixture(params=["splice", "no splice", "splice that cannot"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Move the bytes in the kernel, and by hand where there is no splice."""
    if request.param == "no splice":
        monkeypatch.delattr(os, "splice", raising=False)
    elif request.param == "splice that cannot":
        monkeypatch.setattr(os, "splice", _cannot, raising=False)


def _cannot(*_: object) -> int:
    raise OSError(errno.EINVAL, "Invalid argument")


both_ways = pytest.mark.usefixtures("way")


@both_ways
def test_a_transfer_passes_every_byte(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "in").write_bytes(data)
    done = move([("cat", str(tmp_path / "in"))], sh(f"cat > '{tmp_path}/out'"))
    assert (done.size_bytes, (tmp_path / "out").read_bytes() == data) == (3_000_000, True)


@both_ways
def test_several_senders_feed_one_receiver_in_turn(tmp_path: Path) -> None:
    move([("echo", "one"), ("echo", "two")], sh(f"cat > '{tmp_path}/out'"))
    assert (tmp_path / "out").read_text() == "one\ntwo\n"


@both_ways
def test_an_empty_stream_is_a_transfer_of_nothing() -> None:
    assert move([("true",)], ("cat",)).size_bytes == 0


@both_ways
def test_the_bytes_of_all_senders_count() -> None:
    assert move([("printf", "abc"), ("printf", "de")], sh("cat >/dev/null")).size_bytes == 5


@both_ways
def test_each_stage_reports_its_status_and_its_last_words() -> None:
    done = move([sh("echo out; echo no snapshot >&2; exit 3")], sh("cat; echo torn >&2; exit 4"))
    assert [(one.status, one.stderr.splitlines()[-1]) for one in done.stages] == [
        (3, "no snapshot"),
        (4, "torn"),
    ]


def test_the_receiver_is_named_before_the_sender_that_it_broke() -> None:
    done = move([("yes",)], sh("echo no space >&2; exit 1"))
    assert [(one.status, one.stderr) for one in done.failed] == [
        (1, "no space"),
        (-signal.SIGPIPE, ""),
    ]


def test_a_receiver_that_dies_before_the_first_byte_ends_the_transfer() -> None:
    done = move([sh("sleep 1; exec yes")], sh("exit 1"))
    assert [one.status for one in done.failed] == [1, -signal.SIGPIPE]


def test_a_sender_that_fails_ends_the_row_of_senders(tmp_path: Path) -> None:
    made = tmp_path / "made"
    done = move([sh("exit 2"), ("touch", str(made))], sh("cat >/dev/null"))
    assert ([one.status for one in done.stages], made.exists()) == ([2, 0], False)


def test_a_good_transfer_has_no_failed_stage() -> None:
    assert move([("echo",)], sh("cat >/dev/null")).failed == ()


def test_a_lot_of_words_on_stderr_blocks_nothing() -> None:
    loud = "head -c 300000 /dev/zero | tr '\\0' x >&2; echo >&2; echo last >&2; "
    done = move([sh(f"{loud} echo data")], sh(f"{loud} cat >/dev/null; exit 1"))
    assert [one.stderr.splitlines()[-1] for one in done.stages] == ["last", "last"]


def test_what_a_receiver_prints_is_kept_with_its_words() -> None:
    done = move([("echo",)], sh("cat >/dev/null; echo receiving full stream; exit 1"))
    assert done.failed[0].stderr == "receiving full stream"


@both_ways
def test_a_transfer_without_a_byte_is_stalled(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(Stalled, match="no byte for 1 s after 4 bytes"):
        move([sh("printf data; exec sleep 60")], sh(f"cat > {tmp_path}/out"), 1)
    assert time.monotonic() - began < 20


@both_ways
def test_a_stalled_transfer_leaves_nothing_running(tmp_path: Path) -> None:
    script = "sleep 60 & echo $! > {0}; "
    sender = script.format(tmp_path / "sender") + "printf data; wait"
    receiver = script.format(tmp_path / "receiver") + "cat >/dev/null"
    with pytest.raises(Stalled):
        move([sh(sender)], sh(receiver), 1)
    assert is_gone(tmp_path / "sender")
    assert is_gone(tmp_path / "receiver")


def test_a_receiver_that_takes_nothing_stalls_the_transfer() -> None:
    with pytest.raises(Stalled):
        move([("cat", "/dev/zero")], sh("exec sleep 60"), 1)


@both_ways
def test_a_slow_first_byte_is_no_stall() -> None:
    assert move([sh("sleep 2; echo data")], sh("cat >/dev/null"), 1).failed == ()


@both_ways
def test_a_slow_receiver_after_the_last_byte_is_no_stall() -> None:
    assert move([("echo", "data")], sh("cat >/dev/null; sleep 2"), 1).failed == ()


def test_a_slow_first_byte_of_a_later_sender_is_no_stall() -> None:
    done = move([("echo", "data"), sh("sleep 2; echo data")], sh("cat >/dev/null"), 1)
    assert done.failed == ()


def test_both_stages_inherit_the_lock(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        held = f"test -e /proc/self/fd/{lock.fileno()}"
        done = transfer([sh(held)], sh(f"{held} && cat"), (lock.fileno(),), Passage(60))
    assert done.failed == ()


def test_a_missing_receiver_is_no_answer_with_a_hint() -> None:
    with pytest.raises(NoAnswer, match="there is no program no-such-ssh") as raised:
        move([("echo",)], ("no-such-ssh",))
    assert "ssh =" in raised.value.hint


def test_a_missing_sender_is_no_answer_and_ends_the_receiver(tmp_path: Path) -> None:
    receiver = sh(f"echo $$ > {tmp_path}/pid; cat; sleep 60")
    with pytest.raises(NoAnswer):
        move([sh(f"until test -s {tmp_path}/pid; do :; done"), ("no-such-zfs",)], receiver)
    assert is_gone(tmp_path / "pid")


def test_one_command_for_the_local_node_needs_no_shell() -> None:
    assert Shell("here", ()).data_words([("zfs", "receive", "a b")]) == ("zfs", "receive", "a b")


def test_the_data_connection_runs_its_commands_in_turn() -> None:
    words = Shell("here", ()).data_words([("head", "-c", "3"), ("head", "-c", "3"), ("false",)])
    done = move([("printf", "abcdef")], words)
    assert (done.stages[-1].status, done.stages[-1].stderr) == (1, "abcdef")


def test_the_remote_data_connection_is_one_ssh_with_one_command() -> None:
    commands = [("zfs", "receive", "a b"), ("zfs", "receive", "c")]
    words = Shell("osol2", ("ssh",)).data_words(commands)
    command = shlex.split(words[-1])[-1]
    assert (words[-2], command) == ("osol2", "zfs receive 'a b' && zfs receive c")


def test_a_remote_transfer_passes_every_byte_and_ends_with_its_command(
    through_sh: Shell, tmp_path: Path
) -> None:
    receive = sh(f"cat > '{tmp_path}/it is'; echo torn >&2; exit 3")
    began = time.monotonic()
    done = move([("printf", "data")], through_sh.data_words([receive]))
    assert time.monotonic() - began < transport.BEAT_SECONDS
    assert (tmp_path / "it is").read_text() == "data"
    assert [(one.status, one.stderr) for one in done.failed] == [(3, "torn")]


def test_a_remote_command_of_a_transfer_is_shown_as_it_can_be_pasted(through_sh: Shell) -> None:
    commands = [("cat",), ("sh", "-c", "echo 'a  b'; exit 3")]
    done = move([("true",)], through_sh.data_words(commands))
    shown = ["sh", "-c", done.failed[0].command]
    again = subprocess.run(shown, check=False, input="", capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (3, "a  b\n")
    assert "sleep" not in shown[-1]


def test_the_beats_of_a_remote_command_are_not_its_last_words() -> None:
    done = move([("true",)], sh("echo; echo no room; echo; echo left; echo; echo; exit 1"))
    assert done.failed[0].stderr.splitlines() == ["no room", "left"]


def test_the_lock_is_held_for_an_ssh_that_closes_every_descriptor(tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\nexec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-\nexec cat\n")
    ssh.chmod(0o755)
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remote = Shell("osol2", (str(ssh),), (lock.fileno(),))
        remote.open()
    with (tmp_path / "lock").open() as again, pytest.raises(BlockingIOError):
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    remote.close()


def test_a_failed_ssh_is_shown_without_the_shell_that_keeps_the_lock() -> None:
    done = move([("echo",)], Shell("osol2", ("false",)).data_words([("zfs", "receive", "d")]))
    assert done.failed[0].command.startswith("false -o BatchMode=yes")


# --- a data connection that is made before its command is known ----------------------------------


def test_a_connection_made_before_runs_the_command_and_passes_every_byte(
    through_sh: Shell, tmp_path: Path
) -> None:
    data = os.urandom(300_000)
    (tmp_path / "in").write_bytes(data)
    receive = through_sh.data_words([sh(f"cat > '{tmp_path}/a  \\n b'; echo torn >&2; exit 3")])
    through_sh.open_data()
    made = through_sh.take_data()
    assert made is not None
    done = move([("cat", str(tmp_path / "in"))], receive, connection=made)
    assert (tmp_path / "a  \\n b").read_bytes() == data
    assert [(one.status, one.stderr) for one in done.failed] == [(3, "torn")]
    assert done.failed[0].command == transport._pasteable(receive)
    assert through_sh.take_data() is None


def test_a_connection_made_before_takes_a_command_that_no_pipe_holds(through_sh: Shell) -> None:
    receive = through_sh.data_words([("sh", "-c", "cat; exit $#", "sh", *(["word"] * 20_000))])
    through_sh.open_data()
    done = move([("printf", "data")], receive, connection=through_sh.take_data())
    assert [(one.status, one.stderr) for one in done.failed] == [(20_000 % 256, "data")]


def test_of_a_command_that_is_cut_on_its_way_nothing_is_run(
    through_sh: Shell, tmp_path: Path
) -> None:
    words = through_sh._ssh_words(transport._AWAITING)
    for line, ran in ((f"touch {tmp_path}/ran", False), (f"touch {tmp_path}/ran\n", True)):
        done = subprocess.run(words, check=False, input=line, text=True, capture_output=True)
        assert ((done.returncode == 0), (tmp_path / "ran").exists()) == (ran, ran)
        assert (done.stdout, done.stderr) == ("", "")


def test_a_connection_that_nobody_needed_is_ended_with_the_shell(through_sh: Shell) -> None:
    through_sh.open_data()
    (made,) = transport.children._running
    through_sh.close()
    assert made.poll() is not None
    assert not transport.children._running


def test_a_connection_that_failed_meanwhile_is_told_as_one_that_is_made_for_the_transfer() -> None:
    broken = Shell("osol2", ("sh", "-c", "echo no route >&2; exit 255"))
    broken.open_data()
    (child,) = transport.children._running
    child.wait()
    made = broken.take_data()
    receive = broken.data_words([("zfs", "receive", "d")])
    before, later = (move([("echo",)], receive, connection=one).failed for one in (made, None))
    assert (before[0].status, before[0].stderr) == (255, "no route")
    assert before[0] == later[0]


def test_to_this_node_itself_no_connection_is_made() -> None:
    here = Shell("here", ())
    here.open_data()
    assert here.take_data() is None


# --- a transfer through other programs ---------------------------------------------------------

GZIP, GUNZIP = ("gzip", "-c"), ("gzip", "-d", "-c")


@pytest.fixture(params=["this node", "another"])
def anywhere(request: pytest.FixtureRequest, through_sh: Shell) -> Shell:
    return through_sh if request.param == "another" else Shell("here", ())


@both_ways
def test_a_compressed_transfer_passes_every_byte_and_counts_both(tmp_path: Path) -> None:
    data = os.urandom(1_500_000) + bytes(1_500_000)
    (tmp_path / "in").write_bytes(data)
    receiver = sh(f"gzip -dc > '{tmp_path}/out'")
    done = move([("cat", str(tmp_path / "in"))], receiver, compress=GZIP)
    assert (done.failed, (tmp_path / "out").read_bytes() == data) == ((), True)
    assert (done.size_bytes, 1_500_000 < done.link_bytes < 1_600_000) == (3_000_000, True)


def test_without_a_compressor_the_link_carries_what_was_sent() -> None:
    done = move([("printf", "abc"), ("printf", "de")], sh("cat >/dev/null"))
    assert (done.size_bytes, done.link_bytes) == (5, 5)


def test_compressed_streams_of_several_senders_are_expanded_in_turn(anywhere: Shell) -> None:
    commands = [sh(f"head -c 3; echo {number}; exit {number}") for number in (0, 1)]
    receiver = anywhere.data_words(commands, [GUNZIP])
    done = move([("printf", "abc"), ("printf", "def")], receiver, compress=GZIP)
    # gzip reads ahead for nobody: head takes its three bytes, and leaves the rest in the pipe.
    assert [(one.status, one.stderr) for one in done.failed] == [(1, "abc0\ndef1")]


@both_ways
def test_a_compressor_that_dies_ends_the_transfer_and_is_named() -> None:
    began = time.monotonic()
    dying = sh("head -c 100000; echo out of memory >&2; exit 7")
    done = move([("cat", "/dev/zero")], sh("cat >/dev/null"), compress=dying)
    assert time.monotonic() - began < 20
    assert [(one.status, one.stderr) for one in done.failed] == [
        (7, "out of memory"),
        (-signal.SIGPIPE, ""),
    ]


def test_a_compressor_that_dies_while_the_sender_is_silent_ends_the_transfer() -> None:
    sender = sh("printf data; sleep 1; exec yes")
    done = move([sender], sh("cat >/dev/null"), compress=sh("exit 7"))
    assert [one.status for one in done.failed] == [7, -signal.SIGPIPE]


def test_a_missing_compressor_is_no_answer_and_ends_the_others(tmp_path: Path) -> None:
    receiver = sh(f"echo $$ > {tmp_path}/pid; cat; sleep 60")
    with pytest.raises(NoAnswer, match="there is no program no-such-zip"):
        move([sh("sleep 60")], receiver, compress=("no-such-zip",))
    wait_for(tmp_path / "pid")
    assert is_gone(tmp_path / "pid")


@both_ways
def test_a_stream_that_stalls_before_its_compressor_is_stalled(tmp_path: Path) -> None:
    compress = sh(f"echo $$ > {tmp_path}/pid; exec gzip -c")
    with pytest.raises(Stalled, match="no byte for 1 s after 4 bytes"):
        move([sh("printf data; exec sleep 60")], sh("cat >/dev/null"), 1, compress=compress)
    assert is_gone(tmp_path / "pid")


def test_a_receiver_that_takes_nothing_stalls_a_compressed_transfer() -> None:
    with pytest.raises(Stalled):
        move([("cat", "/dev/urandom")], sh("exec sleep 60"), 1, compress=GZIP)


def test_a_compressor_that_hangs_at_its_end_is_a_stall() -> None:
    with pytest.raises(Stalled, match="after 4 bytes"):
        move([("printf", "data")], sh("cat >/dev/null"), 1, compress=sh("cat; sleep 60"))


def test_a_feeder_that_fails_is_named_though_the_receiver_did_well(anywhere: Shell) -> None:
    feeders = [sh("cat; echo first words >&2; echo 'bad * crc' >&2; exit 5"), ("cat",)]
    done = move([("printf", "data")], anywhere.data_words([sh("cat; exit 0")], feeders))
    assert done.stages[-1].status == 0
    assert [(one.status, one.stderr) for one in done.failed] == [(5, "first words bad * crc")]


def test_a_feeder_that_is_killed_is_named(anywhere: Shell) -> None:
    done = move([("printf", "data")], anywhere.data_words([("cat",)], [sh("cat; kill -9 $$")]))
    assert [one.status for one in done.failed] == [128 + signal.SIGKILL]


def test_the_receiver_is_named_before_the_feeders_that_it_broke(anywhere: Shell) -> None:
    broken = sh("echo no space >&2; exit 3")
    done = move([sh("yes")], anywhere.data_words([broken], [("cat",)]))
    assert [(one.status, one.stderr) for one in done.failed[:2]] == [
        (3, "no space"),
        (128 + signal.SIGPIPE, ""),
    ]


@pytest.mark.parametrize("word", HOSTILE)
def test_a_hostile_word_goes_through_the_feeders(anywhere: Shell, word: str) -> None:
    say = ("sh", "-c", 'cat; printf "%s|" "$@"; exit 1', "sh", "a", word, "z")
    done = move([("printf", "data")], anywhere.data_words([say], [(*sh("cat"), "sh", word)]))
    shown = f"dataa|{word}|z|".splitlines()
    assert done.stages[-1].stderr.splitlines() == [line for line in shown if line.strip()]


def test_a_fed_receiver_is_shown_as_the_pipe_that_it_is(anywhere: Shell) -> None:
    feeders = [("sed", "s/a/b  c/"), ("tr", "d", "\\")]
    commands = [("sh", "-c", "head -c 3"), ("sh", "-c", "cat; exit 3")]
    done = move([("true",)], anywhere.data_words(commands, feeders))
    shown = ["sh", "-c", done.stages[-1].command]
    again = subprocess.run(shown, check=False, input="ad", capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (3, "b  c\\")
    assert ("failed" in shown[-1], "sleep" in shown[-1]) == (False, False)


def test_a_pipe_is_shown_as_it_can_be_pasted() -> None:
    shown = Shell("osol2", ("ssh",)).shown(("zstd", "-d"), ("zfs", "receive", "a b"))
    assert shlex.split(shown) == ["ssh", "osol2", "zstd -d | zfs receive 'a b'"]


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_login_shell_takes_the_command_of_a_fed_receiver(shell: str) -> None:
    words = Shell("osol2", ("ssh",)).data_words([("cat",)], [("cat",), GUNZIP])
    packed = subprocess.run(GZIP, check=True, input=b"aha", capture_output=True).stdout
    done = subprocess.run([shell, "-c", words[-1]], check=False, input=packed, capture_output=True)
    assert (done.returncode, done.stdout.strip()) == (0, b"aha")


def test_the_command_of_a_fed_receiver_is_one_line_as_csh_wants_it() -> None:
    words = Shell("osol2", ("ssh",)).data_words([("cat",)], [GUNZIP])
    assert "\n" not in words[-1]


@both_ways
def test_a_rate_limit_holds_for_what_the_link_carries() -> None:
    rate = 4 << 20
    began = time.monotonic()
    done = move([("head", "-c", "2097152", "/dev/zero")], sh("cat >/dev/null"), rate_limit=rate)
    assert (done.size_bytes, time.monotonic() - began > 0.45) == (2 << 20, True)
    began = time.monotonic()
    fast = move(
        [("head", "-c", "33554432", "/dev/zero")],
        sh("cat >/dev/null"),
        rate_limit=rate,
        compress=GZIP,
    )
    assert fast.link_bytes < fast.size_bytes / 100
    assert time.monotonic() - began < fast.size_bytes / rate / 2


def test_waiting_for_the_rate_is_no_stall() -> None:
    done = move([("head", "-c", "3000", "/dev/zero")], sh("cat >/dev/null"), 1, rate_limit=1024)
    assert done.failed == ()


def test_a_limited_receiver_that_dies_ends_the_transfer() -> None:
    done = move([("cat", "/dev/zero")], sh("head -c 1000 >/dev/null; exit 4"), rate_limit=1 << 20)
    assert done.failed[0].status == 4


def test_the_bytes_are_told_over_all_senders() -> None:
    told: list[int] = []
    move([("printf", "abc"), ("printf", "de")], sh("cat >/dev/null"), tell=told.append)
    assert (told[-1], told == sorted(told)) == (5, True)


# --- the process ------------------------------------------------------------------------------


def test_every_child_ends_with_its_descendants_at_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = transport._Children()
    monkeypatch.setattr(transport, "children", children)
    script = f"sleep 60 & echo $! > {tmp_path}/pid; printf data; wait"
    ended: list[object] = []

    def run() -> None:
        ended.append(move([sh(script)], sh("cat >/dev/null")))

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(tmp_path / "pid")
    children.kill_all()
    thread.join(timeout=10)
    assert (thread.is_alive(), is_gone(tmp_path / "pid")) == (False, True)


def test_after_a_signal_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    children = transport._Children()
    monkeypatch.setattr(transport, "children", children)
    children.kill_all()
    with pytest.raises(NoAnswer, match="signal"):
        move([("echo",)], ("cat",))


@pytest.mark.parametrize(("command", "status"), [("true", 0), ("exit 9", 9), ("no-such", 127)])
def test_the_operators_command_answers_by_its_status_alone(
    capfd: pytest.CaptureFixture[str], command: str, status: int
) -> None:
    assert transport.run_user_command(f"echo noise; echo noise >&2; {command}") == status
    assert capfd.readouterr() == ("", "")


def test_only_transport_imports_plumbum() -> None:
    package = Path(transport.__file__).parent
    users = [one.name for one in package.glob("*.py") if "plumbum" in one.read_text()]
    assert users == ["transport.py"]


@pytest.mark.parametrize("word", HOSTILE)
def test_quoting_survives_a_shell(word: str) -> None:
    script = f"printf %s {quote((word,))}"
    said = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout
    assert said.decode() == word
