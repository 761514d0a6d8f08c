"""What a run costs does not depend on how many datasets and snapshots there are.

Counted by wrappers in front of `zfs` and `ssh` on every node, and by the targets' sshd.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.e2e.world import World
from tests.lab import Node

pytestmark = pytest.mark.zfs

MANY = 60
FOREIGN = 300


def grow(world: World, count: int) -> None:
    """Create children until the tree has so many datasets; not mounted, to be renamed at will."""
    have = len(world.datasets(world.source, world.src))
    script = (
        'for i in $(seq "$2" "$3"); do zfs create -o canmount=noauto "$1/grown$i" || exit; done'
    )
    shell(world.source, script, world.src, str(have + 1), str(count))
    assert len(world.datasets(world.source, world.src)) == count


def shell(node: Node, script: str, *args: str) -> None:
    node.run(["/bin/sh", "-c", script, "sh", *args])


def assert_same_guids(world: World) -> None:
    """Assert that the targets hold every @sent; the contents of so many are other tests' matter."""
    here = {name[len(world.src) :]: guid for name, guid in world.source.guids(world.src).items()}
    sent = {name: guid for name, guid in here.items() if name.endswith("@sent")}
    for target in world.targets:
        there = target.guids(world.dst)
        assert sent == {name: there.get(f"{world.dst}{name}") for name in sent}


def connections(world: World) -> list[int]:
    """Return how many connections each target's sshd has accepted so far."""
    logs = [target.root / "log" / "sshd" for target in world.targets]
    return [log.read_text().count("Accepted publickey") for log in logs]


def cost(world: World) -> Counter[str]:
    """Return how many processes of which kind one run starts on each node."""
    world.watch("ssh")
    before = connections(world)
    world.sync()
    assert [now - then for now, then in zip(connections(world), before, strict=True)] == [
        2 for _ in world.targets
    ], "two connections per target: one for commands, one for data"
    found = Counter[str]()
    for node in world.nodes:
        found.update(f"{node.name}: zfs {' '.join(call[:1])}" for call in node.calls("zfs"))
        found.update(f"{node.name}: ssh" for _ in node.calls("ssh"))
    assert found[f"{world.source.name}: ssh"] == 2 * len(world.targets)
    assert not any(found[f"{target.name}: ssh"] for target in world.targets)
    return found


def cost_of_data(world: World) -> Counter[str]:
    world.source.write(world.src, "file", b"new data")
    return cost(world)


def cost_of_changes(world: World, turn: int, *, gone: bool = True) -> Counter[str]:
    """Return the cost of a run with one new, one renamed and perhaps one gone child."""
    for name in (f"renamed{turn}", f"gone{turn}"):
        world.source.zfs("create", "-o", "canmount=noauto", f"{world.src}/{name}")
    world.sync()
    world.source.zfs("create", "-o", "canmount=noauto", f"{world.src}/new{turn}")
    world.source.zfs("rename", f"{world.src}/renamed{turn}", f"{world.src}/moved{turn}")
    if gone:
        world.source.zfs("destroy", "-r", f"{world.src}/gone{turn}")
    found = cost(world)
    world.sync()  # destroys the gone one on the target
    return found


def test_an_incremental_run_costs_the_same_with_2_and_with_60_datasets(two_targets: World) -> None:
    world = two_targets
    world.sync()
    few = cost_of_data(world)
    assert len(world.datasets(world.source, world.src)) == 2
    grow(world, MANY)
    world.sync()
    assert cost_of_data(world) == few
    assert_same_guids(world)


def test_one_new_one_renamed_and_one_gone_child_cost_the_same_in_2_and_in_60_datasets(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    few = cost_of_changes(world, 1)
    grow(world, MANY)
    world.sync()
    assert cost_of_changes(world, 2) == few
    assert_same_guids(world)


def test_a_new_and_a_renamed_child_cost_no_command(one_target: World) -> None:
    world = one_target
    world.sync()
    plain = cost_of_data(world)
    assert cost_of_changes(world, 1, gone=False) == plain


def test_each_of_two_targets_gets_two_connections_and_the_commands_of_one(
    two_targets: World,
) -> None:
    world = two_targets
    world.sync()
    found = cost_of_data(world)
    first, second = (
        {key.partition(": ")[2]: count for key, count in found.items() if key.startswith(one.name)}
        for one in world.targets
    )
    assert first == second
    called = world.source.calls("ssh")
    for target in world.targets:
        assert len([call for call in called if target.name in call]) == 2


def test_hundreds_of_foreign_snapshots_cost_nothing_and_are_never_listed(one_target: World) -> None:
    world = one_target
    world.sync()
    few = cost_of_data(world)
    script = 'for i in $(seq "$2"); do zfs snapshot -r "$1@daily$i" || exit; done'
    shell(world.source, script, world.src, str(FOREIGN // 3))
    assert len(world.source.guids(world.src)) >= FOREIGN
    assert cost_of_data(world) == few
    for node in world.nodes:
        for call in node.calls("zfs"):
            assert "snapshot" not in call[1:], f"{node.name}: zfs {call}"
            assert not (call[:1] == ["get"] and "-r" in call), f"{node.name}: zfs {call}"
            assert not (call[:1] == ["get"] and "-rHp" in call), f"{node.name}: zfs {call}"
    assert_same_guids(world)
