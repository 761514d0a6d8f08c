"""Agent and check inside a machine whose kernel has ZFS, with Debian's own python3-plumbum and
python3-nagiosplugin: nothing of the lab stands between them and zfs.
"""

from __future__ import annotations

import subprocess

import pytest

from tests.e2e.world import OK, World
from tests.lab.host import REPOSITORY

pytestmark = [pytest.mark.zfs, pytest.mark.needs("machine")]

SERVICE_FILE = """\
[sync#1]
type = zfs
src = tank/data
dst = backup/data
target = local
"""
FOLDERS = "/etc/zfs_sync /var/lib/zfs_sync /opt/zfs_sync"
PYTHON = ("/usr/bin/env", "PYTHONPATH=/opt/zfs_sync", "/usr/bin/python3", "-m")


def inside(world: World, *words: str, data: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in the source's machine."""
    return world.source.run(["/usr/local/sbin/guest", *words], check=False, input=data)


def test_the_programs_run_in_a_machine_with_zfs_in_its_kernel(one_node: World) -> None:
    world = one_node
    inside(world, "/bin/sh", "-c", f"rm -rf {FOLDERS}; mkdir -p {FOLDERS}")
    packed = ["tar", "-C", str(REPOSITORY), "--exclude=__pycache__", "-c"]
    archive = subprocess.run(
        [*packed, "check_zfs_sync", "zfs_sync_agent"], check=True, capture_output=True
    ).stdout.decode(errors="surrogateescape")
    assert inside(world, "tar", "-x", "-C", "/opt/zfs_sync", data=archive).returncode == 0
    file = "/etc/zfs_sync/web.conf"
    assert inside(world, "/bin/sh", "-c", f"cat >{file}", data=SERVICE_FILE).returncode == 0
    for content in (b"second", b"third"):
        ran = inside(world, *PYTHON, "zfs_sync_agent", "syncupdate")
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
        world.assert_equal()
        world.source.write(world.src, "file", content)
    rows = inside(world, *PYTHON, "zfs_sync_agent", "status").stdout.splitlines()
    assert " up " in rows[-1]
    # As monitoring runs it: not as root; with --verify it asks zfs, which needs no right here.
    as_nobody = ("/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    for options in ((), ("--verify",)):
        checked = inside(world, *as_nobody, *PYTHON, "check_zfs_sync", *options)
        assert (checked.returncode, checked.stderr) == (OK, ""), checked
        assert checked.stdout.startswith("ZFS_SYNC OK")
