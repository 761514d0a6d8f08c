"""Runs the project's programs inside a node, with the node's clock or with a seeded defect.

As a script: `inside.py DEFECT` is the server of tests.e2e.kill_forks, `inside.py DEFECT PROGRAM
WORD...` is one run. The defects are those that a soak must find; none of this is in the product.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.e2e import kill_forks
from zfs_sync_agent import pairing, rotating
from zfs_sync_agent.branch import Branch
from zfs_sync_agent.model import Tree

NO_DEFECT = "none"
# How many seconds the clock of the node is ahead: `date` has a wrapper, Python has this.
CLOCK = "/run/zfs_sync/clock"


def state_before_listing() -> None:
    """Take a transfer for a success, whatever the listing shows."""
    Branch._missing = lambda *_: []  # type: ignore[method-assign]


def base_dropped() -> None:
    """Keep no base for a target that is away while the source rotates."""
    truth = rotating.needs

    def needs(*given: Any, rotate: bool, **options: Any) -> dict[str, frozenset[str]]:
        return {} if rotate else truth(*given, rotate=rotate, **options)

    rotating.needs = needs


def pair_by_name() -> None:
    """Take datasets of the same name for the same, whatever their guids are."""

    def pair(source: Tree, target: Tree) -> dict[str, str]:
        return {name: name for name in source.datasets if name in target.datasets}

    pairing.pair = pair


DEFECTS: Mapping[str, Callable[[], None]] = {
    "state-before-listing": state_before_listing,
    "base-dropped": base_dropped,
    "pair-by-name": pair_by_name,
}


def move_clock() -> None:
    """Let Python's clock go as the node's does."""
    file = Path(CLOCK)
    if file.exists():
        ahead = int(file.read_text())
        true = time.time
        time.time = lambda: true() + ahead


def main(defect: str, *words: str) -> None:
    """Plant the defect, then serve or be one program."""
    if defect != NO_DEFECT:
        DEFECTS[defect]()
    if words:
        move_clock()
        kill_forks.run_here(words[0], words[1:])
    kill_forks.serve(move_clock)


if __name__ == "__main__":
    main(*sys.argv[1:])
