"""What the page of a benchmark says of what was measured, and of what was not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .measure import Result
from .report import About, Figure, Found, goals, write

ABOUT = About("2026-11-28", "python -m tests.bench", "zfs", "2 cores", {"ours": "1"}, 3)


def took(*walls: float) -> Result:
    return Result([{"wall": wall, "cpu": 0.3, "memory": 26.0} for wall in walls])


def figures(found: Found) -> dict[str, Figure]:
    return {one.name: one for one in goals(found)}


def test_a_ratio_is_the_median_of_the_rounds_in_which_both_ran() -> None:
    # The machine was slow in the second round: the medians' ratio would be 1.0.
    found = {"one/20": {"sequence": took(1.0, 4.0, 2.0), "ours": took(0.6, 2.0, 2.0, 9.0)}}
    figure = figures(found)["one/20: ours to the bare sequence"]
    assert (figure.ratio, figure.goal, figure.reached) == (0.6, 0.7, "yes")


@pytest.mark.parametrize(("wall", "reached"), [(0.70, "yes"), (0.71, "no")])
def test_a_goal_is_reached_or_it_is_not(wall: float, reached: str) -> None:
    found = {"one/20": {"sequence": took(1.0), "ours": took(wall)}}
    assert figures(found)["one/20: ours to the bare sequence"].reached == reached


def test_who_failed_is_compared_with_nobody_and_is_told_with_its_words(tmp_path: Path) -> None:
    failed = Result([{"wall": 0.1, "cpu": 0.1, "memory": 1.0}], failed="no | such `program`")
    found = {"one/20": {"ours": took(1.0), "bzfs": failed, "syncoid": took(4.0)}}
    assert figures(found)["one/20: ours to the fastest other program"].ratio == 0.25
    write(tmp_path, "page", ABOUT, found)
    assert "| bzfs | failed: `no \\| such 'program'` |" in (tmp_path / "page.md").read_text()
    whole = json.loads((tmp_path / "page.json").read_text())
    assert whole["failed"] == {"one/20": {"bzfs": failed.failed}}
    assert not [one["name"] for one in whole["figures"] if "bzfs" in one["name"]]


def test_round_trips_are_those_that_a_longer_link_adds_but_for_one_handshake() -> None:
    ours, ssh = took(8.0, 9.0, 15.0), took(3.2, 3.2, 3.2)  # 0.5 s a round trip
    # The machine was slow in the last round, with and without the link.
    for run, near in zip(ours.runs, (1.0, 1.9, 8.0), strict=True):
        run["near"] = near
    for run in ssh.runs:
        run["near"] = 0.2
    found = {"trips/20": {"ours": ours, "ssh": ssh}}
    named = figures(found)
    assert named["trips/20: round trips of a connection"].value == 6.0
    beyond = named["trips/20: ours, round trips beyond connecting"]
    assert (beyond.value, beyond.goal, beyond.reached) == (8.0, 8, "yes")


def test_where_the_time_of_a_run_went_stands_below_its_table(tmp_path: Path) -> None:
    ours = took(1.0)
    ours.parts = {"start and look": 0.4, "transfer and proof": 0.6}
    write(tmp_path, "page", ABOUT, {"one/20": {"ours": ours}})
    said = (tmp_path / "page.md").read_text()
    assert "ours, seconds of one more run: start and look 0.4, transfer and proof 0.6." in said
