"""Who is the source after a takeover, and what the old one holds that was never sent.

Views go in as words. The runs that make the old source a replica are killed at any step, in memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from check_zfs_sync.service import Target
from zfs_sync_agent import handover
from zfs_sync_agent.errors import Refused
from zfs_sync_agent.execute import Outcome, Run
from zfs_sync_agent.model import (
    MARK,
    RETAINED,
    TARGETS,
    Snapshot,
    Standing,
    TargetView,
    Tree,
    parse_standing,
)

from .fakerun import run_agent
from .fakezfs import World
from .notation import DST, SRC, WHO, resource, source, target
from .worlds import kept_name, resource_for, world

PEERS = replace(WHO, peers=frozenset({"osol1", "osol2", "osol3"}))


@pytest.mark.parametrize(
    "standing",
    [
        Standing(),
        Standing(replica_of="osol1/z3/sync#1"),
        Standing(source_since=1276950000),
        Standing(repair="osol1/z3/sync#1"),
    ],
)
def test_a_mark_is_read_as_it_was_written(standing: Standing) -> None:
    assert parse_standing(standing.value or None) == standing


def test_a_mark_that_a_person_set_is_an_old_takeover() -> None:
    assert parse_standing("none") == Standing(source_since=0)


SINCE = 100


@pytest.mark.parametrize(
    ("there", "follows"),
    [
        ({"mark": None}, True),
        ({"mark": None, "source_since": SINCE - 1}, True),
        ({"mark": None, "source_since": SINCE}, False),
        ({"mark": None, "source_since": SINCE + 1}, False),
        ({"mark": None, "repair": WHO.mark}, False),
        ({"mark": "osol2/z3/sync#1"}, True),
        ({"mark": WHO.mark}, False),
        ({"mark": "osol9/z3/sync#1"}, False),
        ({"mark": "osol2/z3/sync#2"}, False),
        ({"mark": "osol2/other/sync#1"}, False),
    ],
)
def test_only_a_later_takeover_of_this_resource_is_followed(
    there: Mapping[str, object], follows: bool
) -> None:
    view = replace(target({"": "sent:1"}), **there)  # type: ignore[arg-type]  # a test names it
    here = source({"": "sent:1"})
    assert handover.follows(replace(here, source_since=SINCE), view, PEERS) is follows
    assert not handover.follows(here, view, PEERS)


def with_written(view: TargetView, sizes: Mapping[str, int]) -> TargetView:
    """Return the view with bytes written between the snapshots; `` is the head of the root."""
    assert view.tree is not None
    root = view.tree.datasets[""]
    snaps: dict[str, Snapshot] = {
        name: snap._replace(written=sizes.get(name, 0)) for name, snap in root.snapshots.items()
    }
    datasets = {**view.tree.datasets, "": root._replace(snapshots=snaps, written=sizes.get("", 0))}
    return replace(view, tree=Tree(view.tree.root, datasets))


@pytest.mark.parametrize(
    ("held", "sizes", "found"),
    [
        ("sent:1", {}, None),
        ("sent:1 hourly:2!", {}, None),
        ("sent:1 hourly:2!", {"hourly": 7}, "7 bytes written since @sent, snapshots @hourly"),
        ("sent:1", {"": 9}, "9 bytes written since @sent"),
        ("sent:1 tosend:2", {}, "0 bytes written since @sent, snapshots @tosend"),
        ("old:0 sent:1 hourly:2! tosend:3", {"tosend": 4, "": 2}, "6 bytes"),
    ],
)
def test_what_was_never_sent_is_told_with_its_bytes(
    held: str, sizes: Mapping[str, int], found: str | None
) -> None:
    view = with_written(target({"": held}, mark=None), sizes)
    unsent = handover.unsent(source({"": "sent:1"}), view, WHO, recursive=True)
    assert (found or "") in " ".join(str(one) for one in unsent)
    assert bool(unsent) is (found is not None)


def test_a_dataset_that_only_the_old_source_has_was_never_sent() -> None:
    view = target({"": "sent:1", "born": "tosend:5"}, mark=None)
    with pytest.raises(Refused, match="born"):
        handover.check_nothing_unsent(source({"": "sent:1"}), view, PEERS, recursive=True)
    handover.check_nothing_unsent(source({"": "sent:1"}), view, PEERS, recursive=False)


def test_a_newer_snapshot_of_another_resource_of_the_same_src_is_nothing_unsent() -> None:
    view = with_written(target({"": "sent:1 drp.sent:2"}, mark=None), {})
    assert view.tree is not None
    root = view.tree.datasets[""]
    theirs = root.snapshots["drp.sent"]._replace(rid="z3/sync#2")
    held = root._replace(snapshots={**root.snapshots, "drp.sent": theirs})
    view = replace(view, tree=Tree(view.tree.root, {"": held}))
    assert handover.unsent(source({"": "sent:1"}), view, WHO, recursive=True) == []


def test_bytes_that_zfs_cannot_tell_are_left_to_the_receive() -> None:
    view = target({"": "sent:1 hourly:2!"}, mark=None)
    assert handover.unsent(source({"": "sent:1"}), view, WHO, recursive=True) == []


# --- the old source becomes a replica -------------------------------------------------------------


def old_source(held: Mapping[str, str], retained: str = "") -> World:
    """Return a world in which osol1 took over from osol2, which holds that."""
    state = world({"": "sent:2", "a": "sent:2"}, held, mark=None)
    for name in state.below("osol2", DST):
        snaps = state.pools["osol2"][name].snaps
        snaps.update({label: replace(snap, source="local") for label, snap in snaps.items()})
    if retained:
        value = (f"{kept_name(1)}={retained}", "local")
        state.pools["osol2"][DST].props[RETAINED] = value
    state.pools["osol1"][SRC].props[MARK] = (Standing(source_since=state.clock()).value, "local")
    return state


OLD: Mapping[str, Callable[[], World]] = {
    "in sync": lambda: old_source({"": "sent:2", "a": "sent:2"}),
    "cut before it rotated": lambda: old_source({"": "sent:1 tosend:2", "a": "sent:1 tosend:2"}),
    "cut while it rotated": lambda: old_source({"": "kept:1 tosend:2", "a": "kept:1 tosend:2"}),
    "with a base for a third": lambda: old_source({"": "kept:1 sent:2", "a": "kept:1 sent:2"}, "x"),
}


@pytest.mark.parametrize("start", OLD)
def test_an_old_source_becomes_a_replica_though_the_run_is_killed(start: str) -> None:
    resource = resource_for(("osol2",))
    fuse, done = 0, False
    while not done:
        state = OLD[start]()
        state.trouble.fuse = fuse
        done = run_agent(state, resource) is not None
        state.mend()
        results = [run_agent(state, resource) for _ in range(2)]
        said = [str(one.error) for result in results if result for one in result]
        for name in ("", "/a"):
            here = state.pools["osol1"][SRC + name].snaps["sent"].guid
            there = state.pools["osol2"][DST + name].snaps
            own = {label: snap.guid for label, snap in there.items() if snap.rid}
            why = f"killed after {fuse}: {own} {said}\n" + "\n".join(state.log)
            assert own == {"sent": here}, why
        assert state.pools["osol2"][DST].props[MARK] == (WHO.mark, "local")
        assert not state.full_streams
        fuse += 1
    assert fuse > 10


# --- takeover -------------------------------------------------------------------------------------


class TakeOver(Run):
    """The whole of what a person asks for by takeover."""

    def go(self) -> list[Outcome]:
        """Take over."""
        self.take_over()
        return []


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ("osol2/z3/sync#2", "--rid sync#2 takeover"),
        ("osol2/web/sync#1", "-s web --rid sync#1 takeover"),
        ("resync:osol2/z3/sync#1", "did not come to its end"),
    ],
)
def test_what_is_no_whole_replica_of_the_resource_is_not_taken_over(mark: str, said: str) -> None:
    state = world({"": "sent:1"}, {"": "sent:1"})
    state.pools["osol1"][SRC].props[MARK] = (mark, "local")
    before = dict(state.pools["osol1"][SRC].props)
    with pytest.raises(Refused) as refused:
        run_agent(state, resource_for(("osol2",)), kind=TakeOver)
    assert said in refused.value.block("")
    assert state.pools["osol1"][SRC].props == before


def test_a_local_target_that_never_was_is_no_lost_one_after_a_takeover() -> None:
    state = world({"": "sent:1"}, None, known=())
    state.pools["osol1"][SRC].props[MARK] = ("osol3/z3/sync#1", "local")
    targets = (Target("osol2", "local"), Target("osol3", "nodes"))
    assert run_agent(state, resource(targets=targets), kind=TakeOver) == []
    assert state.pools["osol1"][SRC].props[TARGETS] == ("z3/sync#1=osol3", "local")
