"""The check on a file system that does not answer, where no signal ends a read."""

from __future__ import annotations

import time

from tests.e2e.world import OK, STATE_DIR, UNKNOWN, World
from tests.lab.fuse import FuseNode
from tests.lab.node import pool_of
from tests.lab.process import PATIENCE
from tests.operators.conftest import PLUGIN

FAR = "/run/far"


def test_a_folder_on_a_file_system_that_hangs_is_unknown_in_time(installed: World) -> None:
    osol1 = installed.source
    assert isinstance(osol1, FuseNode)
    osol1.zfs("create", "-o", f"mountpoint={FAR}", f"{pool_of(installed.src)}/far")
    osol1.run(["cp", "--archive", f"{STATE_DIR}/.", FAR])
    check = [PLUGIN, "--state-dir", FAR, "-t", "1"]
    assert osol1.run(check, check=False).returncode == OK
    with osol1.silent_zfs():
        began = time.monotonic()
        stuck = osol1.run(check, check=False)
        took = time.monotonic() - began
    assert stuck.returncode == UNKNOWN
    assert f"a file system does not answer, perhaps that of {FAR} " in stuck.stdout
    assert took < 3 * PATIENCE
    assert osol1.run(check, check=False).returncode == OK
