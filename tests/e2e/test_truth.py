"""The check against reality: what it says after real runs, and what it sees itself."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.e2e.conftest import OSOL2
from tests.e2e.world import CRITICAL, OK, STATE_DIR, UNKNOWN, WARNING, World
from tests.lab import Node
from tests.lab.process import eventually

pytestmark = pytest.mark.zfs


def make_older(world: World, node: Node, seconds: int) -> None:
    """Let time pass for the state file of a node: every date in it moves back."""
    file = node.path(f"{STATE_DIR}/{world.service}_{world.rid}_zfs_state")
    state: dict[str, Any] = json.loads(file.read_text())
    for entry in state["targets"].values():
        for part, names in (
            (entry["snapshot"], ["creation"]),
            (entry["last_success"], ["started", "finished"]),
            (entry["last_attempt"], ["started", "finished"]),
            (entry, ["equal_as_of"]),
        ):
            for name in names:
                if part and part.get(name) is not None:
                    part[name] -= seconds
    file.write_text(json.dumps(state))


def test_the_check_is_ok_on_both_nodes_after_a_sync_and_names_the_replica(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    for node in world.nodes:
        code, stdout = world.check(node)
        assert code == OK
        assert stdout.startswith("ZFS_SYNC OK")
        assert f"{world.service}/{world.rid}/{OSOL2}_lag" in stdout
    world.assert_check(OK, "--verify")


def test_the_check_warns_when_the_last_sync_is_older_than_the_limit(one_target: World) -> None:
    world = one_target
    world.add_keys("sync_max_delay = 10m")
    world.sync()
    for node in world.nodes:
        make_older(world, node, 9 * 60)
    world.assert_check(OK)
    for node in world.nodes:
        make_older(world, node, 2 * 60)
    world.assert_check(WARNING)
    for node in world.nodes:
        assert "limit 10m" in world.check(node).stdout
    world.assert_check(OK, "-w", "20m")
    world.assert_check(OK, "-w", "20")
    world.assert_check(CRITICAL, "-w", "5m", "-c", "10m")
    world.sync()
    world.assert_check(OK)


def test_a_sync_that_fails_until_it_is_late_warns_with_the_reason(one_target: World) -> None:
    world = one_target
    world.add_keys("sync_max_delay = 10m")
    world.sync()
    world.target.stop_ssh()
    world.sync(expect=1)
    world.assert_check(OK)
    for node in world.nodes:
        make_older(world, node, 11 * 60)
    world.sync(expect=1)
    world.assert_check(WARNING)
    assert "last attempt failed" in world.check(world.source).stdout
    assert "Connection refused" in world.check(world.source, "-v").stdout


def test_a_configured_target_that_never_was_synchronized_warns(two_targets: World) -> None:
    world = two_targets
    world.sync("--node", world.targets[0].name)
    code, stdout = world.check(world.source)
    assert code == WARNING
    assert "to t2 never synchronized" in stdout
    assert world.check(world.targets[0]).code == OK


def test_nothing_configured_and_no_state_is_unknown(one_target: World) -> None:
    for node in one_target.nodes:
        node.path(f"/etc/zfs_sync/{one_target.service}.conf").unlink()
    one_target.assert_check(UNKNOWN)


def test_a_torn_state_file_is_unknown_and_the_next_run_mends_it(one_target: World) -> None:
    world = one_target
    world.sync()
    for node in world.nodes:
        file = node.path(f"{STATE_DIR}/{world.service}_{world.rid}_zfs_state")
        file.write_text(file.read_text()[:200])
    world.assert_check(UNKNOWN)
    world.sync()
    world.assert_equal()
    world.assert_check(OK)


@pytest.mark.parametrize("child", ["", "/a"])
def test_verify_sees_a_base_that_someone_destroyed_on_the_replica(
    one_target: World, child: str
) -> None:
    world = one_target
    world.sync()
    world.target.zfs("destroy", f"{world.dst}{child}@sent")
    assert world.check(world.target).code == OK
    assert world.check(world.target, "--verify").code == CRITICAL


def test_verify_sees_a_replica_that_someone_destroyed(one_target: World) -> None:
    world = one_target
    world.sync()
    world.target.zfs("destroy", "-r", world.dst)
    assert world.check(world.target, "--verify").code == CRITICAL


def test_verify_sees_a_lost_child_and_another_snapshot_under_the_name(one_target: World) -> None:
    world = one_target
    world.sync()
    world.target.zfs("destroy", "-r", f"{world.dst}/a")
    assert world.check(world.target, "--verify").code == CRITICAL
    world.sync()
    world.assert_equal()
    world.assert_check(OK, "--verify")
    world.target.zfs("destroy", f"{world.dst}/b@sent")
    world.target.zfs("snapshot", f"{world.dst}/b@sent")
    assert world.check(world.target, "--verify").code == CRITICAL


def test_verify_is_content_between_a_rotation_and_the_state_that_tells_it(
    one_target: World,
) -> None:
    world = one_target
    world.sync()
    old = {node.name: world.state_text(node) for node in world.nodes}
    taken = int(world.prop(world.source, "creation", f"{world.src}@sent").value)
    # Of two snapshots of the same second nobody can tell the newer one by its date.
    eventually("the next second has begun", lambda: time.time() >= taken + 1)
    world.source.write(world.src, "file", b"second")
    world.sync()
    for node in world.nodes:
        # As if the run had been cut before it wrote and pushed the state.
        text = old[node.name]
        assert text is not None
        node.path(f"{STATE_DIR}/{world.service}_{world.rid}_zfs_state").write_text(text)
    world.assert_check(OK, "--verify")


def test_verify_holds_while_a_target_is_down_and_after_it_came_back(two_targets: World) -> None:
    world = two_targets
    world.sync()
    absent = world.targets[1]
    absent.stop_ssh()
    for number in range(2):
        world.source.write(world.src, "file", str(number).encode())
        world.sync(expect=1)
        for node in world.nodes:
            assert world.check(node, "--verify").code == OK
    absent.start_ssh()
    world.sync()
    world.assert_check(OK, "--verify")
    world.sync()
    world.assert_check(OK, "--verify")


def test_status_and_check_agree(one_target: World) -> None:
    world = one_target
    world.add_keys("sync_max_delay = 10m")
    assert [row["status"] for row in world.status()] == ["warn"]
    world.sync()
    assert [row["status"] for row in world.status()] == ["up"]
    make_older(world, world.source, 11 * 60)
    assert [row["status"] for row in world.status()] == ["warn"]
    assert world.check(world.source).code == WARNING
    world.target.zfs("rename", world.dst, f"{world.dst}.moved")
    world.sync(expect=3)
    assert [row["status"] for row in world.status()] == ["broken"]
    assert [row["status"] for row in world.status(world.target)] == ["broken"]
    world.assert_check(CRITICAL)
