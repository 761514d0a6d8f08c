"""Both programs with the oldest and the newest Python and libraries that they promise to run with.

Debian 12 and 13, each in a folder that is built once, bring their own, and need nothing of this
machine. Debian has no Python 3.10: one is taken where it is installed; where it is not, the types
and the syntax of 3.10 are checked instead, and a warning says so.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import plumbum
import pytest

from tests.e2e.world import CRITICAL, OK, World
from tests.lab import Node
from tests.operators.conftest import REPOSITORY

CACHE = Path("/var/cache/zfs_sync")
BUILD = Path(__file__).with_name("python.sh")
# Those of .venv, for which setup.sh takes the newest.
NEWEST = Path(plumbum.__file__).parent.parent

# What uses the libraries, and what of Python itself differs most: parsers, processes, signals.
UNIT_TESTS = (
    "tests/check_zfs_sync",
    *(f"tests/zfs_sync_agent/test_{name}.py" for name in ("transport", "cli", "record", "plan")),
)
VERSIONS = (
    "import sys; from importlib.metadata import version;"
    " print(*sys.version_info[:2], version('nagiosplugin'), version('plumbum'))"
)
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "HYPOTHESIS_STORAGE_DIRECTORY": "/nowhere",
}
# Inside, the repository is /mnt, .venv's two libraries are in /srv, and neither can be written.
ENTER = """
root=$1 repository=$2 newest=$3; shift 3
mount -o bind,ro "$repository" "$root/mnt"
mount -t tmpfs tmpfs "$root/srv"
for one in "$newest"/nagiosplugin* "$newest"/plumbum*; do cp -r "$one" "$root/srv"; done
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
exec chroot "$root" sh -c 'cd /mnt && exec "$@"' sh "$@"
"""


class Python(NamedTuple):
    """An interpreter, with the libraries that it is tried with."""

    alone: tuple[str, ...]  # how it is run for the unit tests
    on_a_node: tuple[str, ...]  # how it is run among the zfs and ssh of a lab's node
    path: str = ""
    path_on_a_node: str = ""


def run(*argv: str, path: str = "") -> str:
    """Return what a command prints; it has to exit with 0."""
    done = subprocess.run(
        argv,
        check=False,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=900,
        env={**ENVIRONMENT, "PYTHONPATH": path},
    )
    assert done.returncode == 0, f"{argv}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def built(name: str, text: str, build: Callable[[Path], object]) -> Path:
    """Return a folder of the cache, named after the text that it is built from, built once."""
    folder = CACHE / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            build(folder)
    return folder


def debian(release: str, *, newest: bool = False) -> Python:
    """Return the Python of a release of Debian, with that one's libraries or the newest."""
    root = built(
        f"python-{release}",
        BUILD.read_text(),
        lambda folder: run("unshare", "--mount", str(BUILD), release, str(folder)),
    )
    enter = ("unshare", "--mount", "sh", "-euc", ENTER, "sh")
    # On a node it has to find the node's own programs: no chroot, only its own C library.
    [loader] = root.glob("lib64/ld-linux*.so.*")
    [libraries] = root.glob("usr/lib/*-linux-gnu")
    return Python(
        (*enter, str(root), str(REPOSITORY), str(NEWEST), "python3"),
        (str(loader), "--library-path", str(libraries), str(root / "usr/bin/python3")),
        "/srv" if newest else "",
        str(NEWEST) if newest else "",
    )


def oldest() -> Python | None:
    """Return a Python 3.10 with the oldest libraries; None: this machine has none."""
    found = [shutil.which("python3.10"), *Path.home().glob(".pyenv/versions/3.10.*/bin/python3")]
    for one in map(str, filter(None, found)):
        # pyenv's own python3.10 on PATH may be one that says it is not chosen.
        works = subprocess.run(
            [one, "-c", "import venv, ensurepip"], check=False, capture_output=True
        )
        if works.returncode == 0:
            break
    else:
        return None
    wanted = ("nagiosplugin==1.3.2", "plumbum==1.8.0", "pytest", "hypothesis")

    def build(folder: Path) -> None:
        try:
            run(one, "-m", "venv", str(folder))
            pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
            run(str(folder / "bin/python"), *pip, *wanted)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    python = str(built("python-3.10", " ".join((one, *wanted)), build) / "bin/python")
    return Python((python,), (python,))


def assert_unit_tests_pass(python: Python) -> None:
    """Run the unit tests that use the libraries."""
    pytest_words = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *UNIT_TESTS)
    said = run(*python.alone, *pytest_words, path=python.path)
    passed = re.search(r"(\d+) passed in ", said)
    assert passed, said
    assert int(passed[1]) > 900, said


def assert_synchronizes(python: Python, world: World) -> None:
    """Synchronize the seed's example for the first time and once more, and check both nodes."""
    place = f"PYTHONPATH={REPOSITORY}:{python.path_on_a_node}"

    def typed(node: Node, *words: str) -> int:
        argv = ["/usr/bin/env", place, *python.on_a_node, "-m", *words]
        done = node.run(argv, check=False)
        assert done.stderr == ""
        return done.returncode

    for _ in range(2):
        assert typed(world.source, "zfs_sync_agent", "syncupdate") == 0
        world.assert_equal()
    for node in world.nodes:
        assert typed(node, "check_zfs_sync", "--verify") == OK
    # And the check tells a difference: its zfs is the node's own.
    world.target.zfs("destroy", f"{world.dst}/b@sent")
    assert typed(world.target, "check_zfs_sync", "--verify") == CRITICAL


@pytest.mark.parametrize(
    ("versions", "make"),
    [
        # Debian 12's plumbum is 1.8.0, though it calls itself 0.0.0.
        ("3 11 1.3.2 0.0.0", lambda: debian("bookworm")),
        ("3 13 1.3.2 1.9.0", lambda: debian("trixie")),
        (
            f"3 13 {version('nagiosplugin')} {version('plumbum')}",
            lambda: debian("trixie", newest=True),
        ),
    ],
    ids=["Debian 12", "Debian 13", "Debian 13, newest libraries"],
)
def test_both_programs_work_with(
    versions: str, make: Callable[[], Python], one_target: World
) -> None:
    python = make()
    assert run(*python.alone, "-c", VERSIONS, path=python.path).strip() == versions
    assert_unit_tests_pass(python)
    assert_synchronizes(python, one_target)


def test_both_programs_work_with_python_3_10(one_target: World) -> None:
    python = oldest()
    if python is not None:
        assert run(*python.alone, "-c", VERSIONS).strip() == "3 10 1.3.2 1.8.0"
        assert_unit_tests_pass(python)
        assert_synchronizes(python, one_target)
        return
    warnings.warn("no Python 3.10 here: only its syntax and its types were checked", stacklevel=1)
    for package in ("check_zfs_sync", "zfs_sync_agent"):
        for file in (REPOSITORY / package).glob("*.py"):
            ast.parse(file.read_text(), str(file), feature_version=(3, 10))
        run(sys.executable, "-m", "mypy", "--strict", "--python-version", "3.10", package)
