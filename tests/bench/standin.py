#!/usr/bin/env python3
"""Stands for `zfs`, and as `ssh` for ssh, where only the agent's own time and memory are measured.

A tree of $DATASETS datasets that all have the same snapshots, on both sides; answers have the form
of zfs-fuse's. It knows the commands of a first and of an incremental run, and fails at any other.
What it takes itself is not measured. Each side's state is a file, $STANDIN.SIDE.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TypedDict

USAGE = "usage:\n\treceive [-vnFu] <filesystem>\n\tsend [-vRDp] <snapshot>\n"


class Side(TypedDict):
    """One side: its snapshots with their numbers, and the properties set on the root."""

    exists: bool
    snaps: dict[str, int]
    marks: dict[str, str]


def names(root: str) -> list[str]:
    """Return all datasets of a tree."""
    return [root, *(f"{root}/customer{n:05}" for n in range(1, int(os.environ["DATASETS"])))]


def describe(side: Side, keys: list[str], wanted: list[str]) -> None:
    """Print properties of datasets and snapshots; complain of those that are not there."""
    for name in wanted:
        dataset, at, snap = name.partition("@")
        number = side["snaps"].get(snap, 0)
        is_there = side["exists"] or "/" not in name
        if not is_there or (at and not number):
            sys.stderr.write(f"cannot open '{name}': dataset does not exist\n")
            continue
        index = int(dataset[-5:]) if dataset[-5:].isdecimal() else 0
        taken = str(number // 1000)
        row = {"guid": f"{number}{index:06}", "creation": taken, "createtxg": str(number)}
        row["zfs_sync:rid"] = "bench/sync#1" if at else "-"
        for key in keys:
            source = "local" if at and ":" in key else "-"
            sys.stdout.write(f"{name}\t{key}\t{row.get(key, '-')}\t{source}\n")


def change(side: Side, words: list[str]) -> bool:
    """Do a command that changes something; False if it is none."""
    match words:
        case ["snapshot", *_, name]:
            side["snaps"][name.partition("@")[2]] = time.time_ns() // 1_000_000
        case ["rename", "-r", old, new]:
            side["snaps"][new.partition("@")[2]] = side["snaps"].pop(old.partition("@")[2])
        case ["destroy", "-r", name]:
            del side["snaps"][name.partition("@")[2]]
        case ["set", pair, *_]:
            key, _, value = pair.partition("=")
            side["marks"][key] = value
        case ["receive", *_]:
            side["exists"] = True
            side["snaps"].update(json.loads(sys.stdin.read()))
        case _:
            return False
    return True


def tell(side: Side, words: list[str]) -> None:  # noqa: C901 - a list of commands
    """Do a command that only reads."""
    root = words[-1] if words else ""
    match words:
        case [] | ["get"]:
            sys.stderr.write(USAGE)
        case ["send", *_, name]:
            snap = name.partition("@")[2]
            sys.stdout.write(json.dumps({snap: side["snaps"][snap]}))
        case ["list", "-H", *_, "-o", "name", "tank" | "backup"]:
            sys.stdout.write(f"{root}\n")
        case ["list", "-H", "-r", "-t", _, "-o", "name", _] if side["exists"]:
            sys.stdout.writelines(f"{name}\n" for name in names(root))
        case ["list", "-H", "-d", "1", "-t", "snapshot", "-o", "name", *several]:
            sys.stdout.writelines(f"{name}@{snap}\n" for name in several for snap in side["snaps"])
        case ["list", "-H", "-t", "filesystem", "-o", "name,mountpoint"]:
            pass
        case ["get", "-Hp", "-o", "property,value,source", keys, _] if side["exists"]:
            for key in keys.split(","):
                found = side["marks"].get(key)
                sys.stdout.write(f"{key}\t{found or '-'}\t{'local' if found else '-'}\n")
        case ["get", "-H", "-o", "name,value,source", "mountpoint", *several]:
            sys.stdout.writelines(f"{name}\tnone\tdefault\n" for name in several)
        case ["get", "-Hp", "-o", "name,property,value,source", keys, *several]:
            describe(side, keys.split(","), several)
        case ["list" | "get", *_]:
            sys.exit(f"cannot open '{root}': dataset does not exist")
        case _:
            sys.exit(f"standin.py: no answer to: zfs {' '.join(words)[:200]}")


def main() -> None:
    """Be zfs, or run on "the other node" what ssh is given."""
    words = sys.argv[1:]
    if Path(sys.argv[0]).name == "ssh":
        while words[0].startswith("-"):
            del words[: 2 if words[0] == "-o" else 1]
        os.closerange(3, 256)  # the other node would not hold this one's locks
        os.execvp("sh", ["sh", "-c", " ".join(words[1:])])  # noqa: S606
    is_target = any(word.startswith("backup") for word in words)
    file = Path(f"{os.environ['STANDIN']}.{'target' if is_target else 'source'}")
    fresh = Side(exists=not is_target, snaps={}, marks={})
    side: Side = json.loads(file.read_text()) if file.exists() else fresh
    if change(side, words):
        file.write_text(json.dumps(side))
    else:
        tell(side, words)


main()
