"""The scheme by example, on two lab nodes: run by `make demo`, printed to be read.

It types commands as an operator or cron would and stops at the first that does not end as it says.
It decides nothing and mends nothing but by the commands it shows.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from tests.lab import Lab, LabError, Node, missing
from tests.lab.host import REPOSITORY

OSOL1, OSOL2 = "osol1.opensvc.com", "osol2.opensvc.com"
SERVICE_FILE = Path(__file__).with_name("z3.opensvc.com.env")
FULL = "snapshot -r|send -R osol1_z3_root/data@tosend|rename -r osol2_|rename -r osol1_"
INCREMENTAL = (
    "snapshot -r|send -R -i osol1_z3_root/data@sent osol1_z3_root/data@tosend|receive -d osol2_"
    "|destroy -r osol2_|rename -r osol2_|update state file|destroy -r osol1_|rename -r osol1_"
)


class Unexpected(Exception):
    """A command did not end as the demo says."""


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def heading(text: str) -> None:
    say(f"\n=== {text}")


def run(node: Node, line: str, status: int = 0, has: str = "") -> str:
    """Type a line on a node; `has` holds what the output must have, in this order, between bars."""
    say(f"\nroot@{node.name} # {line}")
    result = node.run(["/bin/sh", "-c", line], check=False, timeout=120)
    output = result.stdout + result.stderr
    say(f"{output}[exit status {result.returncode}]")
    if result.returncode != status:
        raise Unexpected(f"exit status {status} was expected")
    if not re.search(".*".join(re.escape(part) for part in has.split("|")), output, re.DOTALL):
        raise Unexpected(f"this was expected in the output: {has}")
    return output


def advice(output: str, pattern: str) -> str:
    """Return the command that the agent's own block says to type."""
    found = re.search(pattern, output)
    if found is None:
        raise Unexpected(f"the block should have said what to type: {pattern}")
    return found[0]


def prepare(node: Node) -> None:
    """Install the programs and the service file."""
    env = f"PYTHONDONTWRITEBYTECODE=1 PYTHONPATH='{REPOSITORY}'"
    for program in ("zfs_sync_agent", "check_zfs_sync"):
        file = node.root / "bin" / program
        start = f"exec '{sys.executable}' -m {program}"
        file.write_text(f'#!/bin/sh\n{env} {start} "$@"\n')
        file.chmod(0o755)
    node.path("/etc/zfs_sync").joinpath(SERVICE_FILE.name).write_text(SERVICE_FILE.read_text())


def main(osol1: Node, osol2: Node) -> None:
    heading("Two nodes, and one service file that is the same on both")
    run(osol1, f"cat /etc/zfs_sync/{SERVICE_FILE.name}")
    run(osol1, "zfs create osol1_z3_root/data && zfs create osol1_z3_root/data/www")
    run(osol1, "zfs_sync_agent validate", has="valid")
    run(osol1, "check_zfs_sync", 1, "WARNING|never synchronized")

    heading("Full synchronization (-v shows the log, which otherwise goes to syslog only)")
    run(osol1, "zfs_sync_agent -v -s z3.opensvc.com syncupdate", has=FULL)

    heading("Incremental synchronization")
    run(osol1, "date > /run/pools/osol1_z3_root/data/www/index.html")
    run(osol1, "zfs_sync_agent -v -s z3.opensvc.com syncupdate", has=INCREMENTAL)

    heading("Status, and the check, on the source and on the target")
    run(osol1, "zfs_sync_agent status", has="osol2.opensvc.com|up")
    run(osol2, "zfs_sync_agent status", has="osol2.opensvc.com|standby")
    run(osol1, "check_zfs_sync", has="OK")
    run(osol2, "check_zfs_sync --verify", has="OK")

    heading("A replica that is older than allowed")
    say("sync_max_delay is 25 hours here, and this demo does not wait for them to pass: -w 0 sets")
    say("another limit, no lag at all, and the replica is older than that after one second.")
    time.sleep(1)
    run(osol1, "check_zfs_sync -w 0", 1, "WARNING|late")
    run(osol2, "check_zfs_sync -w 0", 1, "WARNING|late")

    heading("The same crontab on the standby: it holds the replica, so it sends nothing")
    run(osol2, "zfs_sync_agent syncupdate")
    run(osol2, "zfs_sync_agent -v syncupdate", has="standby|nothing to send")

    heading("A broken chain: somebody on the source takes @sent away and makes another")
    run(osol1, "zfs destroy osol1_z3_root/data@sent && zfs snapshot osol1_z3_root/data@sent")
    say("\nThis is what cron mails after its next run. Nothing was sent, no dataset was touched.")
    block = run(osol1, "zfs_sync_agent syncupdate", 3, "chain broken|untouched|next")
    run(osol1, "check_zfs_sync", 2, "CRITICAL|broken")
    run(osol2, "check_zfs_sync", 2, "CRITICAL|broken")

    heading("Mended step by step, as the agent says itself")
    run(osol1, advice(block, r"zfs destroy (-r )?[^;\s]+"))
    block = run(osol1, "zfs_sync_agent syncupdate", 3, "chain broken|untouched|next")
    run(osol1, advice(block, r"zfs_sync_agent .* syncfull"), has="takes the place of")
    run(osol1, "check_zfs_sync", has="OK")
    run(osol2, "check_zfs_sync --verify", has="OK")
    run(osol1, "zfs_sync_agent syncupdate")
    run(osol1, "zfs_sync_agent -v syncupdate", has=INCREMENTAL)


if __name__ == "__main__":
    if missing():
        sys.exit(f"demo: {missing()}")
    try:
        with Lab() as lab:
            pools = {OSOL1: {"osol1_z3_root": "source"}, OSOL2: {"osol2_z3_root": "target"}}
            nodes = lab.nodes(pools)
            for each in nodes:
                prepare(each)
            main(*nodes)
    except (Unexpected, LabError) as reason:
        sys.exit(f"\ndemo: failed: {reason}")
    say("\ndemo: every command ended as expected")
