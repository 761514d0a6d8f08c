"""The state file is whole or the old one and says no more than was proven; locks outlive it."""

import os
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from check_zfs_sync.statefile import (
    Attempt,
    Snapshot,
    State,
    Success,
    TargetState,
    format_state,
    read_state,
)
from zfs_sync_agent import record
from zfs_sync_agent.errors import BrokenChain, CommandFailed, NoAnswer, Refused
from zfs_sync_agent.model import Names
from zfs_sync_agent.model import Snapshot as ModelSnapshot
from zfs_sync_agent.observe import Side
from zfs_sync_agent.record import INTERRUPTED, Lock, Record
from zfs_sync_agent.transport import Shell

from .notation import DST, EPOCH, SRC

EMPTY = State("z3", "sync#1", "osol1", "osol1", SRC, 90000, "0.1.0", {})
NEVER = TargetState(DST, "never", None, None, None, (), None, None)
HELD = Snapshot("71", EPOCH, 2, "d" * 64)
SUCCESS = Success(EPOCH + 10, EPOCH + 20, 4096, "incremental")
IN_SYNC = record.succeeded(NEVER, SUCCESS)._replace(snapshot=HELD)


@pytest.fixture
def rec(tmp_path: Path) -> Record:
    return Record(str(tmp_path / "state"), EMPTY)


def constant(entry: TargetState) -> Callable[[TargetState], TargetState]:
    return lambda _old: entry


def files(rec: Record) -> list[str]:
    return [one.name for one in Path(rec.path).parent.iterdir() if "lock" not in one.name]


# --- the file ---------------------------------------------------------------------------------


def test_the_file_is_named_for_its_service_and_resource(rec: Record) -> None:
    assert Path(rec.path).name == "z3_sync#1_zfs_state"


def test_an_update_is_read_back(rec: Record) -> None:
    rec.update("osol2", DST, constant(IN_SYNC))
    assert rec.entry("osol2", DST) == IN_SYNC


def test_an_update_leaves_the_other_targets_alone(rec: Record) -> None:
    rec.update("osol2", DST, constant(IN_SYNC))
    rec.update("osol3", DST, constant(NEVER))
    assert rec.read().targets == {"osol2": IN_SYNC, "osol3": NEVER}


def test_any_user_can_read_the_file(rec: Record) -> None:
    before = os.umask(0o077)
    rec.update("osol2", DST, constant(IN_SYNC))
    os.umask(before)
    assert stat.S_IMODE(Path(rec.path).stat().st_mode) == 0o644


def test_nothing_but_the_file_is_left_behind(rec: Record) -> None:
    rec.update("osol2", DST, constant(IN_SYNC))
    assert files(rec) == ["z3_sync#1_zfs_state"]


