"""Tells what became of a process that a test did not start itself."""

import time
from pathlib import Path

PATIENCE = 10.0  # seconds; a killed process is gone in milliseconds, even on a busy machine


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
