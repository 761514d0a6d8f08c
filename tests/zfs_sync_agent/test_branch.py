"""What is told of a transfer that failed, of a source that shows no goal, of one at rest."""

import threading
from collections.abc import Callable

import pytest

from check_zfs_sync.service import Target
from zfs_sync_agent import branch, judge, observe
from zfs_sync_agent.errors import CommandFailed
from zfs_sync_agent.execute import Worker
from zfs_sync_agent.model import MARK, Tree
from zfs_sync_agent.observe import Side
from zfs_sync_agent.transport import Stage, Transfer

from . import fakerun
from .fakerun import FakeRecord, FakeShell, _lock, run_agent
from .fakezfs import World
from .notation import DST, SRC, WHO
from .worlds import BOTH, EIGHT, ONE, TWO, claimed, resource_for, world


def test_a_complaint_is_told_without_the_usage_that_follows_it() -> None:
    stderr = "invalid option 'w'\nusage:\n\tsend [-vp] <snapshot>\n\nFor more info: zfs allow"
    done = Transfer(0, (Stage("zfs send -w", 2, stderr), Stage("zfs receive", 0, "")))
    told = branch._transfer_failure(done, "osol2").detail
    assert told == "zfs send -w: exit 2: invalid option 'w'"


def test_a_goal_that_the_source_does_not_show_is_neither_proven_nor_rotated() -> None:
    state, resource = world({"": ""}, None, known=()), resource_for(ONE)

    def shows_none(_side: Side, tree: Tree, relative: object) -> Tree:
        bare = {name: one._replace(snapshots={}) for name, one in tree.datasets.items()}
        return Tree(tree.root, bare) if relative and tree.root == SRC else tree

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observe, "deepen", shows_none)
        outcomes = run_agent(state, resource)
    assert outcomes
    assert "does not show" in str(outcomes[0].error)
    assert set(state.pools["osol1"][SRC].snaps) == {"tosend"}
    assert [one.error for one in run_agent(state, resource) or []] == [None]
    assert set(state.pools["osol1"][SRC].snaps) == {"sent"}


def test_a_copy_that_cannot_be_written_fails_its_target_alone_where_nothing_was_written() -> None:
    state = claimed(world(BOTH, BOTH, BOTH))

    def push(_self: FakeRecord, _side: Side, node: str) -> None:
        if node == "osol2":
            raise CommandFailed("no room for the state file")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeRecord, "push", push)
        outcomes = run_agent(state, resource_for(TWO, skip_unchanged=True)) or []
    told = {one.node: str(one.error) for one in outcomes}
    assert "no room" in told["osol2"]
    assert told["osol3"] == "None"
    assert state.state["osol3"].equal_as_of is not None
    assert state.state["osol3"].status == "ok"


def test_a_target_without_our_mark_is_not_left_as_it_is_though_nothing_was_written() -> None:
    state = claimed(world(BOTH, BOTH))
    state.pools["osol1"][SRC].props[MARK] = ("none@2000000000", "local")  # it took over
    state.pools["osol2"][DST].props[MARK] = ("none@1000000000", "local")  # a source until then
    outcomes = run_agent(state, resource_for(ONE, skip_unchanged=True)) or []
    assert [one.error for one in outcomes] == [None]
    assert state.pools["osol2"][DST].props[MARK][0] == WHO.mark


def test_where_one_of_the_few_went_meanwhile_the_whole_tree_is_sent() -> None:
    state = claimed(world(EIGHT, EIGHT))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "few", lambda *_: frozenset({"", "gone"}))
        outcomes = run_agent(state, resource_for(ONE, send_changed=True)) or []
    assert [one.error for one in outcomes] == [None]
    (sent,) = [line for line in state.log if "zfs send" in line]
    assert " -R " in sent


def test_where_zfs_does_not_know_what_was_written_nobody_asks_for_it() -> None:
    state = claimed(world(EIGHT, EIGHT))
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fakerun, "PROPERTIES", "")
        patch.setattr(World, "sync", lambda _, node, pool: asked.append(f"{node}:{pool}"))
        resource = resource_for(ONE, skip_unchanged=True, send_changed=True)
        outcomes = run_agent(state, resource) or []
    assert [one.error for one in outcomes] == [None]
    assert asked == []
    (sent,) = [line for line in state.log if "zfs send" in line]
    assert " -R " in sent


@pytest.fixture
def worker() -> Worker:
    side = Side(FakeShell(world(BOTH, BOTH), "osol2"), ("zfs",), sudo=False)
    return Worker(Target("osol2", "nodes"), _lock(), side, side)


def test_a_copy_of_the_state_holds_up_nobody_who_waits_for_the_data(worker: Worker) -> None:
    copied = threading.Event()

    def act(one: Worker) -> None:
        one.settle()
        assert copied.wait(60)
        raise CommandFailed("no room for the state file")

    worker.start(act)
    worker.wait_until_settled()
    assert worker.error is None
    copied.set()
    worker.wait()
    assert "no room" in str(worker.error)


def _fail(_: Worker) -> None:
    raise CommandFailed("the receive failed")


def _break(_: Worker) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("act", [_fail, _break, Worker.settle])
def test_who_waits_for_the_data_does_not_wait_for_what_failed(
    worker: Worker, act: Callable[[Worker], None]
) -> None:
    for _ in range(2):  # a second cycle waits for its own step
        worker.start(act)
        worker.wait_until_settled()
        worker.wait()
    assert (worker.error is None) == (act is Worker.settle)
