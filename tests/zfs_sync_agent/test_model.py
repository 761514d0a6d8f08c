"""The agent's own names are known again, and nobody else's are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfs_sync_agent.model import (
    Dataset,
    Names,
    Packed,
    Partial,
    Snapshot,
    format_nodes,
    parse_nodes,
)

from .notation import EPOCH, tree

PREFIXES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,10}", fullmatch=True) | st.just("")
GUIDS = st.integers(1, 2**64 - 1).map(str)
EPOCHS = st.integers(0, 2**32)
NODES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,10}[A-Za-z0-9])?", fullmatch=True)
SNAPSHOTS = st.builds(Snapshot, st.just("any"), GUIDS, EPOCHS)
KEYS = st.from_regex(r"[A-Za-z0-9_.:/#-]{1,20}", fullmatch=True)


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("", ["sent", "tosend", "tosend.osol2"]),
        ("sync.2.", ["sync.2.sent", "sync.2.tosend", "sync.2.tosend.osol2"]),
    ],
)
def test_own_names_begin_with_the_prefix(prefix: str, names: list[str]) -> None:
    own = Names(prefix)
    assert [own.sent, own.tosend, own.tosend_for("osol2")] == names


def test_a_kept_name_has_the_date_in_utc_and_the_end_of_the_guid() -> None:
    snapshot = Snapshot("sent", "11268711894893570760", 1276957805)
    assert Names("sync.2.").kept(snapshot) == "sync.2.sent.20100619T143005Z-570760"


@given(PREFIXES, SNAPSHOTS, NODES)
def test_every_own_name_is_known_again(prefix: str, snapshot: Snapshot, node: str) -> None:
    own = Names(prefix)
    made = [own.sent, own.tosend, own.tosend_for(node), own.kept(snapshot)]
    assert [own.is_own(name) for name in made] == [True] * 4


@given(PREFIXES, SNAPSHOTS, NODES)
def test_only_a_kept_name_is_one(prefix: str, snapshot: Snapshot, node: str) -> None:
    own = Names(prefix)
    made = [own.kept(snapshot), own.sent, own.tosend, own.tosend_for(node)]
    assert [own.is_kept(name) for name in made] == [True, False, False, False]


@given(PREFIXES, SNAPSHOTS)
def test_a_kept_name_does_not_depend_on_the_name_before(prefix: str, snapshot: Snapshot) -> None:
    renamed = Snapshot(Names(prefix).kept(snapshot), snapshot.guid, snapshot.creation)
    assert Names(prefix).kept(renamed) == Names(prefix).kept(snapshot)


@given(SNAPSHOTS, NODES)
def test_a_resource_with_a_prefix_and_one_without_share_no_name(
    snapshot: Snapshot, node: str
) -> None:
    one, two = Names(), Names("sync.2.")
    ours = [one.sent, one.tosend, one.tosend_for(node), one.kept(snapshot)]
    theirs = [two.sent, two.tosend, two.tosend_for(node), two.kept(snapshot)]
    assert not any(map(two.is_own, ours))
    assert not any(map(one.is_own, theirs))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "daily",
        "resent",
        "sent2",
        "sent.",
        "sent.tosend",
        "sent.sent",
        "sent.20100619",
        "sent.20100619T143005Z-",
        "sent.20100619T143005Z-570760.old",
        "tosend2",
        "sync.2.sent",
    ],
)
def test_a_name_that_only_looks_like_ours_is_not(name: str) -> None:
    assert not Names().is_own(name)


def test_a_prefix_that_makes_a_join_of_another_resource_is_not_its_own() -> None:
    assert not Names("sent.").is_own("sent")


@given(st.dictionaries(KEYS, st.frozensets(NODES, max_size=4), max_size=5))
def test_nodes_are_read_as_they_were_written(value: dict[str, frozenset[str]]) -> None:
    assert parse_nodes(format_nodes(value)) == value


@given(st.text(max_size=60) | st.none())
def test_whatever_stands_in_the_property_is_read(text: str | None) -> None:
    value = parse_nodes(text)
    assert parse_nodes(format_nodes(value)) == value


@given(st.dictionaries(KEYS, st.frozensets(NODES, max_size=4), min_size=1, max_size=5))
def test_the_property_fits_one_word(value: dict[str, frozenset[str]]) -> None:
    assert not set(format_nodes(value)) & set(" \t\n'\"")


def test_nothing_is_written_as_nothing() -> None:
    assert format_nodes({}) == ""


def test_a_resource_reads_only_its_own_entries() -> None:
    value = parse_nodes("sent=osol2;two.sent=osol3;tosend.osol4=osol4;z3/sync#1=osol2")
    assert set(Names().own(value)) == {"sent", "tosend.osol4"}


def test_a_tree_knows_full_names() -> None:
    here = tree("tank/data", {"": "", "a/b": ""})
    assert [here.full(name) for name in here.datasets] == ["tank/data", "tank/data/a/b"]


def test_a_tree_knows_who_holds_a_snapshot() -> None:
    here = tree("tank", {"": "sent:1", "a": "sent:2 tosend:3", "b": "tosend:4"})
    assert here.guids("sent") == {"": "1", "a": "2"}


def test_a_dataset_finds_a_snapshot_by_its_guid() -> None:
    root = tree("tank", {"": "sent:1 other:2"}).datasets[""]
    assert (root.by_guid("2"), root.by_guid("3")) == (root.snapshots["other"], None)


def test_snapshots_are_ordered_by_txg_then_by_date() -> None:
    made = [
        Snapshot("c", "1", EPOCH, 9),
        Snapshot("a", "2", EPOCH + 60, 3),
        Snapshot("b", "3", EPOCH, 4),
    ]
    assert [one.name for one in sorted(made, key=lambda one: one.order)] == ["a", "b", "c"]


def test_what_was_packed_is_the_same_when_it_is_asked_for() -> None:
    full = Snapshot("sent", "18446744073709551615", EPOCH, 2**40, "web/sync#1", True, 2**50)
    bare = Snapshot("t\u00f6send", "1", 0)
    root = Dataset("", EPOCH, 2**40, 2**63, {"sent": full, bare.name: bare}, True)
    child = Dataset("a b", 0, partial=Partial("1-abc", "31", "tank/data@tosend"))
    packed = Packed([child, root, Dataset("a b/c", 0)])
    assert list(packed.items()) == [("", root), ("a b", child), ("a b/c", Dataset("a b/c", 0))]


def test_of_a_dataset_that_is_packed_twice_the_later_one_counts() -> None:
    assert Packed([Dataset("", 1), Dataset("", 2)])[""].creation == 2
