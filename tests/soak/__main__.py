"""The command `make soak`: random faults for some minutes, on lab nodes with real ZFS.

It starts the lab, lets cycles go until the time is over, and prints the numbers. It ends with 1 if
any of them is not 0, or if the nodes are not equal in the end.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from tests.lab import Lab, LabError, missing

from .inside import DEFECTS, NO_DEFECT
from .judge import NOT_CONVERGED, Score, Wrong
from .soak import Soak, log_of

LOG_LINES = 400


class Ended(BaseException):
    """A signal ends the soak."""


def say(text: str) -> None:
    """Print a line now."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def soak(lab: Lab, score: Score, minutes: float, defect: str) -> None:
    """Let cycles go until the time is over; what is wrong ends it at once."""
    one = Soak(lab, score, defect, say)
    try:
        begun = time.monotonic()
        one.first()
        while time.monotonic() - begun < minutes * 60:
            one.cycle()
        one.last()
    except Wrong as wrong:
        score.wrong[wrong.kind] += wrong.count
        tell(one, str(wrong))
    except (LabError, AssertionError) as error:
        score.wrong[NOT_CONVERGED] += 1
        tell(one, f"{type(error).__name__}: {error}")
    finally:
        one.close()


def tell(one: Soak, what: str) -> None:
    """Print what was wrong, and the log of the cycle that it was found in."""
    doing = f" ({one.doing})" if one.doing else ""
    say(f"\ncycle {one.score.cycles}{doing}: WRONG: {what}\n\nthe log of this cycle:")
    for line in log_of(one.world.nodes)[-LOG_LINES:]:
        say(f"  {line}")
    say("")


def end(signum: int, _: FrameType | None) -> None:
    """End the soak, with its lab."""
    signal.signal(signum, signal.SIG_IGN)
    raise Ended(signum)


def main(argv: Sequence[str]) -> int:
    """Read the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--defect", choices=[NO_DEFECT, *DEFECTS], default=NO_DEFECT)
    args = parser.parse_args(argv)
    if missing():
        sys.exit(f"soak: {missing()}")
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, end)
    score = Score(args.seed)
    say(f"soak: seed {args.seed}, {args.minutes:g} minutes, defect: {args.defect}")
    try:
        with Lab() as lab:
            soak(lab, score, args.minutes, args.defect)
    except Ended as ended:
        say(f"soak: ended by signal {ended.args[0]}; so far:")
        say("\n".join(score.lines()))
        return 128 + int(ended.args[0])
    say("\n".join(score.lines()))
    say(f"soak: {'passed' if score.is_good else 'FAILED'}")
    return 0 if score.is_good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
