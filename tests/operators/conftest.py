"""Lab nodes on which the programs are installed as the README says, for the real programs to use.

A node is a host with its own /etc, /opt, /usr/local, /var and /run; what a daemon writes there goes
with it. The world is the seed's example: osol1 sends to osol2, both have synchronized once.
Decides nothing about any program.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from check_zfs_sync import statefile
from check_zfs_sync.statefile import TargetState
from tests.e2e.conftest import _applicable, lab, one_target
from tests.e2e.world import STATE_DIR, World
from tests.lab import Node, Running

__all__ = ["_applicable", "lab", "one_target"]

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CONTRIB = REPOSITORY / "contrib"
PLUGIN = "/usr/local/bin/check_zfs_sync"
SOURCES = (
    *("check_zfs_sync", "zfs_sync_agent", "man"),
    *("setup.cfg", "pyproject.toml", "README.md", "LICENSE"),
)
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")

Start = Callable[..., Running]


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel, with those it needs: no node reaches a package index.

    From a copy: a build leaves its traces in the folder, where another worker may be building.
    """
    folder = tmp_path_factory.mktemp("wheels")
    source = folder / "source"
    source.mkdir()
    subprocess.run(["cp", "-r", *SOURCES, str(source)], check=True, cwd=REPOSITORY)
    wheel = [sys.executable, *PIP, "wheel", "--wheel-dir", str(folder), str(source)]
    built = subprocess.run(wheel, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def install(node: Node, wheels: Path) -> None:
    """Install both programs as the README says."""
    node.run(["/usr/bin/python3", "-m", "venv", "/opt/zfs_sync"])
    options = ("--no-index", "--find-links", str(wheels))
    node.run(["/opt/zfs_sync/bin/python", *PIP, "install", *options, "zfs_sync"])
    node.run(["/bin/sh", "-c", "ln -sf /opt/zfs_sync/bin/*zfs_sync* /usr/local/bin/"])


@pytest.fixture
def installed(one_target: World, wheels: Path) -> World:
    """The seed's example, synchronized once, with both programs in /usr/local/bin of both nodes."""
    for node in one_target.nodes:
        # Not exists(): what the link names is in the node, and would be looked for outside.
        if not node.inside(PLUGIN).is_symlink():
            install(node, wheels)
    one_target.sync()
    return one_target


@pytest.fixture
def start() -> Iterator[Start]:
    """Start daemons on nodes, in the foreground; each is ended with its children after the test."""
    running: list[Running] = []

    def begin(node: Node, *argv: str, log: Path, env: dict[str, str] | None = None) -> Running:
        with log.open("a") as output:
            one = node.popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        running.append(one)
        return one

    yield begin
    for one in running:
        if one.poll() is None:
            one.kill_group()
            one.wait()


def let_time_pass(world: World, seconds: int, *nodes: Node) -> None:
    """Make every time of synchronizing earlier: what the file says if nothing has run since."""
    for node in nodes or world.nodes:
        file = node.path(STATE_DIR) / f"{world.service}_{world.rid}_zfs_state"
        state = statefile.parse_state(file.read_text(), str(file))
        targets = {name: _earlier(target, seconds) for name, target in state.targets.items()}
        file.write_text(statefile.format_state(state._replace(targets=targets)))


def _earlier(target: TargetState, seconds: int) -> TargetState:
    snapshot, success, attempt = target.snapshot, target.last_success, target.last_attempt
    assert snapshot
    assert success
    assert attempt
    return target._replace(
        snapshot=snapshot._replace(creation=snapshot.creation - seconds),
        last_success=success._replace(
            started=success.started - seconds, finished=success.finished - seconds
        ),
        last_attempt=attempt._replace(
            started=attempt.started - seconds, finished=attempt.finished - seconds
        ),
    )