def fail(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("broken", ["fsync", "replace", "chmod"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    rec: Record, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    rec.update("osol2", DST, constant(IN_SYNC))
    monkeypatch.setattr(os if broken == "fsync" else Path, broken, fail)
    with pytest.raises(CommandFailed, match="No space left"):
        rec.update("osol2", DST, constant(NEVER))
    monkeypatch.undo()
    assert (rec.entry("osol2", DST), files(rec)) == (IN_SYNC, ["z3_sync#1_zfs_state"])


def test_a_write_reaches_the_disk_before_it_gets_its_name(
    rec: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(fd: int) -> None:
        done.append("fsync")
        fsync(fd)

    def note_replace(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    rec.update("osol2", DST, constant(IN_SYNC))
    assert done == ["fsync", "rename", "fsync"]


def test_a_folder_that_cannot_be_made_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandFailed) as raised:
        Record(str(tmp_path / "file" / "state"), EMPTY).update("osol2", DST, constant(IN_SYNC))
    error = raised.value
    assert all((error.detail, error.untouched, error.hint, str(tmp_path) in error.what))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', "\0"])
def test_a_torn_file_is_no_state(rec: Record, text: str) -> None:
    Path(rec.path).parent.mkdir()
    Path(rec.path).write_text(text)
    assert rec.read() == EMPTY


def test_the_next_write_mends_a_torn_file(rec: Record) -> None:
    Path(rec.path).parent.mkdir()
    Path(rec.path).write_text("{torn")
    rec.update("osol2", DST, constant(IN_SYNC))
    assert read_state(rec.path) == EMPTY._replace(targets={"osol2": IN_SYNC})


def test_the_state_of_another_source_is_not_taken_over(rec: Record) -> None:
    Path(rec.path).parent.mkdir()
    others = EMPTY._replace(source="osol9", targets={"osol2": IN_SYNC})
    Path(rec.path).write_text(format_state(others))
    assert (rec.read(), rec.is_mine()) == (EMPTY, False)


def test_a_file_that_is_not_there_would_be_ours(rec: Record) -> None:
    assert rec.is_mine()


def test_settings_come_from_the_service_file_not_from_the_old_state(rec: Record) -> None:
    rec.update("osol2", DST, constant(IN_SYNC))
    changed = Record(str(Path(rec.path).parent), EMPTY._replace(sync_max_delay=60, src="other/src"))
    assert (changed.read().sync_max_delay, changed.read().src) == (60, "other/src")


def test_another_dst_is_another_target(rec: Record) -> None:
    rec.update("osol2", "old/dst", constant(IN_SYNC._replace(dst="old/dst")))
    assert rec.entry("osol2", DST) == NEVER


def test_nodes_that_left_the_configuration_are_forgotten(rec: Record) -> None:
    rec.update("osol2", DST, constant(IN_SYNC))
    rec.update("gone", DST, constant(IN_SYNC))
    rec.forget_nodes(frozenset({"osol2"}))
    assert set(rec.read().targets) == {"osol2"}


def test_updates_at_the_same_time_lose_no_target(rec: Record) -> None:
    def update(number: int) -> None:
        for _ in range(5):
            rec.update(f"node{number}", DST, constant(IN_SYNC))

    threads = [threading.Thread(target=update, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(rec.read().targets) == {f"node{number}" for number in range(8)}


def test_two_records_at_the_same_time_lose_no_target(rec: Record) -> None:
    other = Record(str(Path(rec.path).parent), EMPTY)
    writers = [
        threading.Thread(
            target=lambda one=one, name=name: [
                one.update(f"{name}{number}", DST, constant(IN_SYNC)) for number in range(10)
            ]
        )
        for one, name in ((rec, "a"), (other, "b"))
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(rec.read().targets) == 20


# --- the copy on a target ---------------------------------------------------------------------


@pytest.fixture
def side() -> Iterator[Side]:
    found = Side(Shell("osol2", ()), ("zfs",), sudo=False)
    yield found
    found.shell.close()


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Record, Path]:
    """Return a record whose own file is `near`, and the file that a push to this node makes."""
    rec = Record(str(tmp_path / "a folder" / "it's"), EMPTY)
    monkeypatch.setattr(Record, "read", lambda _self: EMPTY._replace(targets={"osol2": IN_SYNC}))
    return rec, Path(rec.path)


def test_a_pushed_copy_says_for_whom_it_was_written(far: tuple[Record, Path], side: Side) -> None:
    rec, path = far
    rec.push(side, "osol2")
    assert read_state(str(path)) == EMPTY._replace(here="osol2", targets={"osol2": IN_SYNC})


def test_a_push_leaves_nothing_but_the_copy(far: tuple[Record, Path], side: Side) -> None:
    rec, path = far
    rec.push(side, "osol2")
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_pushed_copy_can_be_read_by_any_user(far: tuple[Record, Path], side: Side) -> None:
    rec, path = far
    rec.push(side, "osol2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_push_replaces_the_copy_before(far: tuple[Record, Path], side: Side) -> None:
    rec, path = far
    path.parent.mkdir(parents=True)
    path.write_text("old")
    rec.push(side, "osol2")
    assert read_state(str(path)) is not None


def test_a_push_that_fails_is_told_with_what_to_do(far: tuple[Record, Path], side: Side) -> None:
    rec, path = far
    path.parent.parent.mkdir()
    path.parent.touch()  # a file where the folder has to be
    with pytest.raises(CommandFailed, match="could not be copied to osol2") as raised:
        rec.push(side, "osol2")
    assert "make" in raised.value.hint


def test_a_push_without_room_leaves_the_old_copy(far: tuple[Record, Path], side: Side) -> None:
    rec, path = far
    path.parent.mkdir(parents=True)
    path.write_text("old")
    side.shell.run(("true",))
    side.shell._send(b"ulimit -f 0; trap '' XFSZ\n")
    with pytest.raises(CommandFailed):
        rec.push(side, "osol2")
    assert {one.name: one.read_text() for one in path.parent.iterdir()} == {path.name: "old"}


def test_a_push_to_a_dead_connection_is_no_answer(far: tuple[Record, Path]) -> None:
    gone = Side(Shell("osol2", ("false",)), ("zfs",), sudo=False)
    with pytest.raises(NoAnswer):
        far[0].push(gone, "osol2")
    gone.shell.close()


# --- locks ------------------------------------------------------------------------------------


def test_a_lock_is_taken_once(tmp_path: Path) -> None:
    first = record.acquire(tmp_path / "lock")
    assert isinstance(first, Lock)
    assert isinstance(record.acquire(tmp_path / "lock"), int)
    first.close()


def test_a_closed_lock_can_be_taken_again(tmp_path: Path) -> None:
    first = record.acquire(tmp_path / "lock")
    assert isinstance(first, Lock)
    first.close()
    second = record.acquire(tmp_path / "lock")
    assert isinstance(second, Lock)
    second.close()


def test_a_lock_that_is_held_tells_since_when(tmp_path: Path) -> None:
    first = record.acquire(tmp_path / "lock")
    os.utime(tmp_path / "lock", (EPOCH, EPOCH))
    assert (record.acquire(tmp_path / "lock"), isinstance(first, Lock)) == (EPOCH, True)


def test_a_new_lock_is_dated_now_and_names_its_process(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("1\n2\n")
    os.utime(tmp_path / "lock", (EPOCH, EPOCH))
    lock = record.acquire(tmp_path / "lock")
    dated = (tmp_path / "lock").stat().st_mtime
    assert (isinstance(lock, Lock), dated > EPOCH, (tmp_path / "lock").read_text()) == (
        True,
        True,
        f"{os.getpid()}\n",
    )


def test_a_child_holds_the_lock_after_its_parent_let_go(tmp_path: Path) -> None:
    lock = record.acquire(tmp_path / "lock")
    assert isinstance(lock, Lock)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(lock.fd,)) as orphan:
        lock.close()
        held = record.acquire(tmp_path / "lock")
        orphan.communicate()
    again = record.acquire(tmp_path / "lock")
    assert (isinstance(held, int), isinstance(again, Lock)) == (True, True)


def test_the_resource_and_each_join_have_locks_of_their_own(rec: Record) -> None:
    paths = {rec.lock_path(), rec.lock_path("osol2"), rec.lock_path("osol3")}
    assert len(paths) == 3


def test_no_lock_looks_like_a_state_file(rec: Record) -> None:
    assert all(path.name.startswith(".") for path in (rec.lock_path(), rec.lock_path("osol2")))


def test_resources_of_one_src_wait_for_each_other(tmp_path: Path) -> None:
    one, two = (Record(str(tmp_path), EMPTY._replace(rid=rid)) for rid in ("sync#1", "sync#2"))
    order: list[str] = []

    def second() -> None:
        with two.exclusive():
            order.append("second")

    with one.exclusive():
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


# --- what an entry says -----------------------------------------------------------------------


def test_a_started_branch_reads_as_a_run_that_was_cut() -> None:
    entry = record.started(IN_SYNC, EPOCH + 99)
    assert entry.last_attempt == Attempt(EPOCH + 99, EPOCH + 99, "failed", INTERRUPTED)


def test_a_start_takes_nothing_away_from_what_is_held() -> None:
    entry = record.started(IN_SYNC, EPOCH + 99)
    assert (entry.status, entry.snapshot, entry.last_success) == ("ok", HELD, SUCCESS)


def test_a_start_that_never_held_anything_stays_never() -> None:
    assert record.started(NEVER, EPOCH).status == "never"


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (CommandFailed("what"), "failed"),
        (NoAnswer("what"), "failed"),
        (Refused("what"), "refused"),
        (BrokenChain("what"), "broken"),
    ],
)
def test_a_failure_has_the_result_of_its_type(
    error: CommandFailed | NoAnswer | Refused | BrokenChain, result: str
) -> None:
    entry = record.failed(IN_SYNC, error, EPOCH, EPOCH + 1)
    assert (entry.status, entry.last_attempt) == (result, Attempt(EPOCH, EPOCH + 1, result, "what"))


def test_a_failure_takes_nothing_away_from_what_is_held() -> None:
    entry = record.failed(IN_SYNC, Refused("what"), EPOCH, EPOCH)
    assert (entry.snapshot, entry.last_success) == (HELD, SUCCESS)


def test_a_success_forgets_the_alert_before_it() -> None:
    entry = record.succeeded(IN_SYNC._replace(alerted=EPOCH, alert_reason="what"), SUCCESS)
    assert (entry.status, entry.alerted, entry.alert_reason) == ("ok", None, None)


def test_a_success_is_the_last_attempt_too() -> None:
    assert IN_SYNC.last_attempt == Attempt(SUCCESS.started, SUCCESS.finished, "ok", None)


# The last two are both half past one on the clocks of New York.
@pytest.mark.parametrize("zone", ["UTC", "LINT-14", "EST5EDT,M3.2.0,M11.1.0"])
def test_an_epoch_is_shown_in_utc_wherever_the_node_is(
    monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        shown = [record.utc(epoch) for epoch in (1276957805, 1604208600, 1604212200)]
        kept = Names().kept(ModelSnapshot("sent", "451274", 1604212200))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert shown == [
        "Sat Jun 19 14:30:05 2010 UTC",
        "Sun Nov 01 05:30:00 2020 UTC",
        "Sun Nov 01 06:30:00 2020 UTC",
    ]
    assert kept == "sent.20201101T063000Z-451274"


# --- the metrics file -------------------------------------------------------------------------


def counted(states: list[State], unusable: int) -> str:
    return f"{[(one.service, one.rid) for one in states]} and {unusable}"


def test_metrics_are_made_of_all_states_and_the_number_of_those_that_are_none(
    rec: Record, tmp_path: Path
) -> None:
    folder, file = Path(rec.path).parent, tmp_path / "zfs_sync.prom"
    rec.update("osol2", DST, constant(IN_SYNC))
    (folder / "web_sync#1_zfs_state").write_text("{")
    (folder / "copy_sync#1_zfs_state").write_text(Path(rec.path).read_text())
    (folder / ".z3_sync#2_zfs_state").write_text("not yet whole")
    before = os.umask(0o077)
    record.write_metrics(str(file), str(folder), counted)
    os.umask(before)
    assert file.read_text() == "[('z3', 'sync#1')] and 2"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert sorted(one.name for one in tmp_path.iterdir()) == ["state", "zfs_sync.prom"]


def test_the_folder_of_the_metrics_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        record.write_metrics(str(tmp_path / "no/z.prom"), str(tmp_path / "state"), counted)
    assert not (tmp_path / "no").exists()


def test_who_writes_metrics_reads_the_states_after_the_other_has_written(tmp_path: Path) -> None:
    file, reading = tmp_path / "z.prom", threading.Event()

    def slow(_states: list[State], _unusable: int) -> str:
        reading.set()
        other.join(0.2)
        assert other.is_alive()
        return "old"

    def write(text: Callable[[list[State], int], str]) -> None:
        record.write_metrics(str(file), str(tmp_path / "state"), text)

    def write_second() -> None:
        reading.wait()
        write(lambda *_: "new")

    other = threading.Thread(target=write_second)
    other.start()
    write(slow)
    other.join()
    assert file.read_text() == "new"
