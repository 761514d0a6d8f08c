"""Shows on a terminal how far the running streams are: one line each, redrawn in place.

It writes nothing anywhere else, so that cron mails nothing, and nothing of a stream that is over
before anyone could read its line.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TextIO

EVERY_SECONDS = 0.5
SHOWN_AFTER_SECONDS = 1.0
_RECENT = 10  # redraws: the rate is that of the last five seconds

_UNITS = " KMGTPE"
_KIBI = 1024


def amount(size: float) -> str:
    """Return bytes as zfs tells them.

    >>> amount(0), amount(1023), amount(1536), amount(120 << 30)
    ('0', '1023', '1.5K', '120G')
    """
    unit = 0
    while size >= _KIBI and unit < len(_UNITS) - 1:
        size, unit = size / _KIBI, unit + 1
    digits = 1 if unit and size < 100 else 0  # noqa: PLR2004 - three digits are enough
    return f"{size:.{digits}f}{_UNITS[unit].strip()}"


def duration(seconds: float) -> str:
    """Return seconds as they are counted.

    >>> duration(7.9), duration(3671)
    ('0:07', '1:01:11')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Meter:
    """One running stream; `expected` is what zfs foretold of its bytes, None where it did not."""

    def __init__(self, label: str, expected: int | None, now: float) -> None:
        self.label, self.expected, self.began = label, expected, now
        self.moved = 0
        self._recent = deque([(now, 0)], maxlen=_RECENT)

    def tell(self, moved: int) -> None:
        """Take note of the bytes that were moved so far."""
        self.moved = moved

    def line(self, now: float, columns: int = 80) -> str:
        """Return bytes, rate, and, as far as it can be foretold, percent and the time left.

        Where it is too wide, the label is cut: the figures are what is looked at.
        """
        since, before = self._recent[0]
        rate = (self.moved - before) / max(now - since, 0.001)
        self._recent.append((now, self.moved))
        parts = [amount(self.moved), f"{amount(rate)}/s"]
        if self.expected:
            parts[0] += f" of {amount(self.expected)}"
            parts.append(f"{min(99, 100 * self.moved // self.expected)}%")  # it has not ended
            if rate >= 1 and self.moved < self.expected:
                parts.append(f"{duration((self.expected - self.moved) / rate)} left")
        figures = f": {', '.join(parts)}"
        return f"{self.label[: max(0, columns - len(figures))]}{figures}"[:columns]

    def last_line(self, now: float) -> str:
        """Return what stays: the bytes, how long they took, and the mean rate."""
        seconds = now - self.began
        rate = amount(self.moved / max(seconds, 0.001))
        return f"{self.label}: {amount(self.moved)} in {duration(seconds)}, {rate}/s"


class Progress:
    """Shows nothing: where nobody looks."""

    @contextlib.contextmanager
    def stream(self, label: str, expected: int | None) -> Iterator[Callable[[int], None]]:
        """Show a stream as long as the context lasts; give what is to be told its bytes."""
        yield Meter(label, expected, 0).tell


class OnTerminal(Progress):
    """The lines at the foot of a terminal; what else is written there goes above them."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._lock = threading.RLock()  # a signal's handler may come while it is held
        self._running: list[Meter] = []
        self._drawn = 0
        self._wake = threading.Condition(self._lock)

    @contextlib.contextmanager
    def stream(self, label: str, expected: int | None) -> Iterator[Callable[[int], None]]:
        """Show a stream as long as the context lasts; give what is to be told its bytes."""
        meter = Meter(label, expected, time.monotonic())
        with self._lock:
            self._running.append(meter)
            if len(self._running) == 1:
                threading.Thread(target=self._redraw, daemon=True).start()
        try:
            yield meter.tell
        finally:
            now = time.monotonic()
            with self._lock:
                shown = self._is_shown(meter, now)
                self._running.remove(meter)
                self._wake.notify_all()
                self._draw(f"{meter.last_line(now)}\n" if shown else "")

    def write(self, text: str) -> int:
        """Write above the lines."""
        with self._lock:
            self._draw(text)
        return len(text)

    def flush(self) -> None:
        """What is written is there at once."""

    def _redraw(self) -> None:
        with self._lock:
            while self._running:
                self._draw()
                self._wake.wait(EVERY_SECONDS)

    @staticmethod
    def _is_shown(meter: Meter, now: float) -> bool:
        return now - meter.began >= SHOWN_AFTER_SECONDS

    def _draw(self, above: str = "") -> None:
        """Put the lines anew, in one write, so that nothing comes between."""
        now = time.monotonic()
        columns, rows = self._size()
        shown = [one for one in self._running if self._is_shown(one, now)][: rows - 1]
        # A line that fills the last column would be two on some terminals.
        lines = [one.line(now, columns - 1) for one in shown]
        if not (above or lines or self._drawn):
            return
        back = f"\x1b[{self._drawn}A\r\x1b[J" if self._drawn else ""
        text = "".join(f"{line}\n" for line in lines)
        with contextlib.suppress(OSError, ValueError):  # a terminal that was closed
            self._terminal.write(f"{back}{above}{text}")
            self._terminal.flush()
        self._drawn = len(lines)

    def _size(self) -> tuple[int, int]:
        try:
            columns, rows = os.get_terminal_size(self._terminal.fileno())
        except (OSError, ValueError):
            return 80, 24
        return columns or 80, rows or 24


def on(terminal: TextIO) -> Progress:
    """Return what shows progress there: nothing, where it is no terminal that can redraw a line."""
    able = terminal.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    return OnTerminal(terminal) if able else Progress()
