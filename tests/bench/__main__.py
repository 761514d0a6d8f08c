"""The benchmark: `make bench`, with works, rounds and lab to choose; see --help.

Decides what is run and where the results go. A machine that does something else meanwhile gives no
figures; seconds of two machines, or of two runs, are not to be compared, only ratios of one run.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shlex
import sys
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.host import REPOSITORY

from . import alone, peers
from .measure import Bench, Results, say
from .peers import EVERYONE, Contender
from .place import places, version
from .report import About, write
from .works import KINDS, SERIES, SMOKE, Work, needed_mib

BUILD = REPOSITORY / "build" / "bench"
LAB = os.environ.get("ZFS_LAB", "fuse")
BUDGET_SECONDS = 30


def parse() -> argparse.Namespace:
    """Read the command line."""
    works = "\n".join(f"  {kind}/SIZE  {text}" for kind, text in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="make bench",
        description="Compares the agent with the bare commands and with other programs.",
        epilog=f"works:\n{works}\nwho:\n  {' '.join(one.name for one in EVERYONE)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--work",
        default="",
        help="e.g. idle/20,bulk/1000; with this ZFS, unless given:\n" + SERIES[LAB],
    )
    parser.add_argument("--who", default="", help="only these, e.g. sequence,ours")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--budget",
        type=float,
        default=BUDGET_SECONDS,
        help="who has run for so many seconds gets no more rounds of a work (%(default)s)",
    )
    parser.add_argument("--smoke", action="store_true", help="each work once, as small as may be")
    parser.add_argument("--out", type=Path, default=BUILD / "results", help="a folder")
    parser.add_argument("--name", default=LAB, help="what its files are called (%(default)s)")
    return parser.parse_args()


def contenders(names: str) -> list[Contender]:
    """Return those that were asked for."""
    known = {one.name: one for one in EVERYONE}
    chosen = names.replace(",", " ").split() or list(known)
    if strange := [name for name in chosen if name not in known]:
        raise ValueError(f"{strange[0]!r} is nobody; there are: {', '.join(known)}")
    return [known[name] for name in chosen]


def main() -> int:
    """Run what was asked for; the results are written after each work."""
    args = parse()
    names = (args.work or (SMOKE if args.smoke else SERIES[LAB])).replace(",", " ").split()
    works, who = [Work.named(name) for name in names], contenders(args.who)
    rounds = 1 if args.smoke else args.rounds
    about = About(
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        command=f"ZFS_LAB={LAB} python -m tests.bench {shlex.join(sys.argv[1:])}".rstrip(),
        zfs=version(LAB),
        machine=f"{os.cpu_count()} cores, Linux {platform.release()}",
        versions=peers.fetch(BUILD / "programs"),
        rounds=rounds,
    )
    found: dict[str, Results] = {}

    def keep(work: Work, results: Results) -> None:
        found[work.name] = results
        write(args.out, args.name, about, found)

    for work in works:
        if work.alone:
            keep(work, alone.measure(work, rounds))
    together = [work for work in works if not work.alone]
    if together:
        count = max(work.targets for work in together)
        with places(LAB, count, needed_mib(together)) as (source, targets):
            for one in (source, *targets):
                one.put(peers.files(BUILD / "programs"))
            bench = Bench(source, targets, rounds, args.budget)
            for work in together:
                keep(work, bench.measure(work, who))
    say(f"the results are in {args.out}/{args.name}.md, .json and .svg")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (LabError, ValueError) as error:
        sys.exit(f"bench: {error}")
