"""The check on a file system that does not answer, where no signal ends a read."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.e2e.world import OK, STATE_DIR, UNKNOWN, World
from tests.lab.process import PATIENCE, eventually
from tests.operators.conftest import PLUGIN, Start

FAR = "/run/far"


def test_a_folder_on_a_file_system_that_hangs_is_unknown_in_time(
    installed: World, start: Start, tmp_path: Path
) -> None:
    osol1, osol2 = installed.nodes
    osol1.run(["mkdir", FAR])
    server = start(
        osol1, "sshfs", "-f", f"{osol2.name}:{STATE_DIR}", FAR, log=tmp_path / "sshfs.log"
    )
    mounts = ["cat", "/proc/mounts"]
    eventually("it is mounted", lambda: f" {FAR} fuse.sshfs " in osol1.run(mounts).stdout)
    check = [PLUGIN, "--state-dir", FAR, "-t", "1"]
    assert osol1.run(check, check=False).returncode == OK
    os.kill(server.outside, signal.SIGSTOP)
    try:
        began = time.monotonic()
        stuck = osol1.run(check, check=False)
        took = time.monotonic() - began
    finally:
        os.kill(server.outside, signal.SIGCONT)
    assert stuck.returncode == UNKNOWN
    assert f"a file system does not answer, perhaps that of {FAR} " in stuck.stdout
    assert took < 3 * PATIENCE
    assert osol1.run(check, check=False).returncode == OK
