"""The metrics file and the alert rules, with Debian's node exporter, Prometheus and promtool.

Two exporters and a Prometheus run on lab nodes; what is asked is what they say, not our own text.
"""

from __future__ import annotations

import json
import re
import stat
import subprocess
from pathlib import Path

import pytest

from tests.e2e.world import World
from tests.lab import Node
from tests.lab.process import eventually
from tests.operators.conftest import CONTRIB, Start, let_time_pass
from tests.operators.test_grafana import expressions

RULES = CONTRIB / "prometheus/zfs_sync.rules.yml"
RULE_TESTS = CONTRIB / "prometheus/zfs_sync.rules.test.yml"
FILE = "/var/lib/prometheus/node-exporter/zfs_sync.prom"
AGENT = "/usr/local/bin/zfs_sync_agent"
# A scrape in a second, not in a minute; the rules' own `for` is promtool's to try.
SERVER = """\
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [zfs_sync.rules.yml]
scrape_configs:
  - job_name: node
    static_configs:
      - targets: ["osol1.opensvc.com:9100", "osol2.opensvc.com:9100"]
"""


def promtool(*words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = ["promtool", *words]
    return subprocess.run(command, check=False, input=text, capture_output=True, text=True)


def test_the_rules_are_right_and_alert_when_they_should() -> None:
    checked = promtool("check", "rules", str(RULES))
    assert checked.returncode == 0, checked
    tested = promtool("test", "rules", str(RULE_TESTS))
    assert tested.returncode == 0, tested


def test_every_alert_has_a_test() -> None:
    alerts = re.findall(r"alert: (\w+)", RULES.read_text())
    assert alerts
    assert [one for one in alerts if one not in RULE_TESTS.read_text()] == []


def served(node: Node) -> str:
    """Return what the node's exporter says, by HTTP on the node itself."""
    script = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9100/metrics').read())"
    answer = node.run(["/usr/bin/python3", "-c", script], check=False)
    return answer.stdout.replace("\\n", "\n") if answer.returncode == 0 else ""


def asked(node: Node, query: str) -> list[dict[str, str]]:
    """Return the labels of what the node's Prometheus answers."""
    words = ["promtool", "query", "instant", "-o", "json", "http://127.0.0.1:9090", query]
    answer = node.run(words, check=False)
    if answer.returncode:
        return []
    return [one["metric"] for one in json.loads(answer.stdout)]


def alerts(node: Node) -> set[str]:
    return {one["alertname"] for one in asked(node, 'ALERTS{alertstate="firing"}')}


def run(node: Node, *words: str, expect: int = 0) -> None:
    """Run the installed agent, as cron or a person does."""
    done = node.run([AGENT, *(words or ("syncupdate",))], check=False)
    assert done.returncode == expect, done.stderr


def set_up(node: Node, rules: str) -> Path:
    """Do what the comment of the rules says, and configure a server; return its folder."""
    node.inside(FILE).parent.mkdir(parents=True, exist_ok=True)
    node.inside(FILE).unlink(missing_ok=True)
    node.path("/etc/zfs_sync/node.conf").write_text(f"[DEFAULT]\nmetrics_file = {FILE}\n")
    assert f"metrics_file = {FILE}" in rules
    folder = node.inside("/etc/prometheus")
    folder.mkdir(exist_ok=True)
    (folder / "zfs_sync.rules.yml").write_text(re.sub(r"(?m)^ +for: .*\n", "", rules))
    (folder / "prometheus.yml").write_text(SERVER)
    return folder


def start_all(world: World, start: Start, logs: Path) -> None:
    source = world.source
    for node in world.nodes:
        start(node, "prometheus-node-exporter", log=logs / f"exporter.{node.short_name}")
        eventually("the exporter answers", lambda node=node: served(node))  # type: ignore[misc]
    log = logs / "prometheus"
    data = "--storage.tsdb.path=/run/prometheus"
    start(source, "prometheus", "--config.file=/etc/prometheus/prometheus.yml", data, log=log)
    eventually(f"both exporters are scraped: {log}", lambda: len(asked(source, "up == 1")) == 2, 30)


@pytest.mark.zfs
def test_prometheus_sees_a_replica_be_in_sync_break_be_mended_and_grow_late(
    installed: World, start: Start, tmp_path: Path
) -> None:
    world, (source, target) = installed, installed.nodes
    for node in world.nodes:
        set_up(node, RULES.read_text())
        run(node)
        file = node.inside(FILE)
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
        checked = promtool("check", "metrics", text=file.read_text())
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    start_all(world, start, tmp_path)

    # Both nodes serve the replica, each in its own role; every line of the file is served.
    for node, role in ((source, "source"), (target, "target")):
        told = f'resource="sync#1",role="{role}",service="z3.opensvc.com",status="ok",target="'
        assert f"{told}{target.name}" in served(node)
        assert "node_textfile_scrape_error 0" in served(node)
        lines = [one for one in node.inside(FILE).read_text().splitlines() if one[0] != "#"]
        assert served(node).count("\nzfs_sync_") == len(lines)
    ok = 'zfs_sync_status{status="ok"} == 1'
    eventually("both say ok", lambda: len(asked(source, ok)) == 2)
    assert alerts(source) == set()
    unanswered = [each for each in expressions() if not asked(source, each)]
    assert unanswered == [], "expressions of the dashboard"

    source.zfs("destroy", "-r", f"{world.src}@sent")
    run(source, expect=3)
    eventually("the alert fires", lambda: alerts(source) == {"ZfsSyncBroken"})
    assert f'status="broken",target="{target.name}"}} 1' in served(source)

    run(source, "--node", target.name, "syncfull")
    eventually("the alert has ended", lambda: alerts(source) == set())
    assert len(asked(source, 'zfs_sync_status{role="source",status="ok"} == 1')) == 1

    let_time_pass(world, 3 * 24 * 3600)
    for node in world.nodes:
        run(node, "syncdrp")  # no target is one of drpnodes: only the metrics are written
    eventually("it is late", lambda: alerts(source) == {"ZfsSyncLate"})

    run(source)
    eventually("all is well again", lambda: alerts(source) == set())
