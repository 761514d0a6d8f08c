"""Tells what became of a process that a test did not start itself."""

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 10.0  # seconds; a killed process is gone in milliseconds, even on a busy machine


def wait_until(reason: str, condition: Callable[[], bool]) -> None:
    """Wait for a condition; fail with the reason when it does not come."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"not in {PATIENCE} s: {reason}"
        time.sleep(0.001)


def wait_for(pid_file: Path) -> None:
    """Wait until a script has written its number there."""
    wait_until(
        f"somebody wrote {pid_file}",
        lambda: pid_file.exists() and pid_file.read_text().endswith("\n"),
    )


def is_gone(pid_file: Path) -> bool:
    """Wait until the process whose number a script wrote there is gone, or a zombie."""
    pid = int(pid_file.read_text())
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if not Path(f"/proc/{pid}/cmdline").read_bytes():
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False
