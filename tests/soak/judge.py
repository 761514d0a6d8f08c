"""Decides what of a soak is wrong, from the test's own listings and checksums.

It knows nothing of state files, marks or logs, and never runs anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.e2e.kill_ledger import Listing
from tests.e2e.world import CRITICAL, OK, WARNING

LIMIT_SECONDS = 60
# Between a listing and a check; and the snapshots of one `snapshot -r` may differ by a second.
SLACK_SECONDS = 2

# What must not be, in the order of the last lines of a soak.
FULL_STREAMS, FALSE_OK, FALSE_ALARMS = "full streams", "false OK", "false alarms"
FILES, NOT_CONVERGED = "files missing or changed", "not converged"
KINDS = (FULL_STREAMS, FALSE_OK, FALSE_ALARMS, FILES, NOT_CONVERGED)

Files = Mapping[str, str]  # file name -> sha256


class Wrong(AssertionError):
    """Something that must never be, `count` times."""

    def __init__(self, kind: str, text: str, count: int = 1) -> None:
        self.kind, self.count = kind, count
        super().__init__(f"{kind}: {text}")


class Said(NamedTuple):
    """What the check said, where, and what the test knows of the replicas that it speaks of.

    `lag` is the greatest of their lags. `calm`: since the last run that was not disturbed nothing
    was done by which a state file may be older than the truth, and no clock was moved. `broken`:
    the test itself broke the chain, and a run has seen it; None: it is being mended.
    """

    where: str
    code: int
    text: str
    lag: int
    calm: bool
    broken: bool | None


def lag(source: Listing, target: Listing, now: float) -> int:
    """Return how old the oldest data is that the source has and the target may lack, in seconds.

    By the newest snapshot that both hold of each dataset; where there is none, since the dataset
    was created.
    """
    held = target.guids
    oldest = now
    for one in source.datasets.values():
        common = [snap.creation for snap in one.snapshots.values() if snap.guid in held]
        oldest = min(oldest, max(common, default=one.creation))
    return max(0, int(now - oldest))


def judge_check(said: Said, limit: int = LIMIT_SECONDS, slack: int = SLACK_SECONDS) -> None:
    """Object to an OK about a replica older than the limit, and to an alarm without a reason."""
    text = f"{said.where}: {said.text.strip()} (true lag {said.lag} s, limit {limit} s)"
    if said.code == OK:
        if said.lag > limit + slack:
            raise Wrong(FALSE_OK, text)
        if said.broken:
            raise Wrong(FALSE_OK, f"the chain is broken: {text}")
    elif said.code == CRITICAL:
        if said.broken is False:
            raise Wrong(FALSE_ALARMS, text)
    elif said.code == WARNING:
        if said.calm and said.lag < limit - slack and said.broken is False:
            raise Wrong(FALSE_ALARMS, text)
    else:
        raise Wrong(FALSE_ALARMS, text)


def judge_files(where: str, expected: Mapping[str, Files], found: Mapping[str, Files]) -> None:
    """Object to files that are missing or changed; the outer keys are datasets.

    What is there and was not expected counts as well: it is data that should be gone.
    """
    wrong = [
        f"{name}/{file}"
        for name in sorted({*expected, *found})
        for file in sorted({*expected.get(name, {}), *found.get(name, {})})
        if expected.get(name, {}).get(file) != found.get(name, {}).get(file)
    ]
    if wrong:
        raise Wrong(FILES, f"{where}: {', '.join(wrong[:5])}", len(wrong))


def judge_guids(where: str, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Object to foreign datasets and snapshots that are missing, or are others now."""
    wrong = [name for name, guid in expected.items() if found.get(name) != guid]
    if wrong:
        raise Wrong(FILES, f"{where}: foreign {', '.join(wrong[:5])}", len(wrong))


@dataclass
class Streams:
    """Full streams, counted by dataset, and by whether they had a reason."""

    first: int = 0
    asked: int = 0

    def judge(self, sent: Mapping[str, int], lacking: Mapping[str, int], *, whole: bool) -> None:
        """Object to full streams of what no target lacked.

        `lacking` is how many targets held no snapshot of a dataset before the run. `whole`: nobody
        disturbed the run, so one stream for each of them is enough.
        """
        for name, count in sent.items():
            most = lacking.get(name, 0)
            if not most or (whole and count > most):
                raise Wrong(
                    FULL_STREAMS,
                    f"{name or 'the root'} was sent in full {count} times, and {most} targets"
                    " lacked it",
                    count - most,
                )
            self.first += count


@dataclass
class Score:
    """The numbers of a soak."""

    seed: int
    cycles: int = 0
    runs: int = 0
    checks: int = 0
    files: int = 0
    streams: Streams = field(default_factory=Streams)
    faults: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    wrong: Counter[str] = field(default_factory=Counter)

    @property
    def is_good(self) -> bool:
        """Whether nothing was wrong."""
        return not self.wrong

    def lines(self) -> Sequence[str]:
        """Return what is printed at the end."""
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
        return [
            f"seed {self.seed}: {self.cycles} cycles, {self.runs} runs, {self.checks} checks,"
            f" {self.files} files compared",
            f"faults: {faults or 'none'}; {self.missed} kills came too late",
            f"full streams: {self.streams.first} first ones of a dataset to a target,"
            f" {self.streams.asked} by syncfull, {self.wrong[FULL_STREAMS]} others",
            *(f"{kind}: {self.wrong[kind]}" for kind in KINDS[1:]),
        ]
