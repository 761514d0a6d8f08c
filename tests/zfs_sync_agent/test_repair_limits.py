"""What no run takes away: a target that took over meanwhile, and what a person did not speak of.

The real runs are driven against ZFS in memory; somebody acts on the target between two of their
commands.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from zfs_sync_agent.execute import Outcome, Run
from zfs_sync_agent.mend import DiscardRun, FullRun, InPlaceRun, ResyncRun
from zfs_sync_agent.model import MARK, Standing

from .fakezfs import Dataset, Snap
from .notation import DST, SRC, WHO
from .test_repair_crash import NEWER, ONE, A, CloneWorld, guids, run, story
from .worlds import resource_for, world

OSOL2 = "osol2"
PEERS = frozenset({"osol1", OSOL2, "osol3"})


def told(outcomes: Sequence[Outcome] | None) -> str:
    """Return what a run told, with what it says to do next."""
    return "\n".join(one.error.block(one.node) for one in outcomes or () if one.error)


def then(state: CloneWorld, words: Sequence[str], act: Callable[[], None]) -> None:
    """Let somebody act once, right after the first step on the target that has these words."""
    done: list[bool] = []

    def watch(node: str, step: Sequence[str]) -> None:
        if node == OSOL2 and not done and tuple(step[: len(words)]) == tuple(words):
            done.append(True)
            act()

    state.watch = watch


def take_over(state: CloneWorld) -> None:
    """Make the target a source, and let its application write."""
    root = state.pools[OSOL2][DST]
    root.props[MARK] = (Standing(source_since=state.clock() + 60).value, "local")
    root.props.pop("readonly", None)
    root.written = 4096


def is_source(state: CloneWorld) -> bool:
    root = state.pools[OSOL2].get(DST)
    mark = root.props.get(MARK, ("", ""))[0] if root else ""
    return mark.startswith("none@") and bool(root and root.written and "readonly" not in root.props)


def test_a_target_that_takes_over_during_a_transfer_stays_the_source() -> None:
    state = CloneWorld(world(A, A))
    resource = resource_for(ONE)
    then(state, ("(receive) incremental", f"{DST}/a"), lambda: take_over(state))
    assert "took over" in told(run(state, resource, Run))
    assert is_source(state), story(state)
    for kind in (Run, ResyncRun, FullRun, InPlaceRun):
        assert told(run(state, resource, kind))
        assert is_source(state), story(state)


def test_a_resync_that_was_cut_does_not_go_on_where_the_target_took_over_since() -> None:
    state = CloneWorld(world({"": "old:1", "a": "old:1"}, NEWER))
    resource = resource_for(ONE)
    then(state, ("promote", f"{DST}/a"), lambda: setattr(state.trouble, "fuse", state.steps))
    assert run(state, resource, ResyncRun) is None
    state.mend()
    take_over(state)
    assert "takeover" in told(run(state, resource, ResyncRun)), story(state)
    assert is_source(state), story(state)


def test_a_target_that_takes_over_while_its_new_copy_is_sent_is_not_replaced() -> None:
    state = CloneWorld(world({"": "sent:5", "a": "sent:5"}, A, known=ONE))
    then(state, ("(receive) full", f"{DST}.full/a"), lambda: take_over(state))
    assert "takeover" in told(run(state, resource_for(ONE), FullRun))
    assert is_source(state), story(state)


@pytest.mark.parametrize("kind", [FullRun, InPlaceRun])
def test_what_lies_below_a_dst_that_is_sent_without_its_children_stays_there(
    kind: type[Run],
) -> None:
    state = CloneWorld(world({"": "sent:5"}, {"": "sent:1"}, known=ONE))
    state.pools[OSOL2][f"{DST}/mine"] = Dataset(7, 7, {"daily": Snap("77", 7, None)})
    assert f"{DST}/mine" in told(run(state, resource_for(ONE, recursive=False), kind))
    assert state.pools[OSOL2][f"{DST}/mine"].ident == 7, story(state)


def cut_resync(state: CloneWorld, *after: str) -> None:
    """Kill a syncresync after the first step on the target that has these words."""
    then(state, after, lambda: setattr(state.trouble, "fuse", state.steps))
    assert run(state, resource_for(ONE), ResyncRun) is None
    state.mend()


@pytest.mark.parametrize("after", ["rename", "clone", "promote"])
def test_a_syncresync_that_was_cut_is_told_to_go_on(after: str) -> None:
    state = CloneWorld(world({"": "old:1", "a": "old:1"}, NEWER))
    cut_resync(state, after)
    assert "did not come to its end" in told(run(state, resource_for(ONE), Run))


def test_a_tree_aside_that_a_cut_syncresync_left_hinders_no_later_one() -> None:
    state = CloneWorld(world({"": "old:1", "a": "old:1"}, NEWER))
    resource = resource_for(ONE)
    cut_resync(state, "set", f"{MARK}={WHO.mark}")
    for _ in range(2):  # cron's runs bring it in sync; the tree aside is still marked
        assert not told(run(state, resource, Run)), story(state)
    for name in ("", "/a"):  # the source is rolled back once more
        snaps = state.pools["osol1"][f"{SRC}{name}"].snaps
        for snap in [one for one in snaps if one != "old"]:
            del snaps[snap]
    assert "syncresync" in told(run(state, resource, Run))
    assert not told(run(state, resource, ResyncRun)), story(state)
    assert not told(run(state, resource, Run)), story(state)


def test_the_target_of_a_syncfull_is_known_before_its_copies_are_swapped() -> None:
    state = CloneWorld(world({"": "sent:5", "a": "sent:5"}, A, known=()))
    resource = resource_for(ONE)
    then(state, ("rename", DST), lambda: setattr(state.trouble, "fuse", state.steps))
    assert run(state, resource, FullRun) is None
    state.mend()
    state.full_streams.clear()
    assert not told(run(state, resource, Run)), story(state)
    assert not state.full_streams, story(state)
    assert not [name for name in state.pools[OSOL2] if name.startswith((f"{DST}.old", f"{DST}.f"))]


def test_a_syncfull_sends_once_though_an_earlier_run_left_its_snapshot() -> None:
    state = CloneWorld(world({"": "tosend:5", "a": "tosend:5"}, None, known=ONE))
    assert not told(run(state, resource_for(ONE), InPlaceRun)), story(state)
    assert len(state.full_streams) == 2, story(state)


def test_a_syncfull_that_was_cut_leaves_the_replicas_own_format_in_the_state() -> None:
    state = CloneWorld(world(A, A))
    as_before = resource_for(ONE)
    changed = as_before._replace(send_options=("-L",))
    assert not told(run(state, as_before, Run)), story(state)
    then(state, ("(receive) begin",), lambda: setattr(state.trouble, "fuse", state.steps))
    assert run(state, changed, FullRun) is None
    state.mend()
    # The replica is still what it was: another format is not for its chain.
    assert "send_options was changed" in told(run(state, changed, Run))
    assert not told(run(state, as_before, Run)), story(state)


@pytest.mark.parametrize("kind", [ResyncRun, FullRun, InPlaceRun])
def test_the_replica_of_a_peer_is_taken_over_only_after_a_takeover(kind: type[Run]) -> None:
    state = CloneWorld(world(A, NEWER, mark="osol3/z3/sync#1"))
    before = guids(state)
    assert "takeover" in told(run(state, resource_for(ONE), kind, replace(WHO, peers=PEERS)))
    assert guids(state) == before


def test_a_node_that_sees_a_later_source_sends_to_nobody() -> None:
    state = CloneWorld(world(A, A, A))
    take_over(state)
    before = {name: dict(one.snaps) for node in state.pools.values() for name, one in node.items()}
    said = told(run(state, resource_for((OSOL2, "osol3")), Run))
    assert ("osol2: " in said, "osol3: " in said) == (True, True)
    after = {name: dict(one.snaps) for node in state.pools.values() for name, one in node.items()}
    assert after == before, story(state)


def test_a_dataset_that_moves_aside_with_its_tree_is_named() -> None:
    state = CloneWorld(world({"": "old:1", "a": "old:1"}, NEWER))
    state.pools[OSOL2][f"{DST}/mine"] = Dataset(7, 7, {"daily": Snap("77", 7, None)})
    run(state, resource_for(ONE), ResyncRun)
    assert f"{DST}/mine: not on the source" in story(state)


def test_discard_leaves_no_child_of_the_old_source_to_be_taken_for_a_gone_one() -> None:
    state = CloneWorld(world(A, {"": "sent:1", "a": "sent:1", "b": "tosend:9"}, mark=None))
    state.pools["osol1"][SRC].props[MARK] = (Standing(source_since=0).value, "local")
    before = guids(state)
    assert f"{DST}/b" in told(run(state, resource_for(ONE), DiscardRun))
    for _ in range(3):
        run(state, resource_for(ONE), Run)
    assert guids(state) >= before


@pytest.mark.parametrize("kind", [FullRun, InPlaceRun])
@pytest.mark.parametrize("changes", [{"on_child_gone": "keep"}, {"on_child_gone": "stop"}])
def test_syncfull_does_not_take_a_child_that_is_to_be_kept(
    kind: type[Run], changes: dict[str, object]
) -> None:
    state = CloneWorld(world({"": "sent:5"}, A, known=ONE))
    assert f"{DST}/a" in told(run(state, resource_for(ONE, **changes), kind))
    assert f"{DST}/a" in state.pools[OSOL2]


def test_a_third_target_that_may_be_ahead_of_a_new_source_is_not_replaced_by_syncfull() -> None:
    state = CloneWorld(world({"": "sent:1"}, {"": "sent:2"}, mark="osol3/z3/sync#1"))
    state.pools["osol1"][SRC].props[MARK] = (Standing(source_since=0).value, "local")
    before, who = guids(state), replace(WHO, peers=PEERS)
    assert "it may be newer" in told(run(state, resource_for(ONE), FullRun, who))
    assert guids(state) == before
    assert not told(run(state, resource_for(ONE), InPlaceRun, who)), story(state)


def test_a_new_copy_that_was_cut_amid_older_snapshots_is_gone_on_with() -> None:
    state = CloneWorld(world({"": "daily:1! sent:5", "a": "daily:1! sent:5"}, A, known=ONE))
    daily = state.pools["osol1"][SRC].snaps["daily"]
    state.pools[OSOL2][f"{DST}.full"] = Dataset(9000, 9000, {"daily": daily})
    assert not told(run(state, resource_for(ONE, intermediary=True), FullRun)), story(state)
    assert state.pools[OSOL2][DST].ident == 9000, story(state)
