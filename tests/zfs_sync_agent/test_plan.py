"""What one run decides, row by row: views go in as words, commands come out as words."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from check_zfs_sync.statefile import State, TargetState, format_state
from zfs_sync_agent import judge, pairing, plan, rotating, zfs
from zfs_sync_agent.errors import BrokenChain, CommandFailed, Refused, StandbyFor, SyncError
from zfs_sync_agent.judge import Role
from zfs_sync_agent.model import Names, Snapshot, SourceView, TargetView, Tree
from zfs_sync_agent.plan import Branch
from zfs_sync_agent.rotating import Knowledge

from .notation import DST, EPOCH, NAMES, SRC, WHO, resource, source, target, tree

AB = "sent:1 tosend:2"


def kept(guid: int) -> str:
    """Return the kept name of the snapshot with that guid."""
    return NAMES.kept(Snapshot("", str(guid), EPOCH + 60 * guid))


def words(changes: Iterable[zfs.Change]) -> list[str]:
    """Return the commands, dataset names shortened to `src` and `dst`."""
    return [_short(change.argv) for change in changes]


def _short(argv: Iterable[str]) -> str:
    return " ".join(argv).replace(SRC, "src").replace(DST, "dst")


def branch_of(
    held: Mapping[str, str],
    there: TargetView,
    *,
    goal: str = "tosend",
    one_by_one: bool = False,
    since: int | None = None,
    **options: object,
) -> Branch:
    here = replace(source(held), source_since=since)
    return plan.plan_branch(here, there, resource(**options), WHO, goal, one_by_one=one_by_one)


def sends(branch: Branch, held: Mapping[str, str], *, root: str = SRC) -> list[str]:
    """Return `send ... | receive ...` of each stream."""
    here = tree(root, held)
    can = target({}).can
    return [
        _short(one.send_argv(here, ())) + " | " + _short(one.receive_argv(can, (), resumes=False))
        for one in branch.streams
    ]


# --- pairing ----------------------------------------------------------------------------------


def test_datasets_are_paired_by_name_where_nothing_else_is_known() -> None:
    pairs = pairing.pair(tree("s", {"": "", "a": ""}), tree("d", {"": "", "a": "", "b": ""}))
    assert pairs == {"": "", "a": "a"}


def test_a_renamed_child_is_paired_by_guid() -> None:
    pairs = pairing.pair(
        tree("s", {"": "sent:1", "new": "sent:2"}), tree("d", {"": "sent:1", "old": "sent:2"})
    )
    assert pairs == {"": "", "new": "old"}


def test_children_that_swapped_names_are_paired_by_guid() -> None:
    pairs = pairing.pair(
        tree("s", {"": "sent:1", "a": "sent:2", "b": "sent:3"}),
        tree("d", {"": "sent:1", "a": "sent:3", "b": "sent:2"}),
    )
    assert pairs == {"": "", "a": "b", "b": "a"}


def test_a_child_that_moved_below_another_is_paired_by_guid() -> None:
    pairs = pairing.pair(
        tree("s", {"": "sent:1", "a": "sent:2", "a/b": "sent:3"}),
        tree("d", {"": "sent:1", "a": "sent:2", "b": "sent:3"}),
    )
    assert pairs == {"": "", "a": "a", "a/b": "b"}


def test_a_child_born_after_the_base_is_not_the_old_one_of_its_name() -> None:
    pairs = pairing.pair(
        tree("s", {"": "sent:1 tosend:5", "a": "tosend:6 born=4"}),
        tree("d", {"": "sent:1", "a": "sent:2"}),
    )
    assert pairs == {"": ""}


def test_a_child_older_than_the_base_is_the_one_of_its_name_whatever_it_holds() -> None:
    pairs = pairing.pair(
        tree("s", {"": "sent:3", "a": "sent:4 born=2"}), tree("d", {"": "sent:3", "a": "sent:9"})
    )
    assert pairs == {"": "", "a": "a"}


def test_of_two_datasets_with_common_guids_the_one_of_the_same_name_is_it() -> None:
    pairs = pairing.pair(
        tree("s", {"": "sent:1", "a": "sent:2 tosend:3"}),
        tree("d", {"": "sent:1", "a": "sent:2", "copy": "x:3"}),
    )
    assert pairs["a"] == "a"


def test_the_newest_guid_decides_where_a_renamed_child_is() -> None:
    pairs = pairing.pair(
        tree("s", {"": "sent:1", "a": "sent:2 tosend:3"}),
        tree("d", {"": "sent:1", "b": "sent:2", "c": "sent:3"}),
    )
    assert pairs["a"] == "c"


def test_a_dataset_without_our_mark_is_no_renamed_child() -> None:
    pairs = pairing.pair(
        tree("s", {"": "sent:1", "a": "sent:2"}), tree("d", {"": "sent:1", "clone": "sent:2!"})
    )
    assert "a" not in pairs


def test_two_datasets_are_never_paired_with_the_same_one() -> None:
    pairs = pairing.pair(
        tree("s", {"": "sent:1", "a": "sent:2", "b": "sent:3"}),
        tree("d", {"": "sent:1", "b": "x:2 y:3"}),
    )
    assert list(pairs.values()).count("b") == 1


def test_without_a_root_on_the_target_the_root_has_no_pair() -> None:
    assert "" not in pairing.pair(tree("s", {"": "sent:1"}), tree("d", {}))


# --- how a dataset stands ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "there", "common", "has_goal"),
    [
        ("sent:1 tosend:2", "sent:1", "sent", False),
        ("sent:1 tosend:2", "sent:1 tosend:2", "tosend", True),
        ("sent:1 tosend:2", "sent:2", "tosend", True),
        ("sent:1 tosend:2", "by_hand:2", "tosend", True),
        ("old:1 sent:2 tosend:3", "sent:1", "old", False),
        ("sent:1 tosend:2", "sent:9", None, False),
        ("sent:1 tosend:2", "", None, False),
    ],
)
def test_a_dataset_stands_where_its_guids_are(
    held: str, there: str, common: str | None, *, has_goal: bool
) -> None:
    (stand,) = pairing.stands(tree("s", {"": held}), tree("d", {"": there}), "tosend")
    name = stand.common.name if stand.common else None
    assert (stand.target, name, stand.has_goal) == ("", common, has_goal)


def test_only_datasets_that_hold_the_goal_are_of_its_tree() -> None:
    found = pairing.stands(
        tree("s", {"": AB, "a": AB, "late": "born=9"}), tree("d", {"": "sent:1"}), "tosend"
    )
    assert [stand.relative for stand in found] == ["", "a"]


def test_before_the_goal_is_taken_every_dataset_is_of_its_tree() -> None:
    found = pairing.stands(tree("s", {"": "sent:1", "a": ""}), tree("d", {"": "sent:1"}), "tosend")
    assert [(stand.relative, stand.has_goal) for stand in found] == [("", False), ("a", False)]


def test_a_dataset_that_is_not_there_has_no_target() -> None:
    found = pairing.stands(
        tree("s", {"": AB, "a": "tosend:9"}), tree("d", {"": "sent:1"}), "tosend"
    )
    assert found[1].target is None


# --- what needs a deep listing ----------------------------------------------------------------


def test_nothing_is_unclear_where_every_dataset_has_a_base() -> None:
    held = {"": "sent:1", "a": "sent:2"}
    assert pairing.unclear(tree("s", held), tree("d", held), WHO) == ([], [])


def test_a_pair_without_a_common_snapshot_is_unclear_on_both_sides() -> None:
    found = pairing.unclear(
        tree("s", {"": "sent:1", "a": "sent:2"}), tree("d", {"": "sent:1", "a": "sent:3"}), WHO
    )
    assert found == (["a"], ["a"])


def test_a_dataset_without_pair_on_the_target_makes_the_unpaired_of_the_source_unclear() -> None:
    found = pairing.unclear(
        tree("s", {"": "sent:5", "new": "tosend:9 born=8"}),
        tree("d", {"": "sent:5", "old": "sent:2"}),
        WHO,
    )
    assert found == (["new"], ["old"])


def test_a_child_that_is_new_on_the_source_is_not_unclear() -> None:
    found = pairing.unclear(tree("s", {"": "sent:1", "a": ""}), tree("d", {"": "sent:1"}), WHO)
    assert found == ([], [])


def test_what_was_listed_deeply_is_not_unclear_again() -> None:
    found = pairing.unclear(
        tree("s", {"": "sent:1 complete"}), tree("d", {"": "sent:2 complete", "x": "complete"}), WHO
    )
    assert found == ([], [])


# --- the proof --------------------------------------------------------------------------------


def test_the_goal_is_proven_under_any_name_in_any_dataset() -> None:
    proof = pairing.unproven(
        tree("s", {"": "tosend:1", "a": "tosend:2"}), tree("d", {"": "x:1", "old": "y:2"}), "tosend"
    )
    assert proof == []


def test_a_dataset_whose_guid_is_not_listed_is_unproven() -> None:
    held = tree("s", {"": "tosend:1", "a": "tosend:2"})
    assert pairing.unproven(held, tree("d", {"": "tosend:1", "a": "tosend:3"}), "tosend") == ["a"]


def test_nothing_is_proven_where_there_is_no_target() -> None:
    assert pairing.unproven(tree("s", {"": "tosend:1"}), None, "tosend") == [""]


# --- the source -------------------------------------------------------------------------------


def test_a_source_with_own_snapshots_passes() -> None:
    held = {"": f"sent:1 tosend:2 {kept(3)}:3 by_hand:4!", "a": "sent:5"}
    judge.check_source(source(held), NAMES, WHO)


@pytest.mark.parametrize("name", ["sent", "tosend", "tosend.osol2", kept(7)])
def test_a_foreign_snapshot_under_an_own_name_breaks_the_chain(name: str) -> None:
    with pytest.raises(BrokenChain, match=re.escape(f"{SRC}@{name} on osol1 is not one")):
        judge.check_source(source({"": f"{name}:7!"}), NAMES, WHO)


def test_an_intent_without_its_root_is_an_intent_of_nothing() -> None:
    with pytest.raises(BrokenChain, match=f"{SRC}/a@tosend"):
        judge.check_source(source({"": "sent:1", "a": "sent:2 tosend:3"}), NAMES, WHO)


def test_the_advice_for_a_foreign_snapshot_can_be_pasted() -> None:
    held = source({"": "sent:1!", "a": "sent:2!"})
    with pytest.raises(BrokenChain) as raised:
        judge.check_source(held, NAMES, WHO)
    assert f"zfs destroy -r {SRC}@sent;" in raised.value.hint


def test_the_advice_for_one_foreign_child_spares_the_others() -> None:
    held = source({"": "sent:1", "a": "sent:2!"})
    with pytest.raises(BrokenChain) as raised:
        judge.check_source(held, NAMES, WHO)
    assert f"zfs destroy {SRC}/a@sent;" in raised.value.hint


def test_a_prefix_leaves_the_plain_names_to_others() -> None:
    judge.check_source(source({"": "sent:1! tosend:2!"}), Names("two."), WHO)


@pytest.mark.parametrize(
    ("held", "there", "answer"),
    [
        ("tosend:2", {"": "sent:2"}, True),
        ("tosend:2", {"": "tosend:2"}, True),
        (f"tosend:2 {kept(1)}:1", None, True),
        ("tosend:2", {"": "sent:1"}, False),
        ("tosend:2", None, False),
        ("sent:1 tosend:2", {"": "sent:2"}, False),
        ("sent:1", {"": "sent:1"}, False),
        ("", None, False),
    ],
)
def test_a_source_with_b_alone_is_half_rotated_if_b_arrived(
    held: str, there: Mapping[str, str] | None, *, answer: bool
) -> None:
    assert judge.is_half_rotated(source({"": held}), [target(there)], NAMES) is answer


def test_b_on_the_root_alone_is_a_first_sync_that_was_cut() -> None:
    held = source({"": "tosend:1", "a": "tosend:2"})
    assert not judge.is_half_rotated(held, [target({"": "tosend:1"}, mark=None)], NAMES)


def test_b_on_one_of_two_targets_is_enough() -> None:
    views = [target({"": "sent:1"}), target({"": "sent:2"}, node="osol3")]
    assert judge.is_half_rotated(source({"": "tosend:2"}), views, NAMES)


def test_the_replica_of_this_resource_is_a_standby() -> None:
    assert judge.is_standby(source({"": ""}, replica_of="osol2/z3/sync#1"), WHO)


@pytest.mark.parametrize("mark", [None, "osol2/z3/sync#2", "osol2/other/sync#1"])
def test_a_replica_of_another_resource_may_be_sent_on(mark: str | None) -> None:
    assert not judge.is_standby(source({"": ""}, replica_of=mark), WHO)


# --- the target's root ------------------------------------------------------------------------


def state_text(sender: str, dst: str) -> str:
    entry = TargetState(dst, "ok", 0, None, None, (), None, None)
    return format_state(State("z3", "sync#1", sender, "osol2", SRC, 90000, "0", {"osol2": entry}))


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{torn",
        state_text("osol1", "elsewhere/data"),
        state_text("osol2", "elsewhere/data"),
        state_text("other", DST),
    ],
    ids=["none", "empty", "torn", "ours", "the target's own", "same dst"],
)
def test_a_state_file_that_contradicts_nothing_lets_pass(text: str | None) -> None:
    judge.check_state_owner(target({"": ""}, state_text=text), WHO)


def test_a_state_file_of_another_source_and_dst_is_refused() -> None:
    there = target({"": ""}, state_text=state_text("other", "elsewhere/data"))
    with pytest.raises(Refused) as raised:
        judge.check_state_owner(there, WHO)
    reason = raised.value.reason
    assert all(one in reason for one in ("z3/sync#1", "other", "elsewhere/data", "osol1", DST))


def check(
    held: SourceView, there: TargetView, *, known: bool = False, consent: bool = False
) -> None:
    judge.check_target(held, there, WHO, NAMES, known=known, consent=consent)


def refusal(held: SourceView, there: TargetView, *, known: bool = False) -> SyncError:
    with pytest.raises(SyncError) as raised:
        check(held, there, known=known)
    return raised.value


def test_a_target_that_never_was_may_be_filled() -> None:
    check(source({"": "sent:1"}), target(None))


def test_a_replica_with_a_base_passes() -> None:
    check(source({"": "sent:1"}, targets="osol2"), target({"": "sent:1"}), known=True)


def test_a_vanished_replica_breaks_the_chain() -> None:
    error = refusal(source({"": "sent:1"}), target(None), known=True)
    assert (type(error), DST in error.what, "syncfull" in error.hint) == (BrokenChain, True, True)


def test_consent_lets_a_vanished_replica_be_filled_again() -> None:
    check(source({"": "sent:1"}), target(None), known=True, consent=True)


def test_the_replica_of_another_is_refused_and_named() -> None:
    there = target({"": "sent:1"}, mark="osol9/z3/sync#1")
    error = refusal(source({"": "sent:1"}), there)
    assert (type(error), "osol9/z3/sync#1" in error.what) == (Refused, True)


def test_a_marked_replica_without_common_snapshot_breaks_the_chain() -> None:
    error = refusal(source({"": "sent:1"}), target({"": "sent:2"}))
    assert (type(error), "--node osol2 syncfull" in error.hint) == (BrokenChain, True)


def test_an_unmarked_dataset_without_common_snapshot_is_refused() -> None:
    error = refusal(source({"": "sent:1"}), target({"": "x:2"}, mark=None))
    assert (type(error), "--in-place" in error.hint) == (Refused, True)


def test_an_empty_dataset_younger_than_b_may_be_a_receive_under_way() -> None:
    there = target({"": "born=9"}, mark=None)
    assert type(refusal(source({"": "tosend:5"}), there)) is CommandFailed


@pytest.mark.parametrize(
    ("held", "there"),
    [("sent:5", "born=9"), ("tosend:5", "born=2"), ("tosend:5", "born=9 x:7!")],
    ids=["nothing is being sent", "older than B", "it has a snapshot"],
)
def test_other_empty_datasets_are_somebody_elses(held: str, there: str) -> None:
    assert type(refusal(source({"": held}), target({"": there}, mark=None))) is Refused


def test_a_replica_that_lost_its_mark_is_refused_as_it_may_be_a_source_now() -> None:
    error = refusal(source({"": "sent:1"}, targets="osol2"), target({"": "sent:1"}, mark=None))
    assert (type(error), "may be in use as a source" in error.what) == (Refused, True)


def test_an_unmarked_dataset_with_a_base_is_a_first_sync_that_was_cut() -> None:
    check(source({"": "tosend:1"}), target({"": "tosend:1"}, mark=None))


def test_every_refusal_says_what_is_untouched_and_what_comes_next() -> None:
    held = source({"": "sent:1"}, targets="osol2")
    errors = [
        refusal(held, target(None), known=True),
        refusal(held, target({"": "sent:1"}, mark="x/y/z")),
        refusal(held, target({"": "sent:2"})),
        refusal(held, target({"": "x:2"}, mark=None)),
        refusal(held, target({"": "sent:1"}, mark=None)),
    ]
    assert all(error.untouched and error.hint for error in errors)


def test_a_replica_that_lost_its_base_on_the_source_breaks_the_chain() -> None:
    error = refusal(source({"": "sent:1"}), target({"": f"{kept(1)}:1 sent:2"}))
    assert (type(error), "--node osol2 syncresync" in error.hint) == (BrokenChain, True)


@pytest.mark.parametrize("there", ["sent:2 tosend:1", "sent:1 theirs:2!"])
def test_an_older_own_snapshot_or_a_newer_foreign_one_breaks_nothing(there: str) -> None:
    newest = "2" if "sent:2" in there else "1"
    check(source({"": f"sent:{newest}"}), target({"": there}))


def test_a_source_that_never_sent_stands_by_for_a_peer() -> None:
    who = replace(WHO, peers=frozenset({"osol9"}))
    there = target({"": "sent:1"}, mark="osol9/z3/sync#1")
    with pytest.raises(StandbyFor):
        judge.check_target(source({"": "sent:1"}), there, who, NAMES, known=False, consent=False)


def taken_here(view: Tree) -> Tree:
    """Return the tree as if all of its snapshots had been taken where they are."""
    return Tree(
        view.root,
        {
            name: one._replace(
                snapshots={key: s._replace(taken_here=True) for key, s in one.snapshots.items()},
            )
            for name, one in view.datasets.items()
        },
    )


def test_a_source_that_sent_before_refuses_a_peer() -> None:
    who = replace(WHO, peers=frozenset({"osol9"}))
    held = source({"": "sent:1"})
    there = target({"": "sent:1"}, mark="osol9/z3/sync#1")
    with pytest.raises(Refused, match="is the replica of osol9"):
        judge.check_target(
            replace(held, tree=taken_here(held.tree)), there, who, NAMES, known=True, consent=False
        )


def test_a_target_that_is_marked_as_a_source_is_refused() -> None:
    error = refusal(
        source({"": "sent:1"}), replace(target({"": "sent:1"}, mark=None), source_since=7)
    )
    assert (type(error), "by takeover" in error.what) == (Refused, True)


def test_an_unmarked_target_that_takes_snapshots_itself_is_stood_by_for() -> None:
    there = target({"": "sent:1"}, mark=None)
    assert there.tree is not None
    with pytest.raises(StandbyFor):
        check(source({"": "sent:1"}), replace(there, tree=taken_here(there.tree)))


def test_two_sources_of_one_resource_are_a_persons_matter() -> None:
    held, there = source({"": "sent:1"}), target({"": "sent:1"}, mark=None)
    assert there.tree is not None
    with pytest.raises(Refused, match="is a source of z3/sync#1 itself"):
        check(
            replace(held, tree=taken_here(held.tree)),
            replace(there, tree=taken_here(there.tree)),
        )


CARRIED = {f"{SRC}/www": "/srv/www"}


def test_a_mountpoint_that_the_target_uses_is_refused_and_named() -> None:
    with pytest.raises(Refused, match=r"/srv/www, which dst/www uses") as raised:
        judge.check_mounts(CARRIED, {"/srv/www": "dst/www"}, target(None), resource())
    assert "-x mountpoint" in raised.value.hint


def test_a_mountpoint_that_nobody_uses_is_carried() -> None:
    judge.check_mounts(CARRIED, {"/srv": "dst/www"}, target(None), resource())


@pytest.mark.parametrize("options", [("-x", "mountpoint"), ("-o", "mountpoint=none")])
def test_a_mountpoint_that_is_left_out_is_no_matter(options: tuple[str, ...]) -> None:
    there = resource(receive_options=options)
    judge.check_mounts(CARRIED, {"/srv/www": "dst/www"}, target(None), there)


# --- abreast or joining -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "there", "role"),
    [
        ("", None, Role.ABREAST),
        ("tosend:1", None, Role.ABREAST),
        ("sent:1", None, Role.JOINING),
        ("sent:1", {"": "sent:1"}, Role.ABREAST),
        ("sent:1", {"": "other_name:1"}, Role.ABREAST),
        ("sent:1 tosend:2", {"": "sent:1"}, Role.ABREAST),
        ("sent:1 tosend:2", {"": "sent:2"}, Role.ABREAST),
        ("old:1 sent:2", {"": "sent:1"}, Role.JOINING),
        (f"sent:1 {kept(2)}:2", {"": "sent:2"}, Role.ABREAST),
        (f"sent:1 {kept(2)}:2 tosend:3", {"": "sent:2"}, Role.ABREAST),
        (f"sent:1 tosend:2 {kept(3)}:3", {"": "sent:3"}, Role.AHEAD),
        ("sent:1", {"": "sent:9"}, Role.JOINING),
    ],
)
def test_the_role_of_a_target_follows_from_its_base(
    held: str, there: Mapping[str, str] | None, role: Role
) -> None:
    assert judge.role(source({"": held}), target(there), NAMES) is role


def test_a_base_of_the_same_second_and_txg_as_a_is_abreast() -> None:
    held = source({"": "sent:3"})
    twin = Snapshot(kept(3), "7", EPOCH + 180, 3, WHO.rid_value)
    root = held.tree.datasets[""]
    snapshots = {**root.snapshots, twin.name: twin}
    there = target({"": "sent:7"})
    datasets = {"": type(root)("", 0, 0, None, snapshots)}
    view = SourceView(type(held.tree)(SRC, datasets), None, {}, frozenset(), held.can)
    assert judge.role(view, there, NAMES) is Role.ABREAST


# --- the first sync ---------------------------------------------------------------------------


def test_a_first_sync_of_a_tree_is_one_stream() -> None:
    held = {"": "tosend:1", "a": "tosend:2"}
    assert sends(branch_of(held, target(None)), held) == [
        "send -R src@tosend | receive dst",
    ]


def test_a_first_sync_lands_by_pool_where_dst_is_pool_and_path() -> None:
    held = {"": "tosend:1", "a": "tosend:2"}
    there = target(None, dst="osol2_z3_root/data")
    assert sends(branch_of(held, there), held) == [
        "send -R src@tosend | receive -d osol2_z3_root",
    ]


def test_a_whole_pool_never_lands_by_pool() -> None:
    held = {"": "tosend:1", "a": "tosend:2"}
    there = target(None, dst="backup")
    branch = plan.plan_branch(source(held, root="tank"), there, resource(), WHO, "tosend")
    assert sends(branch, held, root="tank") == ["send -R tank@tosend | receive backup"]


def test_a_first_sync_creates_the_missing_parents() -> None:
    branch = branch_of({"": "tosend:1"}, target(None, missing_parents=("p", "p/q")))
    assert words(branch.before) == ["create -o canmount=off p", "create -o canmount=off p/q"]


def test_a_first_sync_leaves_older_history_behind() -> None:
    held = {"": "daily:1! tosend:2", "a": "tosend:3"}
    assert sends(branch_of(held, target(None)), held) == [
        "send -p src@tosend | receive dst",
        "send -p src/a@tosend | receive dst/a",
    ]


def test_a_first_sync_with_intermediary_takes_the_history_along() -> None:
    held = {"": "daily:1! tosend:2", "a": "tosend:3"}
    assert sends(branch_of(held, target(None), intermediary=True), held) == [
        "send -R src@tosend | receive dst",
    ]


def test_a_first_sync_that_is_not_recursive_sends_the_root_alone() -> None:
    held = {"": "tosend:1"}
    assert sends(branch_of(held, target(None), recursive=False), held) == [
        "send -p src@tosend | receive dst",
    ]


def test_a_first_sync_whose_root_fails_by_itself_sends_nothing_else() -> None:
    held = source({"": "tosend:1", "a": "tosend:2"})
    skip = frozenset({""})
    branch = plan.plan_branch(
        held, target(None), resource(), WHO, "tosend", one_by_one=True, skip=skip
    )
    assert branch.streams == ()


def test_a_dry_first_sync_plans_before_b_is_taken() -> None:
    branch = branch_of({"": "", "a": ""}, target(None))
    assert (branch.mode, len(branch.streams)) == ("full", 1)


# --- A -> B -----------------------------------------------------------------------------------

UNIFORM = {"": "sent:1 tosend:11", "a": "sent:2 tosend:12"}
AT_A = {"": "sent:1", "a": "sent:2"}


def test_a_uniform_tree_is_one_incremental_stream() -> None:
    branch = branch_of(UNIFORM, target(AT_A))
    assert (branch.mode, sends(branch, UNIFORM)) == (
        "incremental",
        ["send -R -i src@sent src@tosend | receive dst"],
    )


def test_intermediary_sends_what_lies_between() -> None:
    branch = branch_of(UNIFORM, target(AT_A), intermediary=True)
    assert sends(branch, UNIFORM) == ["send -R -I src@sent src@tosend | receive dst"]


def test_nothing_is_sent_to_a_target_that_has_it_all() -> None:
    branch = branch_of(UNIFORM, target({"": "x:11", "a": "y:12"}))
    assert (branch.mode, branch.streams, branch.before) == ("none", (), ())


def test_a_child_that_is_new_on_the_source_travels_in_the_stream() -> None:
    held = {**UNIFORM, "new": "tosend:13 born=9"}
    assert sends(branch_of(held, target(AT_A)), held) == [
        "send -R -i src@sent src@tosend | receive dst",
    ]


def test_a_child_that_was_renamed_travels_in_the_stream() -> None:
    held = {"": UNIFORM[""], "b": UNIFORM["a"]}
    assert sends(branch_of(held, target(AT_A)), held) == [
        "send -R -i src@sent src@tosend | receive dst",
    ]


def test_a_half_received_tree_gets_only_what_lacks() -> None:
    branch = branch_of(UNIFORM, target({"": "sent:1 tosend:11", "a": "sent:2"}))
    assert sends(branch, UNIFORM) == ["send -p -i src/a@sent src/a@tosend | receive dst/a"]


def test_a_lost_child_gets_a_full_stream_of_its_own() -> None:
    branch = branch_of(UNIFORM, target({"": "sent:1"}))
    assert sends(branch, UNIFORM) == [
        "send -p -i src@sent src@tosend | receive dst",
        "send -p src/a@tosend | receive dst/a",
    ]


def test_a_lagging_child_gets_a_stream_from_its_own_base() -> None:
    held = {"": "sent:1 tosend:11", "a": f"{kept(2)}:2 sent:3 tosend:12"}
    branch = branch_of(held, target({"": "sent:1", "a": "sent:2"}))
    assert sends(branch, held) == [
        "send -p -i src@sent src@tosend | receive dst",
        f"send -p -i src/a@{kept(2)} src/a@tosend | receive dst/a",
    ]


def test_a_lagging_tree_catches_up_from_thenewest_common_snapshot() -> None:
    held = {"": f"{kept(1)}:1 sent:2 tosend.osol2:11", "a": f"{kept(1)}:5 sent:6 tosend.osol2:12"}
    branch = branch_of(held, target({"": "sent:1", "a": "sent:5"}), goal="tosend.osol2")
    assert sends(branch, held) == [f"send -R -i src@{kept(1)} src@tosend.osol2 | receive dst"]


def test_a_broken_child_is_left_alone_and_the_others_go_on() -> None:
    branch = branch_of(UNIFORM, target({"": "sent:1", "a": "sent:9"}))
    assert (branch.broken, sends(branch, UNIFORM)) == (
        ("a",),
        ["send -p -i src@sent src@tosend | receive dst"],
    )


def test_a_resource_that_is_not_recursive_sends_the_root_alone() -> None:
    held = {"": UNIFORM[""]}
    branch = branch_of(held, target({"": "sent:1"}), recursive=False)
    assert sends(branch, held) == ["send -p -i src@sent src@tosend | receive dst"]


def test_one_by_one_sends_a_stream_per_dataset() -> None:
    branch = branch_of(UNIFORM, target(AT_A), one_by_one=True, intermediary=True)
    assert sends(branch, UNIFORM) == [
        "send -p -I src@sent src@tosend | receive dst",
        "send -p -I src/a@sent src/a@tosend | receive dst/a",
    ]


def test_a_single_stream_goes_to_where_the_dataset_still_is() -> None:
    held = {"": UNIFORM[""], "new": UNIFORM["a"]}
    branch = branch_of(held, target({"": "sent:1", "old": "sent:2"}), one_by_one=True)
    assert sends(branch, held)[1] == "send -p -i src/new@sent src/new@tosend | receive dst/old"


def test_a_lost_grandchild_goes_below_where_its_parent_still_is() -> None:
    held = {"": UNIFORM[""], "new": UNIFORM["a"], "new/x": "sent:3 tosend:13"}
    branch = branch_of(held, target({"": "sent:1", "old": "sent:2"}))
    assert sends(branch, held)[2] == "send -p src/new/x@tosend | receive dst/old/x"


# --- what -I brings ---------------------------------------------------------------------------

HISTORY = {"": "sent:1 daily:5! tosend:11"}


def test_an_own_name_in_the_way_of_the_history_is_moved_aside() -> None:
    held = {"": f"{kept(1)}:1 sent:5 tosend:11"}
    branch = branch_of(held, target({"": "sent:1"}), intermediary=True)
    assert words(branch.before) == [f"rename dst@sent dst@{kept(1)}"]


def test_a_rotation_that_was_cut_is_finished_before_anything_else_is_planned() -> None:
    held = {"": f"{kept(1)}:1 sent:5 tosend:11"}
    branch = branch_of(held, target({"": f"{kept(1)}:1 sent:0"}), intermediary=True)
    assert (words(branch.before), branch.streams, branch.again) == (
        ["destroy -r dst@sent", f"rename -r dst@{kept(1)} dst@sent"],
        (),
        True,
    )


@pytest.mark.parametrize("there", ["tosend:1", "tosend.osol2:1", "sent:0 tosend:1"])
def test_an_intent_of_an_earlier_run_is_renamed_before_the_next_one_comes(there: str) -> None:
    branch = branch_of(ALONE, target({"": there}))
    assert (branch.again, words(branch.before)[-1].endswith("dst@sent")) == (True, True)


def test_the_cut_rotation_of_an_unmarked_dst_is_not_finished_by_name() -> None:
    assert not branch_of(ALONE, target({"": "tosend:1"}, mark=None)).again


def test_a_foreign_name_in_the_way_of_the_history_is_refused_by_name() -> None:
    with pytest.raises(Refused, match=f"{DST}@daily"):
        branch_of(HISTORY, target({"": "sent:1 daily:4!"}), intermediary=True)


def test_a_name_in_the_way_matters_only_with_intermediary() -> None:
    assert branch_of(HISTORY, target({"": "sent:1 daily:4!"})).before == ()


def test_the_same_snapshot_is_not_in_its_own_way() -> None:
    assert branch_of(HISTORY, target({"": "sent:1 daily:5!"}), intermediary=True).before == ()


# --- strangers on the target ------------------------------------------------------------------


def test_a_foreign_dataset_where_a_child_has_to_go_is_refused() -> None:
    with pytest.raises(Refused, match=f"{DST}/a on osol2 is not a replica"):
        branch_of(UNIFORM, target({"": "sent:1", "a": "x:9!"}))


def test_a_foreign_dataset_under_the_name_of_a_new_child_is_refused() -> None:
    held = {"": "sent:1 tosend:11", "a": "tosend:12 born=9"}
    with pytest.raises(Refused, match=f"{DST}/a on osol2 is not a replica"):
        branch_of(held, target({"": "sent:1", "a": "x:9!"}))


def test_an_empty_child_younger_than_b_may_be_a_receive_under_way() -> None:
    with pytest.raises(CommandFailed):
        branch_of(UNIFORM, target({"": "sent:1", "a": "born=20"}))


def test_a_foreign_dataset_elsewhere_is_nobodys_business() -> None:
    branch = branch_of(UNIFORM, target({**AT_A, "theirs": "x:9!"}))
    assert (branch.before, branch.warnings) == ((), ())


def test_a_child_that_was_created_anew_moves_the_old_copy_aside() -> None:
    held = {"": "sent:1 tosend:11", "a": "tosend:12 born=9"}
    branch = branch_of(held, target(AT_A))
    assert words(branch.before) == [
        f"rename dst/a@sent dst/a@{kept(2)}",
        "rename dst/a dst/a.gone-2",
    ]


def test_a_child_that_was_created_anew_travels_in_the_stream() -> None:
    held = {"": "sent:1 tosend:11", "a": "tosend:12 born=9"}
    assert sends(branch_of(held, target(AT_A)), held) == [
        "send -R -i src@sent src@tosend | receive dst",
    ]


def test_nothing_of_an_unmarked_dst_is_moved_aside() -> None:
    held = {"": "sent:1 tosend:11", "a": "tosend:12 born=9"}
    with pytest.raises(Refused, match="its name is needed"):
        branch_of(held, target(AT_A, mark=None))


def test_an_old_copy_with_a_foreign_dataset_below_is_refused() -> None:
    held = {"": "sent:1 tosend:11", "a": "tosend:12 born=9"}
    with pytest.raises(Refused, match="its name is needed"):
        branch_of(held, target({**AT_A, "a/theirs": "x:9!"}))


# --- children that are gone on the source -----------------------------------------------------

ALONE = {"": "sent:1 tosend:11"}
SEEN = {"": "sent:1", "a": f"{kept(2)}:2"}


def test_a_gone_child_is_left_alone_when_it_is_first_seen() -> None:
    assert branch_of(ALONE, target(AT_A)).before == ()


def test_a_gone_child_is_destroyed_when_it_is_seen_again() -> None:
    branch = branch_of(ALONE, target(SEEN))
    assert words(branch.before) == ["destroy -r dst/a"]


def test_a_child_that_came_from_the_source_before_the_takeover_is_no_gone_child() -> None:
    branch = branch_of(ALONE, target(SEEN), since=EPOCH + 60 * 2)
    assert (branch.before, f"zfs destroy -r {DST}/a" in branch.warnings[0]) == ((), True)
    branch = branch_of(ALONE, target(SEEN), since=EPOCH + 60 * 2 - 1)
    assert words(branch.before) == ["destroy -r dst/a"]


def test_what_was_written_to_a_gone_child_is_told() -> None:
    branch = branch_of(ALONE, target({**SEEN, "a": f"{SEEN['a']} written=77"}))
    assert "77 bytes written there are lost" in branch.before[0].why


def test_gone_children_go_with_what_is_below_them_in_one_command() -> None:
    branch = branch_of(ALONE, target({**SEEN, "a/b": f"{kept(3)}:3"}))
    assert words(branch.before) == ["destroy -r dst/a"]


def test_a_gone_child_stays_while_one_below_it_was_not_seen_before() -> None:
    assert branch_of(ALONE, target({**SEEN, "a/b": "sent:3"})).before == ()


def test_a_gone_child_stays_while_one_below_it_is_still_sent() -> None:
    held = {**ALONE, "moved": "sent:3 tosend:13"}
    assert branch_of(held, target({**SEEN, "a/b": "sent:3"})).before == ()


def test_a_gone_child_with_a_foreign_snapshot_is_kept_with_a_warning() -> None:
    branch = branch_of(ALONE, target({**SEEN, "a": f"{SEEN['a']} theirs:9!"}))
    assert (branch.before, f"{DST}/a@theirs" in branch.warnings[0]) == ((), True)


def test_a_gone_child_with_a_foreign_dataset_below_is_kept_with_a_warning() -> None:
    branch = branch_of(ALONE, target({**SEEN, "a/theirs": "x:9!"}))
    assert (branch.before, f"{DST}/a/theirs" in branch.warnings[0]) == ((), True)


def test_keep_keeps_a_gone_child() -> None:
    assert branch_of(ALONE, target(SEEN), on_child_gone="keep").before == ()


def test_stop_refuses_at_a_gone_child_and_names_it() -> None:
    with pytest.raises(Refused, match=f"{DST}/a; on_child_gone = stop"):
        branch_of(ALONE, target(AT_A), on_child_gone="stop")


def test_nothing_of_an_unmarked_dst_is_destroyed() -> None:
    assert branch_of(ALONE, target(SEEN, mark=None)).before == ()


def test_without_recursion_children_are_outside_the_tree() -> None:
    branch = branch_of(ALONE, target(SEEN), recursive=False, on_child_gone="stop")
    assert branch.before == ()


def test_a_gone_child_goes_before_a_new_one_takes_its_name() -> None:
    held = {"": "sent:1 tosend:11", "a": "tosend:12 born=9"}
    assert words(branch_of(held, target(SEEN)).before) == ["destroy -r dst/a"]


# --- a replica that was written to ------------------------------------------------------------


def test_a_written_replica_is_rolled_back_to_its_base_and_the_bytes_are_told() -> None:
    branch = branch_of(UNIFORM, target({**AT_A, "a": "sent:2 written=4096"}))
    assert (words(branch.before), branch.before[0].why) == (
        ["rollback dst/a@sent"],
        f"discarding what was written to {DST}/a: 4096 bytes",
    )


def test_a_replica_that_has_b_is_not_rolled_back() -> None:
    branch = branch_of(UNIFORM, target({"": "x:11 written=9", "a": "y:12"}))
    assert branch.before == ()


@pytest.mark.parametrize("written", ["", "written=0"])
def test_an_unwritten_replica_is_not_rolled_back(written: str) -> None:
    assert branch_of(UNIFORM, target({**AT_A, "a": f"sent:2 {written}"})).before == ()


def test_refuse_refuses_a_written_replica_and_names_the_bytes() -> None:
    with pytest.raises(Refused, match=r"4096 bytes.*on_divergence = refuse"):
        branch_of(UNIFORM, target({**AT_A, "": "sent:1 written=4096"}), on_divergence="refuse")


def test_an_unmarked_dst_is_never_rolled_back() -> None:
    with pytest.raises(Refused, match="zfs_sync:replica is not set"):
        branch_of(UNIFORM, target({**AT_A, "": "sent:1 written=4096"}, mark=None))


def test_a_broken_child_is_not_rolled_back() -> None:
    there = target({"": "sent:1", "a": "sent:9 written=5"})
    assert branch_of(UNIFORM, there).before == ()


def test_discard_goes_back_to_the_base_under_the_targets_name_of_it() -> None:
    there = target({"": "by_hand:1"})
    (stand,) = pairing.stands(tree(SRC, ALONE), tree(DST, {"": "by_hand:1"}), "tosend")
    change = plan.discard(there, resource(), stand, "changed")
    assert (words([change]), change.why.endswith("changed")) == (["rollback dst@by_hand"], True)


def test_discard_refuses_without_a_base() -> None:
    (stand,) = pairing.stands(tree(SRC, ALONE), tree(DST, {"": "x:9"}), "tosend")
    with pytest.raises(Refused, match="no common snapshot"):
        plan.discard(target({"": "x:9"}), resource(), stand, "changed")


# --- where the tree has changed its shape ------------------------------------------------------


def test_somebodys_copy_of_the_base_keeps_the_stream_of_the_tree_away() -> None:
    branch = branch_of(UNIFORM, target({**AT_A, "clone": "theirs:2!"}))
    assert sends(branch, UNIFORM) == [
        "send -p -i src@sent src@tosend | receive dst",
        "send -p -i src/a@sent src/a@tosend | receive dst/a",
    ]


def test_a_child_below_one_that_was_born_after_b_goes_below_the_nearest_parent() -> None:
    held = {"": UNIFORM[""], "late": "born=20", "late/a": "tosend:12 born=9"}
    assert sends(branch_of(held, target({"": "sent:1"})), held) == [
        "send -p -i src@sent src@tosend | receive dst",
        "send -p src/late/a@tosend | receive dst/a",
    ]


def test_a_place_that_is_taken_is_not_taken_again() -> None:
    held = {**UNIFORM, "late": "born=20", "late/a": "tosend:13 born=9"}
    branch = branch_of(held, target(AT_A))
    assert sends(branch, held)[-1] == "send -p src/late/a@tosend | receive dst/a.13"


def test_what_is_skipped_is_left_out_with_what_is_below_it() -> None:
    held = {**UNIFORM, "a/b": "sent:3 tosend:13"}
    there = target({**AT_A, "a/b": "sent:3"})
    branch = plan.plan_branch(
        source(held), there, resource(), WHO, "tosend", one_by_one=True, skip=frozenset({"a"})
    )
    assert sends(branch, held) == ["send -p -i src@sent src@tosend | receive dst"]


def test_a_child_whose_base_the_source_lost_is_broken() -> None:
    held = {"": UNIFORM[""], "a": f"{kept(2)}:2 tosend:12"}
    branch = branch_of(held, target({"": "sent:1", "a": f"{kept(2)}:2 sent:3"}))
    assert branch.broken == ("a",)


# --- the target's rotation --------------------------------------------------------------------


def rotation(
    held: Mapping[str, str], there: Mapping[str, str], **options: object
) -> tuple[list[str], list[str]]:
    """Return what is marked and the commands."""
    found = rotating.rotate_target(
        tree(SRC, held), target(there), "tosend", resource(**options), WHO
    )
    return [_short([name]) for name in found.marks], words(found.changes)


RECEIVED = {"": "sent:1 tosend:11", "a": "sent:2 tosend:12"}


def test_a_rotation_drops_a_and_renames_b_as_a_whole() -> None:
    assert rotation(UNIFORM, RECEIVED) == (
        [],
        ["destroy -r dst@sent", "rename -r dst@tosend dst@sent"],
    )


def test_a_rotation_that_was_cut_between_its_commands_goes_on() -> None:
    there = {"": "tosend:11", "a": "tosend:12"}
    assert rotation(UNIFORM, there) == ([], ["rename -r dst@tosend dst@sent"])


def test_a_rotation_that_was_cut_within_a_command_goes_on_one_by_one() -> None:
    there = {"": "tosend:11", "a": "sent:2 tosend:12"}
    assert rotation(UNIFORM, there) == (
        [],
        ["destroy dst/a@sent", "rename -r dst@tosend dst@sent"],
    )


def test_a_rotated_target_gets_no_commands() -> None:
    assert rotation(UNIFORM, {"": "sent:11", "a": "sent:12"}) == ([], [])


def test_a_half_renamed_target_gets_the_other_half() -> None:
    there = {"": "sent:11", "a": "tosend:12"}
    assert rotation(UNIFORM, there) == ([], ["rename dst/a@tosend dst/a@sent"])


def test_a_rotation_spares_a_foreign_childs_own_sent() -> None:
    assert rotation(UNIFORM, {**RECEIVED, "theirs": "sent:9!"}) == (
        [],
        [
            "destroy dst@sent",
            "destroy dst/a@sent",
            "rename -r dst@tosend dst@sent",
        ],
    )


def test_a_gone_childs_names_are_put_aside_before_the_rotation() -> None:
    assert rotation(ALONE, RECEIVED | {"a": "sent:2"}) == (
        [],
        [
            f"rename dst/a@sent dst/a@{kept(2)}",
            "destroy -r dst@sent",
            "rename -r dst@tosend dst@sent",
        ],
    )


def test_a_gone_child_that_was_put_aside_is_not_touched_again() -> None:
    there = {"": "sent:1 tosend:11", "a": f"{kept(2)}:2"}
    assert rotation(ALONE, there)[1] == ["destroy -r dst@sent", "rename -r dst@tosend dst@sent"]


def test_a_broken_child_keeps_its_names() -> None:
    assert rotation(UNIFORM, {**RECEIVED, "a": "sent:9"})[1] == [
        "destroy dst@sent",
        "rename -r dst@tosend dst@sent",
    ]


def test_kept_names_of_older_snapshots_are_removed() -> None:
    there = {"": f"{kept(1)}:1 tosend:11", "a": f"{kept(1)}:2 tosend:12"}
    assert rotation(UNIFORM, there)[1] == [
        f"destroy -r dst@{kept(1)}",
        "rename -r dst@tosend dst@sent",
    ]


def test_an_own_name_with_a_strange_guid_is_removed_if_it_is_marked() -> None:
    there = {"": "sent:7 tosend:11", "a": "tosend:12"}
    assert rotation(UNIFORM, there)[1] == ["destroy -r dst@sent", "rename -r dst@tosend dst@sent"]


def test_an_unmarked_snapshot_of_a_strange_guid_is_never_destroyed() -> None:
    there = {"": f"{kept(7)}:7! tosend:11", "a": "tosend:12"}
    assert rotation(UNIFORM, there)[1] == ["rename -r dst@tosend dst@sent"]


def test_a_name_that_is_not_the_agents_is_never_destroyed() -> None:
    there = {"": "daily:1 tosend:11", "a": "tosend:12"}
    assert rotation(UNIFORM, there)[1] == ["rename -r dst@tosend dst@sent"]


def test_received_snapshots_without_a_mark_get_one() -> None:
    assert rotation(UNIFORM, {"": "tosend:11!", "a": "tosend:12!"})[0] == [
        "dst@tosend",
        "dst/a@tosend",
    ]


def test_what_a_cut_receive_renamed_is_removed_if_it_is_ours() -> None:
    there = {"": "recv-17-1:1 tosend:11", "a": "recv-17-2:2! tosend:12"}
    assert rotation(UNIFORM, there)[1] == [
        "destroy -r dst@recv-17-1",
        "rename -r dst@tosend dst@sent",
    ]


def test_b_under_a_foreign_name_stays_there() -> None:
    assert rotation({"": "sent:1 tosend:2"}, {"": "daily:2"})[1] == []


def test_b_under_two_own_names_in_two_datasets_is_renamed_in_both() -> None:
    assert rotation(UNIFORM, {"": "tosend:11", "a": "tosend.osol2:12"})[1] == [
        "rename -r dst@tosend dst@sent",
        "rename dst/a@tosend.osol2 dst/a@sent",
    ]


def test_a_rotation_without_recursion_leaves_children_alone() -> None:
    held = {"": UNIFORM[""]}
    assert rotation(held, {"": RECEIVED[""]}, recursive=False)[1] == [
        "destroy dst@sent",
        "rename dst@tosend dst@sent",
    ]


def test_a_rotation_with_a_prefix_leaves_the_plain_names_alone() -> None:
    held = tree(SRC, {"": "two.sent:1 two.tosend:2"})
    there = target({"": "sent:8 two.sent:1 two.tosend:2"})
    found = rotating.rotate_target(held, there, "two.tosend", resource(snap_prefix="two."), WHO)
    assert words(found.changes) == [
        "destroy -r dst@two.sent",
        "rename -r dst@two.tosend dst@two.sent",
    ]


# --- who may still need what ------------------------------------------------------------------

PROVEN = Knowledge(proven=True, listing=None, may_hold_goal=False)
UNREACHABLE = Knowledge(proven=False, listing=None, may_hold_goal=False)
LOST_ANSWER = Knowledge(proven=False, listing=None, may_hold_goal=True)
Needs = dict[str, frozenset[str]]


def listed(view: TargetView) -> Knowledge:
    return Knowledge(proven=False, listing=view, may_hold_goal=False)


def needs(
    held: SourceView, *, leftover: bool = False, rotate: bool = True, **known: Knowledge
) -> dict[str, list[str]]:
    found = rotating.needs(held, NAMES, known, leftover=leftover, rotate=rotate)
    return {name: sorted(nodes) for name, nodes in found.items()}


IN_SYNC = source(UNIFORM, targets="osol2 osol3")


def test_nobody_needs_anything_where_all_are_proven() -> None:
    assert needs(IN_SYNC, osol2=PROVEN, osol3=PROVEN) == {}


def test_a_proven_target_needs_nothing_where_a_dataset_without_b_keeps_its_a() -> None:
    held = source({"": "sent:1 tosend:2", "a": "sent:3"}, targets="osol2")
    there = Knowledge(True, target({"": "sent:1 tosend:2", "a": "sent:3"}), may_hold_goal=False)
    assert needs(held, osol2=there) == {}


def test_a_proven_target_needs_all_it_holds_where_one_dataset_has_something_older() -> None:
    words = {"": "sent:1 tosend:2", "a": "sent:3", "b": f"{kept(1)}:4"}
    held = source(words, targets="osol2")
    there = Knowledge(True, target(words), may_hold_goal=False)
    assert needs(held, osol2=there).keys() == {"sent", "tosend", kept(1)}


def test_an_unreachable_target_needs_a() -> None:
    assert needs(IN_SYNC, osol2=PROVEN, osol3=UNREACHABLE) == {"sent": ["osol3"]}


def test_a_target_whose_answer_was_lost_needs_a_and_b() -> None:
    assert needs(IN_SYNC, osol2=PROVEN, osol3=LOST_ANSWER) == {
        "sent": ["osol3"],
        "tosend": ["osol3"],
    }


def test_a_leftover_b_may_be_held_by_whoever_does_not_answer() -> None:
    assert needs(IN_SYNC, leftover=True, osol2=PROVEN, osol3=UNREACHABLE) == {
        "sent": ["osol3"],
        "tosend": ["osol3"],
    }


def test_a_target_that_was_listed_needs_what_it_holds() -> None:
    held = source({"": f"{kept(1)}:1 sent:2 tosend:3"}, targets="osol2 osol3")
    assert needs(held, osol2=PROVEN, osol3=listed(target({"": "sent:1"}))) == {kept(1): ["osol3"]}


def test_each_dataset_of_a_listed_target_counts() -> None:
    held = source({"": "sent:2 tosend:3", "a": f"{kept(1)}:1 sent:4 tosend:5"}, targets="osol3")
    there = target({"": "sent:2", "a": "sent:1"})
    assert needs(held, osol2=PROVEN, osol3=listed(there)) == {"sent": ["osol3"], kept(1): ["osol3"]}


def test_a_target_unreachable_for_several_runs_needs_its_kept_base_alone() -> None:
    held = source(
        {"": f"{kept(1)}:1 sent:2 tosend:3"}, retained=f"{kept(1)}=osol3", targets="osol2 osol3"
    )
    assert needs(held, osol2=PROVEN, osol3=UNREACHABLE) == {kept(1): ["osol3"]}


def test_an_entry_whose_snapshot_does_not_exist_is_a() -> None:
    held = source({"": "sent:2 tosend:3"}, retained=f"{kept(2)}=osol3", targets="osol2 osol3")
    assert needs(held, osol2=PROVEN, osol3=UNREACHABLE) == {"sent": ["osol3"]}


def test_a_target_that_never_held_anything_needs_nothing() -> None:
    assert needs(source(UNIFORM, targets="osol2"), osol2=PROVEN, osol3=UNREACHABLE) == {}


def test_a_new_target_that_was_listed_as_absent_needs_nothing() -> None:
    held = source(UNIFORM, targets="osol2")
    new = listed(target(None, node="osol3"))
    assert needs(held, osol2=PROVEN, osol3=new) == {}


def test_a_vanished_replica_still_needs_a() -> None:
    gone = listed(target(None, node="osol3"))
    assert needs(IN_SYNC, osol2=PROVEN, osol3=gone) == {"sent": ["osol3"]}


def test_a_node_that_left_the_configuration_needs_nothing() -> None:
    held = source({"": f"{kept(1)}:1 sent:2 tosend:3"}, retained=f"{kept(1)}=gone", targets="osol2")
    assert needs(held, osol2=PROVEN) == {}


def test_an_unclear_listing_drops_no_kept_base() -> None:
    held = source(
        {"": f"{kept(1)}:1 tosend:3", "a": f"{kept(1)}:5 tosend:6"},
        retained=f"{kept(1)}=osol2",
        targets="osol2",
    )
    there = target({"": "", "a": "tosend:6"})
    assert needs(held, osol2=listed(there)) == {kept(1): ["osol2"], "tosend": ["osol2"]}


def test_a_complete_listing_without_a_base_needs_none() -> None:
    held = source({"": f"{kept(1)}:1 tosend:3"}, retained=f"{kept(1)}=osol2", targets="osol2")
    assert needs(held, osol2=listed(target({"": "theirs:9! complete"}))) == {}


def test_a_joining_target_keeps_both_of_its_entries() -> None:
    held = source(
        {"": f"{kept(1)}:1 sent:2 tosend:3 tosend.osol3:4"},
        retained=f"{kept(1)}=osol3;tosend.osol3=osol3",
        targets="osol2 osol3",
    )
    assert needs(held, osol2=PROVEN, osol3=UNREACHABLE) == {
        kept(1): ["osol3"],
        "tosend.osol3": ["osol3"],
    }


def test_without_rotation_a_and_b_need_no_entry() -> None:
    assert needs(IN_SYNC, rotate=False, osol2=LOST_ANSWER, osol3=UNREACHABLE) == {}


def test_without_rotation_an_entry_of_a_stays() -> None:
    held = source({"": "sent:2 tosend:3"}, retained="sent=osol3", targets="osol2 osol3")
    assert needs(held, rotate=False, osol2=UNREACHABLE, osol3=UNREACHABLE) == {"sent": ["osol3"]}


# --- the source's rotation --------------------------------------------------------------------


def finish(
    held: SourceView, needed: Mapping[str, str], *, recursive: bool = True, rotate: bool = True
) -> tuple[dict[str, str], list[str], list[str], dict[str, str]]:
    """Return the property meanwhile, the changes, what is dropped, the property afterwards."""
    wanted = {name: frozenset(nodes.split()) for name, nodes in needed.items()}
    done = rotating.finish_source(held, NAMES, wanted, recursive=recursive, rotate=rotate)
    return (
        {name: " ".join(sorted(nodes)) for name, nodes in done.retained.items()},
        words(done.changes),
        words(done.dropped),
        {name: " ".join(sorted(nodes)) for name, nodes in done.cleaned.items()},
    )


def test_a_source_whose_targets_all_have_b_drops_a() -> None:
    assert finish(source(UNIFORM), {}) == (
        {},
        ["destroy -r src@sent", "rename -r src@tosend src@sent"],
        [],
        {},
    )


def test_a_source_keeps_a_for_whoever_needs_it() -> None:
    assert finish(source(UNIFORM), {"sent": "osol3"}) == (
        {kept(1): "osol3"},
        [f"rename -r src@sent src@{kept(1)}", "rename -r src@tosend src@sent"],
        [],
        {kept(1): "osol3"},
    )


def test_b_that_a_target_may_hold_is_named_under_its_new_name() -> None:
    retained, _, _, cleaned = finish(source(UNIFORM), {"sent": "osol3", "tosend": "osol3"})
    assert retained == cleaned == {kept(1): "osol3", "sent": "osol3"}


def test_a_half_destroyed_a_is_dropped_where_it_still_is() -> None:
    held = source({"": "tosend:11", "a": "sent:2 tosend:12"})
    assert finish(held, {})[1] == ["destroy src/a@sent", "rename -r src@tosend src@sent"]


def test_a_stays_sent_where_no_b_takes_its_place() -> None:
    held = source({"": "sent:1 tosend:11", "a": "sent:2", "b": "sent:3 tosend:13"})
    assert finish(held, {}) == (
        {},
        ["destroy src@sent", "destroy src/b@sent", "rename -r src@tosend src@sent"],
        [],
        {},
    )


def test_whoever_needs_a_is_named_for_what_is_kept_and_for_what_stays_sent() -> None:
    held = source({"": "sent:1 tosend:11", "a": "sent:2", "b": "sent:3 tosend:13"})
    retained, changes, _, cleaned = finish(held, {"sent": "osol3"})
    assert retained == cleaned == {kept(1): "osol3", "sent": "osol3"}
    assert changes == [
        f"rename src@sent src@{kept(1)}",
        f"rename src/b@sent src/b@{kept(1)}",
        "rename -r src@tosend src@sent",
    ]


def test_what_the_property_says_of_a_dropped_a_is_said_of_b() -> None:
    held = source({"": "tosend:11", "a": "tosend:12"}, retained="sent=osol3")
    assert finish(held, {"sent": "osol3"})[3] == {"sent": "osol3"}


def test_a_kept_base_that_nobody_needs_any_more_is_dropped_last() -> None:
    held = source({"": f"{kept(1)}:1 sent:2 tosend:3"}, retained=f"{kept(1)}=osol3")
    assert finish(held, {}) == (
        {kept(1): ""},
        ["destroy -r src@sent", "rename -r src@tosend src@sent"],
        [f"destroy -r src@{kept(1)}"],
        {},
    )


def test_a_kept_base_that_somebody_needs_stays() -> None:
    held = source({"": f"{kept(1)}:1 sent:2 tosend:3"}, retained=f"{kept(1)}=osol3")
    assert finish(held, {kept(1): "osol3"})[2:] == ([], {kept(1): "osol3"})


def test_the_property_names_a_snapshot_as_long_as_it_exists() -> None:
    held = source({"": f"{kept(1)}:1 sent:2 tosend:3"}, retained=f"{kept(1)}=osol3")
    assert kept(1) in finish(held, {})[0]


def test_an_entry_without_a_snapshot_is_dropped_without_a_command() -> None:
    held = source({"": "sent:2 tosend:3"}, retained=f"{kept(1)}=gone")
    assert finish(held, {})[2:] == ([], {})


def test_a_node_that_left_leaves_the_others_entry() -> None:
    held = source({"": f"{kept(1)}:1 sent:2 tosend:3"}, retained=f"{kept(1)}=gone,osol3")
    assert finish(held, {kept(1): "osol3"})[3] == {kept(1): "osol3"}


def test_a_joining_snapshot_that_is_still_needed_stays() -> None:
    held = source({"": "sent:2 tosend:3 tosend.osol3:4"}, retained="tosend.osol3=osol3")
    assert finish(held, {"tosend.osol3": "osol3"})[2:] == ([], {"tosend.osol3": "osol3"})


def test_a_joining_snapshot_of_a_node_that_left_is_dropped() -> None:
    held = source({"": "sent:2 tosend:3 tosend.gone:4"}, retained="tosend.gone=gone")
    assert finish(held, {})[2:] == (["destroy -r src@tosend.gone"], {})


def test_without_rotation_only_what_is_not_needed_goes() -> None:
    held = source({"": f"{kept(1)}:1 sent:2 tosend:3"}, retained=f"{kept(1)}=gone")
    assert finish(held, {}, rotate=False)[1:] == ([], [f"destroy -r src@{kept(1)}"], {})


def test_a_source_without_recursion_rotates_the_root_alone() -> None:
    assert finish(source({"": UNIFORM[""]}), {}, recursive=False)[1] == [
        "destroy src@sent",
        "rename src@tosend src@sent",
    ]


def test_a_child_born_after_b_does_not_hinder_the_rotation() -> None:
    held = source({**UNIFORM, "late": "born=20"})
    assert finish(held, {})[1] == ["destroy -r src@sent", "rename -r src@tosend src@sent"]


def test_a_kept_name_is_that_of_the_topmost_holder() -> None:
    here = tree(SRC, {"": "tosend:9", "b": "sent:4", "a": "sent:3"})
    assert rotating.kept_name(here, NAMES, {"a", "b"}, "sent") == kept(3)


def test_an_own_snapshot_is_renamed_wherever_it_is() -> None:
    here = tree(SRC, {"": "tosend.osol2:1", "a": "tosend.osol2:2", "b": ""})
    steps = rotating.rename_own(here, "tosend.osol2", kept(1), recursive=True)
    assert words(steps) == [f"rename -r src@tosend.osol2 src@{kept(1)}"]


def test_an_own_snapshot_that_only_children_have_is_renamed_one_by_one() -> None:
    here = tree(SRC, {"": "", "a": "tosend.osol2:2", "b": "tosend.osol2:3"})
    steps = rotating.rename_own(here, "tosend.osol2", kept(1), recursive=True)
    assert len(steps) == 2


def test_the_property_keeps_what_another_resource_has_in_it() -> None:
    now = {"two.sent.20100619T122100Z-1": frozenset({"osol9"}), "sent": frozenset({"gone"})}
    change = rotating.retain(SRC, NAMES, {"sent": frozenset({"osol3"})}, now)
    assert words([change]) == [
        "set zfs_sync:retained=sent=osol3;two.sent.20100619T122100Z-1=osol9 src"
    ]


def test_an_empty_property_is_taken_away() -> None:
    assert words([rotating.retain(SRC, NAMES, {}, {})]) == ["inherit zfs_sync:retained src"]


def test_a_child_that_lost_the_goal_is_left_behind_and_one_born_later_is_not() -> None:
    here = tree(SRC, {"": "tosend:5", "a": "sent:1 born=1", "b": "born=6", "c": "tosend:5 born=2"})
    assert pairing.left_behind(here, "tosend") == ["a"]
