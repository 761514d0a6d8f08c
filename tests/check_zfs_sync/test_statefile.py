"""The state file is read as it was written, and anything else is refused with its path."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from check_zfs_sync.statefile import (
    FORMAT,
    MAX_FILE_BYTES,
    MODES,
    RESULTS,
    STATUSES,
    Attempt,
    KeptBase,
    Snapshot,
    State,
    StateFileError,
    Success,
    TargetState,
    digest,
    format_state,
    parse_state,
    read_state,
    state_path,
)

NAMES = st.text(min_size=1, max_size=12)
EPOCHS = st.integers(0, 2**40)
TARGETS = st.builds(
    TargetState,
    dst=NAMES,
    status=st.sampled_from(STATUSES),
    clock_offset=st.none() | st.integers(-(2**40), 2**40),
    snapshot=st.none() | st.builds(Snapshot, NAMES, EPOCHS, EPOCHS, st.text(max_size=8)),
    equal_as_of=st.none() | EPOCHS,
    flags=st.lists(st.text(max_size=4), max_size=3).map(tuple),
    last_success=st.none()
    | st.builds(Success, EPOCHS, EPOCHS, st.integers(0, 2**63), st.sampled_from(MODES)),
    last_attempt=st.none()
    | st.builds(Attempt, EPOCHS, EPOCHS, st.sampled_from(RESULTS), st.none() | st.text()),
    kept_bases=st.lists(st.builds(KeptBase, NAMES, EPOCHS, EPOCHS), max_size=2).map(tuple),
    alerted=st.none() | EPOCHS,
)
STATES = st.builds(
    State, *[NAMES] * 5, EPOCHS, st.text(max_size=8), st.dictionaries(NAMES, TARGETS, max_size=3)
)

STATE = State(
    service="z3.opensvc.com",
    rid="sync#1",
    source="osol1.opensvc.com",
    here="osol1.opensvc.com",
    src="osol1_z3_root/data",
    sync_max_delay=90000,
    agent="0.1.0",
    targets={
        "osol2.opensvc.com": TargetState(
            dst="osol2_z3_root/data",
            status="ok",
            clock_offset=-3,
            snapshot=Snapshot("7130521973640210317", 1276957800, 2, digest([("", "1")])),
            equal_as_of=None,
            flags=("-L",),
            last_success=Success(1276957800, 1276957805, 2**41, "full"),
            last_attempt=Attempt(1276957800, 1276957805, "ok", None),
            alerted=None,
        )
    },
)


def document(*path: str, value: object) -> str:
    """STATE as text, with one field replaced."""
    whole: dict[str, Any] = json.loads(format_state(STATE))
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(whole)


@given(STATES)
def test_what_was_formatted_is_parsed_to_the_same_state(state: State) -> None:
    assert parse_state(format_state(state), "file") == state


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_text_parses_or_raises_a_state_file_error(text: str) -> None:
    with pytest.raises(StateFileError, match=r"^file: "):
        parse_state(text, "file")


@given(
    st.sampled_from(["service", "here", "sync_max_delay", "targets", "format", "rid", "agent"]),
    st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.just([]),
)
def test_any_value_in_a_field_parses_or_raises_a_state_file_error(key: str, value: object) -> None:
    try:
        parsed = parse_state(document(key, value=value), "file")
    except StateFileError:
        return
    assert getattr(parsed, key, FORMAT) == value


def test_format_is_one_sorted_object_in_ascii_with_a_newline_at_the_end() -> None:
    text = format_state(STATE._replace(src="tank/é"))
    assert text.endswith("}\n")
    assert text.isascii()
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_the_path_is_the_seeds() -> None:
    expected = "/var/lib/opensvc/z3.opensvc.com_sync#1_zfs_state"
    assert state_path("/var/lib/opensvc", "z3.opensvc.com", "sync#1") == expected


@pytest.mark.parametrize("names", [("../etc/passwd", "sync#1"), ("z3", "sync#/1")])
def test_a_name_with_a_slash_has_no_path(names: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="file name"):
        state_path("/var/lib/zfs_sync", *names)


def test_unknown_fields_are_ignored() -> None:
    assert parse_state(document("targets", "osol2.opensvc.com", "eta", value=[1]), "f") == STATE


def test_a_missing_nullable_field_reads_as_null() -> None:
    whole = json.loads(format_state(STATE))
    for key in ("clock_offset", "equal_as_of", "alerted"):
        del whole["targets"]["osol2.opensvc.com"][key]
    entry = parse_state(json.dumps(whole), "f").targets["osol2.opensvc.com"]
    assert (entry.clock_offset, entry.equal_as_of, entry.alerted) == (None, None, None)


def test_a_newer_format_is_an_error_that_says_so() -> None:
    with pytest.raises(StateFileError, match="format 2 is newer than 1"):
        parse_state('{"format": 2, "everything": "else"}', "f")


OSOL2 = ("targets", "osol2.opensvc.com")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*OSOL2, "snapshot", "creation"), float("nan")),
        ((*OSOL2, "snapshot", "creation"), 1276957800.5),
        ((*OSOL2, "snapshot", "creation"), True),
        ((*OSOL2, "snapshot", "creation"), "1276957800"),
        ((*OSOL2, "snapshot", "creation"), -1),
        ((*OSOL2, "snapshot", "creation"), 2**40 + 1),
        ((*OSOL2, "snapshot", "guid"), 7130521973640210317),
        ((*OSOL2, "snapshot"), []),
        ((*OSOL2, "status"), "fine"),
        ((*OSOL2, "flags"), "-L"),
        ((*OSOL2, "flags"), [1]),
        ((*OSOL2, "last_success", "mode"), None),
        ((*OSOL2, "last_success", "bytes"), -1),
        ((*OSOL2, "last_attempt", "error"), 5),
        ((*OSOL2, "dst"), ""),
        (("targets",), []),
        (("here",), None),
        (("sync_max_delay",), 1e9),
    ],
)
def test_a_field_of_the_wrong_type_or_size_is_named(path: tuple[str, ...], value: object) -> None:
    with pytest.raises(StateFileError) as caught:
        parse_state(document(*path, value=value), "/var/lib/x")
    assert str(caught.value).startswith(f"/var/lib/x: field {'.'.join(path)} ") or (
        str(caught.value).startswith(f"/var/lib/x: {'.'.join(path)} is not an object")
    )


@pytest.mark.parametrize("text", ["[" * 200_000, "1" * 5_000, "", "{", "null", '"\ud800"'])
def test_a_hostile_or_torn_text_is_a_state_file_error(text: str) -> None:
    with pytest.raises(StateFileError):
        parse_state(text, "f")


def test_an_absent_file_is_none(tmp_path: Path) -> None:
    assert read_state(str(tmp_path / "absent")) is None


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(format_state(STATE))
    assert read_state(str(tmp_path / "file")) == STATE


def test_a_path_through_a_file_is_an_error_and_not_absence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateFileError, match="Not a directory"):
        read_state(str(tmp_path / "file" / "below"))


def test_bytes_that_are_not_utf_8_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b'{"format": 1, "service": "\xff"}')
    with pytest.raises(StateFileError, match="not UTF-8 at byte 26"):
        read_state(str(tmp_path / "file"))


def test_a_file_that_is_too_large_is_not_parsed(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(StateFileError, match="larger than"):
        read_state(str(tmp_path / "file"))


def test_a_file_that_is_larger_than_it_said_is_not_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status = "/proc/self/status"
    assert Path(status).stat().st_size == 0
    monkeypatch.setattr("check_zfs_sync.statefile.MAX_FILE_BYTES", 100)
    with pytest.raises(StateFileError, match="larger than 100 bytes"):
        read_state(status)


def test_a_fifo_does_not_block_and_a_directory_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StateFileError, match="not a regular file"):
        read_state(str(tmp_path / "fifo"))
    with pytest.raises(StateFileError, match="Is a directory"):
        read_state(str(tmp_path))


def test_a_path_that_the_system_refuses_is_a_state_file_error() -> None:
    with pytest.raises(StateFileError):
        read_state("/tmp/\0")  # noqa: S108 - never opened


def test_the_digest_is_the_sha256_of_the_sorted_lines() -> None:
    # printf '\0001\na\0002\n' | sha256sum
    expected = "b656cf8cf1b8f5443e8d05c1decae3f07fefd5687daf225ff51c8682cf5e8a9a"
    assert digest([("a", "2"), ("", "1")]) == expected
