"""contrib/grafana: the dashboard asks for what the agent writes, in a language Prometheus speaks.

Debian has no package of Grafana, so nothing here is drawn. That each expression has an answer in a
Prometheus that scrapes two nodes is tried in test_prometheus.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.operators.conftest import CONTRIB
from zfs_sync_agent.metrics import format_metrics

DASHBOARD = CONTRIB / "grafana/zfs_sync.json"


def targets() -> Iterator[dict[str, str]]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from panel["targets"]


def expressions() -> list[str]:
    """Return every expression as Grafana sends it while all services and targets are chosen."""
    found = [re.sub(r"\$(service|target)", ".*", target["expr"]) for target in targets()]
    assert found
    assert not any("$" in expression for expression in found)
    return found


def test_each_metric_of_the_dashboard_is_one_that_the_agent_writes() -> None:
    written = set(re.findall(r"^# TYPE (\w+)", format_metrics([], unusable=0), re.MULTILINE))
    asked = re.findall(r"\bzfs_sync_\w+", DASHBOARD.read_text())
    named = {one for one in asked if one != "zfs_sync_agent"}  # the program, in a description
    assert named <= written
    # What only an alert needs is not drawn: one would look at the replica's age.
    assert written - named == {"zfs_sync_last_attempt_timestamp_seconds"}


def test_each_expression_is_one_that_prometheus_understands(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{at}", "expr": each} for at, each in enumerate(expressions())]
    file = tmp_path / "rules.yml"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    command = ["promtool", "check", "rules", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_panels_have_numbers_and_places_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
        assert max(columns) < 24
        assert not taken & cells, panel["title"]
        taken |= cells
