"""What the labs showed is put side by side as it was."""

from __future__ import annotations

import pytest

from tests.labs import table, word_of


def report(when: str, outcome: str, why: str = "") -> pytest.TestReport:
    return pytest.TestReport(
        "tests/e2e/test_x.py::test_y",
        ("", None, ""),
        {},
        outcome,  # type: ignore[arg-type]  # one of three words
        ("file", 1, why) if outcome == "skipped" else None,
        when,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("reports", "word"),
    [
        ([report("setup", "passed"), report("call", "passed")], "passed"),
        ([report("setup", "passed"), report("call", "failed")], "failed"),
        ([report("call", "passed"), report("teardown", "failed")], "failed"),
        ([report("setup", "skipped", "not applicable: this ZFS has no raw")], "not applicable"),
        ([report("setup", "skipped", "no time")], "failed"),
    ],
)
def test_a_skip_is_a_failure_unless_the_lab_lacks_what_was_asked_for(
    reports: list[pytest.TestReport], word: str
) -> None:
    assert word_of(reports) == word


def test_each_file_has_a_line_with_the_counts_of_both_labs() -> None:
    old = {"a.py::one": "passed", "a.py::two": "not applicable", "b.py::three": "failed"}
    new = {"a.py::one": "passed", "a.py::two": "passed"}
    lines = [line.split() for line in table({"zfs-fuse": old, "openzfs": new})]
    assert lines[2:] == [
        ["a.py", *"1010", *"2000"],
        ["b.py", *"0100", *"0001"],
        ["all", *"1110", *"2001"],
    ]
