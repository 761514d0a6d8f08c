"""What is told of a transfer that failed, and of a source that shows no goal."""

from dataclasses import replace

import pytest

from zfs_sync_agent import branch, observe
from zfs_sync_agent.model import Tree
from zfs_sync_agent.observe import Side
from zfs_sync_agent.transport import Stage, Transfer

from .fakerun import run_agent
from .notation import SRC
from .worlds import ONE, resource_for, world


def test_a_complaint_is_told_without_the_usage_that_follows_it() -> None:
    stderr = "invalid option 'w'\nusage:\n\tsend [-vp] <snapshot>\n\nFor more info: zfs allow"
    done = Transfer(0, (Stage("zfs send -w", 2, stderr), Stage("zfs receive", 0, "")))
    told = branch._transfer_failure(done, "osol2").detail
    assert told == "zfs send -w: exit 2: invalid option 'w'"


def test_a_goal_that_the_source_does_not_show_is_neither_proven_nor_rotated() -> None:
    state, resource = world({"": ""}, None, known=()), resource_for(ONE)

    def shows_none(_side: Side, tree: Tree, relative: object) -> Tree:
        bare = {name: replace(one, snapshots={}) for name, one in tree.datasets.items()}
        return Tree(tree.root, bare) if relative and tree.root == SRC else tree

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observe, "deepen", shows_none)
        outcomes = run_agent(state, resource)
    assert outcomes
    assert "does not show" in str(outcomes[0].error)
    assert set(state.pools["osol1"][SRC].snaps) == {"tosend"}
    assert [one.error for one in run_agent(state, resource) or []] == [None]
    assert set(state.pools["osol1"][SRC].snaps) == {"sent"}
