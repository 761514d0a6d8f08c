"""Runs one shell script on the measured machine and prints what it took, as one line of JSON.

    probe.py SECONDS SCRIPT

Decides nothing. CPU and memory are those of the script's processes that were waited for, so not of
the kernel's ZFS, of a daemon that stays, or of the other machine; `memory` is the largest process.
"""

import json
import os
import signal
import sys
import time

LOG = "/run/bench.log"


def main() -> None:
    """Run it."""
    seconds, script = float(sys.argv[1]), sys.argv[2]
    log = os.open(LOG, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    streams = [(os.POSIX_SPAWN_DUP2, nothing, 0)]
    streams += [(os.POSIX_SPAWN_DUP2, log, number) for number in (1, 2)]
    late = False
    start = time.monotonic()
    pid = os.posix_spawn(
        "/bin/sh", ["sh", "-c", script], os.environ, file_actions=streams, setsid=True
    )

    def end(*_: object) -> None:
        nonlocal late
        late = True
        os.killpg(pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    _, status, usage = os.wait4(pid, 0)
    wall = time.monotonic() - start
    signal.setitimer(signal.ITIMER_REAL, 0)
    with open(LOG, errors="replace") as file:  # noqa: PTH123 - imports are time
        said = file.read()[-2000:].strip()
    found = {
        "wall": wall,
        "cpu": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss / 1024,
        "status": os.waitstatus_to_exitcode(status),
        "said": f"took more than {seconds:g} s" if late else said,
    }
    print(json.dumps(found))  # noqa: T201


main()
