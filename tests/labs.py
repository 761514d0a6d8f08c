"""Puts side by side what the tests showed with each ZFS: zfs-fuse, and OpenZFS in virtual machines.

A run of `make test` or `make openzfs` leaves the outcome of every test that needs a lab in
build/labs; the second one prints both. It decides nothing, and only reports what was run.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

LABS = ("zfs-fuse", "openzfs")
WORDS = ("passed", "failed", "not applicable", "not run")
FOLDER = Path(__file__).resolve().parent.parent / "build" / "labs"

Outcomes = Mapping[str, str]


def word_of(reports: list[pytest.TestReport]) -> str:
    """Return what became of one test, whose reports are those of setup, call and teardown."""
    if any(one.failed for one in reports):
        return "failed"
    skipped = [one for one in reports if one.skipped]
    if any("not applicable" in str(one.longrepr) for one in skipped):
        return "not applicable"
    return "failed" if skipped else "passed"


def table(outcomes: Mapping[str, Outcomes]) -> Iterator[str]:
    """Return a line per file: how many tests there are, and what each lab showed of them."""
    everything = sorted({test for found in outcomes.values() for test in found})
    files = list(dict.fromkeys(test.partition("::")[0] for test in everything))
    width = max(map(len, files), default=0)
    yield f"{'':{width}}  " + "  ".join(f"{lab:>38}" for lab in outcomes)
    yield f"{'':{width}}  " + "  ".join(
        "passed  failed  not applic.  not run".rjust(38) for _ in outcomes
    )
    for file in [*files, ""]:
        tests = [test for test in everything if not file or test.startswith(f"{file}::")]
        cells = []
        for found in outcomes.values():
            count = Counter(found.get(test, "not run") for test in tests)
            numbers = [count[word] for word in WORDS]
            cells.append("{:8}{:8}{:13}{:9}".format(*numbers))
        yield f"{file or 'all':{width}}  " + "  ".join(cells)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Keep what this run showed, if make asked for it, and print what is known of both labs."""
    if "KEEP_OUTCOMES" not in os.environ:
        return
    reports: dict[str, list[pytest.TestReport]] = {}
    for group in terminalreporter.stats.values():
        for one in group:
            if isinstance(one, pytest.TestReport) and needs_lab(one.nodeid):
                reports.setdefault(one.nodeid, []).append(one)
    lab = os.environ.get("ZFS_LAB", LABS[0])
    FOLDER.mkdir(parents=True, exist_ok=True)
    found = {test: word_of(ran) for test, ran in sorted(reports.items())}
    (FOLDER / f"{lab}.json").write_text(json.dumps(found, indent=1))
    files = {name: FOLDER / f"{name}.json" for name in LABS}
    outcomes = {n: json.loads(file.read_text()) for n, file in files.items() if file.exists()}
    terminalreporter.section("tests that need real ZFS")
    for line in table(outcomes):
        terminalreporter.line(line)
    everything = sorted({test for one in outcomes.values() for test in one})
    both = [
        "\t".join((*(one.get(test, "not run") for one in outcomes.values()), test))
        for test in everything
    ]
    (FOLDER / "side-by-side.tsv").write_text("\n".join(["\t".join((*outcomes, "test")), *both]))
    terminalreporter.line(f"each test of both: {FOLDER / 'side-by-side.tsv'}")


def needs_lab(nodeid: str) -> bool:
    """Tell whether a test is one that runs on lab nodes."""
    return nodeid.startswith("tests/e2e/") or "::test_a_real" in nodeid
