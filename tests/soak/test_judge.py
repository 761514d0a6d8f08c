"""The judge of a soak objects to what must not be, and to nothing else."""

from __future__ import annotations

import pytest

from tests.e2e.kill_ledger import Dataset, Listing, Snap
from tests.e2e.world import CRITICAL, OK, UNKNOWN, WARNING

from .judge import (
    FALSE_ALARMS,
    FALSE_OK,
    FILES,
    FULL_STREAMS,
    LIMIT_SECONDS,
    Said,
    Score,
    Streams,
    Wrong,
    judge_check,
    judge_files,
    judge_guids,
    lag,
)

LATE = LIMIT_SECONDS * 2


def listing(**datasets: tuple[int, list[int]]) -> Listing:
    """Return datasets by name: when it was created, and its snapshots, each by its creation."""
    return Listing(
        {
            name: Dataset(
                name, "", created, {str(one): Snap(f"{name}{one}", one, one) for one in snaps}
            )
            for name, (created, snaps) in datasets.items()
        }
    )


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (listing(a=(0, [10, 20]), b=(0, [20])), 10),
        (listing(a=(0, [10, 20]), b=(0, [10])), 20),
        (listing(moved=(0, []), a=(0, [20])), 25),
        (listing(), 30),
    ],
)
def test_the_lag_is_that_of_the_oldest_data_that_may_be_missing(
    target: Listing, expected: int
) -> None:
    source = listing(a=(0, [10, 20]), b=(5, [10, 20]))
    assert lag(source, target, now=30) == expected


def said(code: int, lag_seconds: int, *, calm: bool = True, broken: bool | None = False) -> Said:
    return Said("t1", code, "what it said", lag_seconds, calm, broken)


@pytest.mark.parametrize(
    "one",
    [
        said(OK, 0),
        said(OK, LIMIT_SECONDS),
        said(WARNING, LATE),
        said(WARNING, 0, calm=False),
        said(CRITICAL, LATE, broken=True),
        said(CRITICAL, LATE, broken=None),
        said(OK, 0, broken=None),
    ],
)
def test_the_truth_is_not_objected_to(one: Said) -> None:
    judge_check(one)


@pytest.mark.parametrize(
    ("one", "kind"),
    [
        (said(OK, LATE), FALSE_OK),
        (said(OK, LATE, calm=False), FALSE_OK),
        (said(OK, 0, broken=True), FALSE_OK),
        (said(OK, LATE, broken=None), FALSE_OK),
        (said(WARNING, 0), FALSE_ALARMS),
        (said(CRITICAL, LATE), FALSE_ALARMS),
        (said(CRITICAL, 0, calm=False), FALSE_ALARMS),
        (said(UNKNOWN, 0, calm=False), FALSE_ALARMS),
    ],
)
def test_what_is_not_the_truth_is_named(one: Said, kind: str) -> None:
    with pytest.raises(Wrong) as wrong:
        judge_check(one)
    assert wrong.value.kind == kind


def test_files_that_are_missing_or_changed_are_counted_and_so_is_what_should_be_gone() -> None:
    expected = {"/a": {"same": "1", "changed": "2", "missing": "3"}}
    judge_files("t1", expected, expected)
    with pytest.raises(Wrong) as wrong:
        judge_files("t1", expected, {"/a": {"same": "1", "changed": "9", "gone": "4"}})
    assert (wrong.value.kind, wrong.value.count) == (FILES, 3)


def test_foreign_data_may_not_be_replaced_and_more_of_it_is_no_matter() -> None:
    judge_guids("t1", {"tank/x@sent": "1"}, {"tank/x@sent": "1", "tank/x@more": "2"})
    for found in ({"tank/x@sent": "2"}, {}):
        with pytest.raises(Wrong) as wrong:
            judge_guids("t1", {"tank/x@sent": "1"}, found)
        assert wrong.value.kind == FILES


@pytest.mark.parametrize("whole", [True, False])
def test_a_full_stream_needs_a_target_that_lacks_the_dataset(whole: bool) -> None:
    streams = Streams()
    streams.judge({"a": 2}, {"a": 2, "": 0}, whole=whole)
    assert streams.first == 2
    with pytest.raises(Wrong) as wrong:
        streams.judge({"": 1}, {"a": 2, "": 0}, whole=whole)
    assert wrong.value.kind == FULL_STREAMS


def test_only_a_run_that_was_disturbed_sends_twice_to_one_target() -> None:
    Streams().judge({"a": 2}, {"a": 1}, whole=False)
    with pytest.raises(Wrong):
        Streams().judge({"a": 2}, {"a": 1}, whole=True)


def test_the_last_lines_have_every_number() -> None:
    score = Score(7)
    assert score.is_good
    score.wrong[FALSE_OK] += 2
    assert not score.is_good
    text = "\n".join(score.lines())
    for words in ("seed 7", "0 cycles", "0 runs", "full streams: 0", "false OK: 2", "changed: 0"):
        assert words in text
