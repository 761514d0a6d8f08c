"""Runs the agent on the measured machine and tells where its time went, as one line of JSON.

    timeline.py ARGUMENT...

A part of a run begins with the first line that the agent logs of it; what is logged is about to be
done. Decides which lines these are.
"""

import json
import logging
import os
import time

from zfs_sync_agent.cli import main

PARTS = {
    "start and look": "",
    "snapshot and look": "zfs snapshot",
    "transfer and proof": "zfs receive",
    "rotation there": "zfs destroy",
    "state file and rotation here": "update state file",
}


def now() -> float:
    """Return the seconds since this process began."""
    with open("/proc/self/stat") as file:  # noqa: PTH123
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class Parts(logging.Handler):
    """Keeps when each part began."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = {next(iter(PARTS)): 0.0}

    def emit(self, record: logging.LogRecord) -> None:
        """Look at one line; of two parts the later one has begun, and none begins again."""
        said = record.getMessage()
        names = list(PARTS)
        for name in names[names.index(list(self.begun)[-1]) + 1 :]:
            if PARTS[name] in said:
                self.begun[name] = now()
                return


parts = Parts()
logging.getLogger("zfs_sync_agent").addHandler(parts)
try:
    main()
except SystemExit as end:
    if end.code:
        raise
ends = [*list(parts.begun.values())[1:], now()]
took = {name: end - began for (name, began), end in zip(parts.begun.items(), ends, strict=True)}
print(json.dumps(took))  # noqa: T201
