"""Labs for the end-to-end tests: one per module, made as good as new before each test.

A lab that cannot start is a failure, never a skip: a green run must mean that real ZFS was there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.world import World
from tests.lab import Lab, Node, Pool
from tests.lab.testlab import node_class

OSOL1, OSOL2 = "osol1.opensvc.com", "osol2.opensvc.com"
SOURCE, T1, T2 = "source.example.com", "t1.example.com", "t2.example.com"
LONE = "lone.example.com"

# The seed's example, with its symmetric src and dst.
ONE_TARGET = f"""\
[sync#1]
type = zfs
src@{OSOL1} = osol1_z3_root/data
src@{OSOL2} = osol2_z3_root/data
dst@{OSOL1} = osol2_z3_root/data
dst@{OSOL2} = osol1_z3_root/data
target = nodes
"""

TWO_TARGETS = f"""\
[DEFAULT]
nodes = {SOURCE} {T1} {T2}
[sync#1]
type = zfs
src = tank/data
target = nodes
"""


TO_LOCAL = """\
[sync#1]
type = zfs
src = tank/data
dst = backup/data
target = local
"""


def make_tree(node: Node, root: str, *children: str) -> None:
    """Create a dataset with children; each has a file of its own."""
    for dataset in (root, *(f"{root}/{child}" for child in children)):
        node.zfs("create", dataset)
        node.write(dataset, "file", f"first of {dataset}".encode() * 100)


def reset(nodes: list[Node]) -> None:
    """Make all nodes as good as new."""
    with ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(Node.reset, nodes))


@pytest.fixture(autouse=True)
def _applicable(request: pytest.FixtureRequest) -> None:
    """Leave out, and let be counted, a test that states a need which this lab's ZFS has not."""
    for marker in request.node.iter_markers("needs"):
        if lacking := set(marker.args) - node_class().features:
            pytest.skip(f"not applicable: this ZFS has no {', '.join(sorted(lacking))}")
    for marker in request.node.iter_markers("lacks"):
        if there := set(marker.args) & node_class().features:
            pytest.skip(f"not applicable: this ZFS has {', '.join(sorted(there))}")


Nodes = Callable[[dict[str, dict[str, Pool | str]]], list[Node]]


@pytest.fixture(scope="module")
def lab() -> Iterator[Nodes]:
    """Give nodes of a lab that lives as long as the module; asked twice for them: the same."""
    with Lab() as started:
        known: dict[str, Node] = {}

        def nodes(wanted: dict[str, dict[str, Pool | str]]) -> list[Node]:
            if new := {name: pools for name, pools in wanted.items() if name not in known}:
                known.update(zip(new, started.nodes(new), strict=True))
            chosen = [known[name] for name in wanted]
            reset(chosen)
            return chosen

        yield nodes


@pytest.fixture
def one_target(lab: Nodes) -> World:
    """The seed's example: osol1 sends to osol2; a tree of three datasets, not yet synchronized."""
    a, b = lab({OSOL1: {"osol1_z3_root": "source"}, OSOL2: {"osol2_z3_root": "target"}})
    world = World(a, [b], ONE_TARGET, src="osol1_z3_root/data", dst="osol2_z3_root/data")
    make_tree(a, world.src, "a", "b")
    return world


@pytest.fixture
def two_targets(lab: Nodes) -> World:
    """One source, two targets, dst as src; a tree of two datasets, not yet synchronized."""
    source, t1, t2 = lab(
        {SOURCE: {"tank": "source"}, T1: {"tank": "target"}, T2: {"tank": "target"}}
    )
    world = World(source, [t1, t2], TWO_TARGETS, src="tank/data", dst="tank/data")
    make_tree(source, world.src, "a")
    return world


@pytest.fixture
def one_node(lab: Nodes) -> World:
    """A node that sends from its pool tank to its pool backup; not yet synchronized."""
    (node,) = lab({LONE: {"tank": "source", "backup": "target"}})
    world = World(node, [node], TO_LOCAL, src="tank/data", dst="backup/data")
    make_tree(node, world.src, "a")
    return world
