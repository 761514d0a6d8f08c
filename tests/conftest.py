"""Says at the end of a session what the model proof tried, and which defects it caught.

The tests hand their results over as properties of their reports, since a worker of xdist has no
terminal. It decides nothing. Only this conftest is also read where workers run the tests: those
below it are the workers' own.
"""

from __future__ import annotations

from collections import Counter

import pytest

# The table of the field's failures, and what each lab showed.
pytest_plugins = ["tests.e2e.field", "tests.labs"]

NUMBERS = ("start states", "kill points", "false answers", "runs")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the numbers of the proof and the table of defects."""
    reports = [
        one
        for group in terminalreporter.stats.values()
        for one in group
        if isinstance(one, pytest.TestReport)
    ]
    failed = {one.nodeid for one in reports if one.failed}
    counts: Counter[str] = Counter()
    violated = set()
    caught = []
    for one in reports:
        if one.when != "teardown":  # the properties of a test are in all of its reports
            continue
        for name, value in one.user_properties:
            if name == "proof" and isinstance(value, dict):
                counts.update(value)
                violated |= {one.nodeid} & failed
            elif name == "defect" and isinstance(value, (list, tuple)):
                caught.append(value)
    if not counts and not caught:
        return
    terminalreporter.section("model proof")
    numbers = [f"{counts[what]} {what}" for what in NUMBERS if what in counts]
    terminalreporter.write_line(", ".join((*numbers, f"{len(violated)} violations")))
    if caught:
        terminalreporter.write_line(f"{len(caught)} seeded defects, each caught by a law:")
    for defect, law, case in caught:
        terminalreporter.write_line(f"  {law:4}{defect}  ({case})")
