"""The README's installation, used by a user who may do nothing."""

from __future__ import annotations

from tests.e2e.world import OK, WARNING, World
from tests.operators.conftest import PLUGIN, let_time_pass


def test_the_check_runs_as_nobody_on_both_nodes(installed: World) -> None:
    for node in installed.nodes:
        as_nobody = ["/usr/sbin/runuser", "-u", "nobody", "--", PLUGIN]
        assert node.run(as_nobody, check=False).returncode == OK
    let_time_pass(installed, 3 * 24 * 3600)
    for node in installed.nodes:
        late = node.run(as_nobody, check=False)
        assert late.returncode == WARNING
        assert " 3d " in late.stdout
