"""What is installed is whole, and the layers of the two packages hold.

The wheel is built from a copy and installed without any network. Says nothing of what the programs
do.
"""

from __future__ import annotations

import ast
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_zfs_sync import __version__

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("check_zfs_sync", "zfs_sync_agent")

# From the bottom to the top. A module imports from lower layers only, never from its own.
LAYERS = (
    {"check_zfs_sync", "check_zfs_sync.dialect"},  # the first is the version
    {"check_zfs_sync.formats", "check_zfs_sync.service", "check_zfs_sync.statefile"},
    {
        "check_zfs_sync.plugin",
        "zfs_sync_agent.errors",
        "zfs_sync_agent.metrics",
        "zfs_sync_agent.model",
    },
    {
        "check_zfs_sync.__main__",
        *(f"zfs_sync_agent.{name}" for name in ("pipe", "progress", "transport", "zfs")),
    },
    {"zfs_sync_agent.pairing"},
    {"zfs_sync_agent.rotating"},
    {"zfs_sync_agent.judge"},
    {"zfs_sync_agent.plan", "zfs_sync_agent.trial"},
    {"zfs_sync_agent.handover"},
    {"zfs_sync_agent.consent"},
    {"zfs_sync_agent.observe"},
    {"zfs_sync_agent.branch", "zfs_sync_agent.record"},
    {"zfs_sync_agent.repair"},
    {"zfs_sync_agent.execute", "zfs_sync_agent.status"},
    {"zfs_sync_agent.forget", "zfs_sync_agent.init", "zfs_sync_agent.mend"},
    {"zfs_sync_agent.cli"},
    {"zfs_sync_agent", "zfs_sync_agent.__main__"},
)
PURE = tuple(
    f"zfs_sync_agent.{name}"
    for name in ("consent", "handover", "metrics", "model", "pipe", "plan", "trial", "zfs")
)
# What lets a module reach the world, or ask what time it is.
WORLD = {
    *(
        "os",
        "io",
        "sys",
        "subprocess",
        "socket",
        "select",
        "shutil",
        "tempfile",
        "pathlib",
        "fcntl",
    ),
    *("time", "random", "secrets", "threading", "logging", "plumbum"),
}


def modules() -> dict[str, Path]:
    return {
        ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): file
        for package in PACKAGES
        for file in (REPOSITORY / package).rglob("*.py")
    }


def imports_of(module: str) -> set[str]:
    """Return all that a module imports, wherever in it; `from package import module` too."""
    found = set()
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            inside = whole & set(modules())
            found |= inside
            if inside != whole:
                found.add(str(node.module))
    return found


def importers_of(package: str) -> set[str]:
    return {m for m in modules() if any(i.split(".")[0] == package for i in imports_of(m))}


def test_every_module_has_its_layer() -> None:
    assert sorted(set().union(*LAYERS)) == sorted(modules())


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_downward_only(module: str) -> None:
    rank = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    own = {name for name in imports_of(module) if name in rank}
    assert {name for name in own if rank[name] >= rank[module]} == set()


def test_the_check_knows_nothing_of_the_agent() -> None:
    assert {m for m in importers_of("zfs_sync_agent") if m.startswith("check_zfs_sync")} == set()


def test_one_module_each_knows_the_libraries() -> None:
    assert importers_of("plumbum") == {"zfs_sync_agent.transport"}
    assert importers_of("nagiosplugin") == {"check_zfs_sync.plugin"}


@pytest.mark.parametrize("module", PURE)
def test_pure_module_cannot_reach_the_world(module: str) -> None:
    assert {name.split(".")[0] for name in imports_of(module)} & WORLD == set()


# --- the wheel --------------------------------------------------------------------------------


def call(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        check=False,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("man", *PACKAGES):
        shutil.copytree(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    result = call(
        *pip, "--no-deps", "--no-build-isolation", "--no-index", ".", "-w", "..", cwd=source
    )
    assert result.returncode == 0, result.stderr
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture
def place(tmp_path: Path, wheel: Path) -> Iterator[Path]:
    """Install the wheel in a fresh virtual environment, without what it needs."""
    assert call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv").returncode == 0
    python = tmp_path / "venv/bin/python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        python,
        "install",
    ]
    result = call(*pip, "--quiet", "--no-deps", "--no-index", wheel)
    assert result.returncode == 0, result.stderr
    yield tmp_path / "venv"
    shutil.rmtree(tmp_path / "venv")


def site(place: Path) -> Path:
    [folder] = place.glob("lib/python*/site-packages")
    return folder


def add(place: Path, library: str) -> None:
    spec = importlib.util.find_spec(library)
    assert spec
    assert spec.submodule_search_locations
    shutil.copytree(spec.submodule_search_locations[0], site(place) / library)


def test_wheel_is_whole(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        scripts = next(name for name in names if name.endswith("entry_points.txt"))
        text = file.read(scripts).decode()
    wanted = {
        str(file.relative_to(REPOSITORY))
        for package in PACKAGES
        for file in (REPOSITORY / package).iterdir()
        if file.name == "py.typed" or file.suffix == ".py"
    }
    assert wanted - set(names) == set()
    assert {name.split("/")[0] for name in names if ".d" not in name} == set(PACKAGES)
    pages = {
        f"share/man/man{page.suffix[1:]}/{page.name}" for page in (REPOSITORY / "man").iterdir()
    }
    assert pages == {name.partition(".data/data/")[2] for name in names if ".data/data/" in name}
    assert "check_zfs_sync = check_zfs_sync.plugin:main" in text
    assert "zfs_sync_agent = zfs_sync_agent.cli:main" in text


def test_installed_programs_tell_their_version(place: Path) -> None:
    add(place, "plumbum")
    add(place, "nagiosplugin")
    agent = call(place / "bin/zfs_sync_agent", "--version")
    check = call(place / "bin/check_zfs_sync", "--version")
    assert (agent.stdout, agent.returncode) == (f"zfs_sync_agent {__version__}\n", 0)
    assert (check.stdout, check.returncode) == (f"check_zfs_sync {__version__}\n", 3)
    assert (place / "share/man/man8/zfs_sync_agent.8").exists()


def test_check_works_where_the_agent_and_plumbum_are_absent(place: Path) -> None:
    add(place, "nagiosplugin")
    shutil.rmtree(site(place) / "zfs_sync_agent")
    (place / "web.conf").write_text("[sync#1]\ntype = zfs\nsrc = tank/web\ntarget = other\n")
    result = call(
        place / "bin/check_zfs_sync", "--config-dir", place, "--state-dir", place / "none"
    )
    assert "never synchronized" in result.stdout
    assert (result.stderr, result.returncode) == ("", 1)
