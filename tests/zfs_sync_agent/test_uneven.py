"""Trees of which little was sent, so that their @sent are of different ages (send_changed).

The real run and the real `forget` on ZFS in memory, with somebody who changes the tree amid the
look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from check_zfs_sync.statefile import State
from zfs_sync_agent import forget
from zfs_sync_agent.execute import Outcome
from zfs_sync_agent.model import RETAINED, parse_nodes

from .fakerun import FakeShell, run_agent, run_for
from .fakezfs import Dataset, World
from .notation import SRC
from .worlds import EIGHT, ONE, TWO, Holdings, claimed, resource_for, worked, world

NEVER_LATE = 10**9


def errors(outcomes: Sequence[Outcome] | None) -> list[str]:
    """Return what went wrong with any target."""
    assert outcomes is not None
    return [str(one.error) for one in outcomes if one.error]


def even(*targets: Holdings) -> World:
    """Return a world in sync, a while after its last synchronization."""
    state = claimed(world(EIGHT, *targets))
    state.txg = 1000
    return state


def snapshots(state: World) -> dict[str, set[str]]:
    """Return the names of the source's snapshots by dataset."""
    return {
        name: set(one.snaps)
        for name, one in state.pools["osol1"].items()
        if name == SRC or name.startswith(f"{SRC}/")
    }


def amid_the_look(patch: pytest.MonkeyPatch, at: int, act: Callable[[World], None]) -> None:
    """Let somebody act after so many answers about datasets and snapshots."""
    ask, asked = World._get, 0

    def answer(self: World, node: str, words: list[str], *rest: Any) -> None:
        nonlocal asked
        ask(self, node, words, *rest)
        if "property,value,source" not in words:
            asked += 1
            if asked == at:
                act(self)

    patch.setattr(World, "_get", answer)


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("absent", ["not asked for", "lost"])
def test_forget_leaves_the_snapshots_that_other_targets_hold(
    monkeypatch: pytest.MonkeyPatch, few: bool, absent: str
) -> None:
    state = even(EIGHT, EIGHT)
    both = resource_for(TWO, sync_max_delay=NEVER_LATE, send_changed=few)
    worked(state, "c")
    if absent == "lost":
        state.trouble.lose = ("osol3", state.steps + 8)
        run_agent(state, both)
        state.mend()
    else:
        run_agent(state, both, kind=run_for(ONE[0]))
    monkeypatch.setattr(forget, "Shell", lambda node, _ssh: FakeShell(state, node))
    left = resource_for(ONE, sync_max_delay=NEVER_LATE, send_changed=few)
    told = State("z3", "sync#1", "osol1", "osol1", SRC, 90000, "0", state.state)
    forget._forget_bases(forget._Task(told, left, "osol3", False, "osol1"))
    assert all("sent" in names for names in snapshots(state).values())
    assert not errors(run_agent(state, left))
    assert set.union(*snapshots(state).values()) == {"sent"}
    assert RETAINED not in state.pools["osol1"][SRC].props


def test_runs_for_one_of_two_targets_keep_two_bases_at_most_for_the_other() -> None:
    state = even(EIGHT, EIGHT)
    both = resource_for(TWO, sync_max_delay=NEVER_LATE, send_changed=True)
    for number in range(20):
        worked(state, "abcdefg"[number % 7])
        assert not errors(run_agent(state, both, kind=run_for(ONE[0])))
        value, _ = state.pools["osol1"][SRC].props[RETAINED]
        assert len(parse_nodes(value)) <= 2
    state.log.clear()
    for _ in range(3):
        assert not errors(run_agent(state, both))
    assert not [line for line in state.log if "zfs send" in line and " -i " not in line]
    assert set.union(*snapshots(state).values()) == {"sent"}


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("at", range(1, 9))
def test_a_child_that_is_created_anew_amid_the_look_is_sent_anew(
    monkeypatch: pytest.MonkeyPatch, few: bool, at: int
) -> None:
    def anew(self: World) -> None:
        txg = self.next_txg()
        self.pools["osol1"][f"{SRC}/g"] = Dataset(txg, txg, unsynced=1, dirtied=txg)

    state = even(EIGHT)
    worked(state, "c")
    amid_the_look(monkeypatch, at, anew)
    resource = resource_for(ONE, sync_max_delay=NEVER_LATE, send_changed=few)
    for _ in range(4):
        said = errors(run_agent(state, resource))
    assert not said
    assert snapshots(state)[f"{SRC}/g"] == {"sent"}


def test_equal_is_as_of_the_time_before_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    created = 0

    def new(self: World) -> None:
        nonlocal created
        txg = self.next_txg()
        created = self.clock()
        self.pools["osol1"][f"{SRC}/new"] = Dataset(txg, txg, unsynced=1, dirtied=txg)

    state = even(EIGHT)
    amid_the_look(monkeypatch, 1, new)
    assert not errors(run_agent(state, resource_for(ONE, skip_unchanged=True)))
    equal_as_of = state.state["osol2"].equal_as_of
    assert equal_as_of is not None
    assert equal_as_of < created
