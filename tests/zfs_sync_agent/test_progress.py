"""What a person at a terminal sees of a transfer, and that nobody else sees anything."""

import contextlib
import io
import os
import re
import threading
from collections.abc import Iterator
from typing import TextIO

import pytest

from zfs_sync_agent import progress
from zfs_sync_agent.progress import Meter, OnTerminal, Progress

from .processes import wait_until

MIB = 1 << 20
LABEL = "z3/sync#1 to osol2"


class Screen(io.StringIO):
    """A terminal that keeps what is drawn on it, by the few sequences that are used."""

    @property
    def lines(self) -> list[str]:
        """Return what stands there now, the line of the cursor last."""
        shown: list[str] = [""]
        for text, up, down in re.findall(
            r"([^\x1b\n]+)|\x1b\[(\d+)A\r\x1b\[J|(\n)", self.getvalue()
        ):
            if up:
                del shown[len(shown) - 1 - int(up) :]
                shown.append("")
            elif down:
                shown.append("")
            else:
                shown[-1] += text
        return shown


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOWN_AFTER_SECONDS", 0)
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.01)


@pytest.fixture
def pty() -> Iterator[TextIO]:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        yield terminal
    os.close(ours)


def test_a_line_has_bytes_rate_percent_and_the_time_left() -> None:
    meter = Meter(LABEL, 100 * MIB, 0)
    meter.tell(25 * MIB)
    assert meter.line(5) == f"{LABEL}: 25.0M of 100M, 5.0M/s, 25%, 0:15 left"


def test_a_label_gives_way_to_the_figures() -> None:
    meter = Meter("z3.opensvc.com/sync#1 to osol2.opensvc.com", 100 * MIB, 0)
    meter.tell(25 * MIB)
    assert meter.line(5, 60) == "z3.opensvc.com/sync#1: 25.0M of 100M, 5.0M/s, 25%, 0:15 left"


def test_a_line_without_an_estimate_has_bytes_and_rate() -> None:
    meter = Meter(LABEL, None, 0)
    meter.tell(25 * MIB)
    assert meter.line(5) == f"{LABEL}: 25.0M, 5.0M/s"


def test_more_bytes_than_foretold_never_reach_the_whole() -> None:
    meter = Meter(LABEL, MIB, 0)
    meter.tell(2 * MIB)
    assert meter.line(2) == f"{LABEL}: 2.0M of 1.0M, 1.0M/s, 99%"


def test_a_stream_that_has_not_begun_foretells_nothing() -> None:
    assert Meter(LABEL, MIB, 0).line(9) == f"{LABEL}: 0 of 1.0M, 0/s, 0%"


def test_the_rate_is_that_of_the_last_moments() -> None:
    meter = Meter(LABEL, None, 0)
    for second in range(1, 31):
        meter.tell(min(second, 10) * MIB)
        line = meter.line(second)
    assert line.endswith(" 0/s")


def test_what_stays_has_the_bytes_and_the_time_they_took() -> None:
    meter = Meter(LABEL, None, 0)
    meter.tell(100 * MIB)
    assert meter.last_line(100) == f"{LABEL}: 100M in 1:40, 1.0M/s"


@pytest.mark.usefixtures("at_once")
def test_streams_at_once_have_a_line_each_in_place() -> None:
    screen = Screen()
    shown = OnTerminal(screen)

    def carry(number: int) -> None:
        with shown.stream(f"to {number}", 1000) as tell:
            for moved in range(0, 1000, 50):
                tell(moved)
                shown.write(f"log of {number}\n")
            tell(1000 + number)

    threads = [threading.Thread(target=carry, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = screen.lines
    assert lines[-1] == ""
    log = [line for line in lines if line.startswith("log of")]
    ends = sorted(line.partition(" in ")[0] for line in lines if line.startswith("to "))
    assert (len(log), ends) == (60, ["to 0: 1000", "to 1: 1001", "to 2: 1002"])
    assert len(lines) == 60 + 3 + 1


@pytest.mark.usefixtures("at_once")
def test_a_line_is_redrawn_while_nobody_tells_anything() -> None:
    screen = Screen()
    with OnTerminal(screen).stream(LABEL, None):
        wait_until("drawn three times", lambda: screen.getvalue().count(LABEL) > 2)
        assert len(screen.lines) == 2


@pytest.mark.usefixtures("at_once")
def test_a_stream_that_fails_leaves_its_last_line_and_lets_go() -> None:
    screen = Screen()
    with contextlib.suppress(ValueError), OnTerminal(screen).stream(LABEL, None) as tell:
        tell(7)
        raise ValueError("stalled")
    assert screen.lines[0].startswith(f"{LABEL}: 7 in 0:00")


def test_a_stream_that_is_over_at_once_shows_nothing() -> None:
    screen = Screen()
    with OnTerminal(screen).stream(LABEL, None) as tell:
        tell(5)
    assert screen.getvalue() == ""


@pytest.mark.usefixtures("at_once")
def test_a_line_is_no_wider_than_the_terminal() -> None:
    screen = Screen()
    with OnTerminal(screen).stream("x" * 200, None):
        wait_until("it is drawn", lambda: bool(screen.getvalue()))
        assert len(screen.lines[0]) == 79


@pytest.mark.usefixtures("at_once")
def test_a_terminal_that_was_closed_hurts_nobody() -> None:
    screen = Screen()
    with OnTerminal(screen).stream(LABEL, None) as tell:
        screen.close()
        tell(5)


def test_progress_is_shown_on_a_terminal(pty: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(progress.on(pty), OnTerminal)


@pytest.mark.parametrize("term", ["dumb", None])
def test_nothing_is_shown_where_no_line_can_be_redrawn(
    pty: TextIO, term: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TERM", raising=False)
    if term:
        monkeypatch.setenv("TERM", term)
    assert not isinstance(progress.on(pty), OnTerminal)


def test_nothing_is_shown_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with open(os.devnull, "w") as file:  # noqa: PTH123
        assert type(progress.on(file)) is Progress
