"""Tells what became of a process that a test did not start itself."""

import time
from pathlib import Path

PATIENCE = 10.0  # seconds; a killed process is gone in milliseconds, even on a busy machine


def wait_for(pid_file: Path) -> None:
    """Wait until a script has written its number there."""
    end = time.monotonic() + PATIENCE
    while not (pid_file.exists() and pid_file.read_text().endswith("\n")):
        assert time.monotonic() < end, f"nobody wrote {pid_file}"
        time.sleep(0.01)


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
