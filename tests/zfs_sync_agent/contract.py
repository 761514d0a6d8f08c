"""What zfs does, in its own words: short scenarios that hold for the fake and for a real ZFS alike.

Each is said in zfs command lines and asserts exit status, the decisive words of stderr and who has
which guid under which name. It decides nothing about the agent, and never how a ZFS is made.

A scenario gets a pool `tank` to send from, and `backup` to receive in, both empty.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

RID = "zfs_sync:rid"
SCENARIOS: list[Callable[["Zfs"], None]] = []


class Said(NamedTuple):
    """What a command said; stderr on one line."""

    status: int
    out: list[str]
    err: str


class Zfs(Protocol):
    """A zfs to be tried; `newer`: OpenZFS, where it is not as zfs-fuse."""

    newer: bool

    def run(self, *words: str) -> Said:
        """Run one zfs command."""

    def pipe(self, send: Sequence[str], receive: Sequence[str]) -> tuple[int, Said]:
        """Run `zfs send | zfs receive`; return the sender's status and what the receiver said."""

    def write(self, dataset: str) -> None:
        """Change the data of a dataset."""

    def write_below(self, dataset: str) -> None:
        """Change the data of a dataset that is not mounted."""


def scenario(check: Callable[[Zfs], None]) -> Callable[[Zfs], None]:
    """Enter a scenario into the contract."""
    SCENARIOS.append(check)
    return check


# --- how a scenario speaks ------------------------------------------------------------------------


def do(zfs: Zfs, *words: str) -> list[str]:
    """Run a command that has to do well."""
    said = zfs.run(*words)
    assert (said.status, said.err) == (0, ""), (words, said)
    return said.out


def fails(zfs: Zfs, *words: str, saying: str) -> Said:
    """Run a command that has to exit with 1 and say so."""
    said = zfs.run(*words)
    assert said.status == 1, (words, said)
    assert saying in said.err, (words, said)
    return said


def guids(zfs: Zfs, root: str) -> dict[str, str]:
    """Return name -> guid of all snapshots below a root, the root's name left out."""
    found = {}
    for dataset in do(zfs, "list", "-H", "-r", "-t", "filesystem,volume", "-o", "name", root):
        for name in zfs.run("list", "-H", "-d", "1", "-t", "snapshot", "-o", "name", dataset).out:
            (row,) = do(zfs, "get", "-Hp", "-o", "name,property,value,source", "guid", name)
            found[name[len(root) :]] = row.split("\t")[2]
    return found


def snapshot(zfs: Zfs, name: str, *datasets: str) -> None:
    """Write to datasets of tank/data and take a marked snapshot of the tree."""
    for dataset in datasets:
        zfs.write(dataset)
    do(zfs, "snapshot", "-r", "-o", f"{RID}=z3/sync#1", f"tank/data@{name}")


def tree(zfs: Zfs, *children: str, written: bool = True) -> None:
    """Make tank/data with children, data in each and a snapshot A.

    Not `written`: nothing is mounted, for datasets that will be moved or destroyed; zfs-fuse may
    call a mount busy for long after its end.
    """
    names = ["tank/data", *(f"tank/data/{child}" for child in children)]
    for name in names:
        do(zfs, "create", *(() if written else ("-o", "mountpoint=none")), name)
    snapshot(zfs, "A", *(names if written else ()))


def send(zfs: Zfs, *words: str, into: str = "backup/data") -> tuple[int, Said]:
    """Send and receive, without any -F."""
    return zfs.pipe(("send", *words), ("receive", into))


def sends(zfs: Zfs, *words: str, into: str = "backup/data") -> None:
    """Send and receive; both have to do well, though they may say something."""
    status, said = send(zfs, *words, into=into)
    assert (status, said.status) == (0, 0), (words, said)


def refused(zfs: Zfs, *words: str, saying: str, into: str = "backup/data") -> None:
    """Send what the receiver has to refuse; `saying` may be one of several, parted by a bar."""
    _, said = send(zfs, *words, into=into)
    assert said.status == 1, (words, said)
    assert any(one in said.err for one in saying.split("|")), (words, said)


def replica(zfs: Zfs, *children: str, written: bool = True) -> None:
    """Make a tree, its replica, and a B with data in every dataset."""
    tree(zfs, *children, written=written)
    sends(zfs, "-R", "tank/data@A")
    names = ["tank/data", *(f"tank/data/{child}" for child in children)]
    snapshot(zfs, "B", *(names if written else ()))


DOES_NOT_EXIST = "dataset does not exist"
NOT_THE_BASE = "most recent snapshot of backup/data does not match incremental source"
MODIFIED = "destination backup/data has been modified since most recent snapshot"

# --- reading ------------------------------------------------------------------------------------


@scenario
def names_that_do_not_exist_are_told_and_the_rest_is_printed(zfs: Zfs) -> None:
    tree(zfs)
    names = ("tank/data@B", "tank/data", "tank/no@A", "tank/data@A", "nopool/x")
    said = zfs.run("get", "-Hp", "-o", "name,property,value,source", f"guid,{RID}", *names)
    assert said.status == 1
    rows = [line.split("\t") for line in said.out]
    assert [row[0] for row in rows] == ["tank/data"] * 2 + ["tank/data@A"] * 2
    assert rows[1][2:] == ["-", "-"]
    assert rows[3][1:] == [RID, "z3/sync#1", "local"]
    for name in ("tank/data@B", "tank/no@A", "nopool/x"):
        assert f"cannot open '{name}': {DOES_NOT_EXIST}" in said.err


@scenario
def a_missing_pool_reads_like_a_missing_dataset(zfs: Zfs) -> None:
    for root in ("tank/no", "nopool/data"):
        argv = ("list", "-H", "-r", "-t", "filesystem,volume", "-o", "name", root)
        fails(zfs, *argv, saying=f"cannot open '{root}': {DOES_NOT_EXIST}")
    assert do(zfs, "list", "-H", "-o", "name", "tank") == ["tank"]
    fails(zfs, "list", "-H", "-o", "name", "nopool", saying=f"'nopool': {DOES_NOT_EXIST}")


@scenario
def a_tree_is_listed_parents_first_and_snapshots_by_age(zfs: Zfs) -> None:
    tree(zfs, "a", "a/d", "b")
    snapshot(zfs, "0", "tank/data/a")
    listed = do(zfs, "list", "-H", "-r", "-t", "filesystem,volume", "-o", "name", "tank/data")
    assert sorted(listed) == ["tank/data", "tank/data/a", "tank/data/a/d", "tank/data/b"]
    assert listed.index("tank/data/a") < listed.index("tank/data/a/d")
    found = do(zfs, "list", "-H", "-d", "1", "-t", "snapshot", "-o", "name", "tank/data/a")
    assert found == ["tank/data/a@A", "tank/data/a@0"]


@scenario
def createtxg_orders_what_creation_does_not(zfs: Zfs) -> None:
    tree(zfs)
    snapshot(zfs, "B", "tank/data")
    rows = do(
        zfs, "get", "-Hp", "-o", "name,property,value,source", "createtxg,creation",
        "tank/data@A", "tank/data@B",
    )  # fmt: skip
    value = [int(row.split("\t")[2]) for row in rows]
    assert value[0] < value[2]
    assert value[1] <= value[3]


# --- names ----------------------------------------------------------------------------------------


@scenario
def a_snapshot_of_a_tree_is_all_or_nothing(zfs: Zfs) -> None:
    tree(zfs, "a", "b")
    do(zfs, "snapshot", "tank/data/b@B")
    before = guids(zfs, "tank/data")
    argv = ("snapshot", "-r", "-o", f"{RID}=x", "tank/data@B")
    fails(zfs, *argv, saying="cannot create snapshot 'tank/data/b@B': dataset already exists")
    assert guids(zfs, "tank/data") == before


@scenario
def a_snapshot_of_some_is_all_or_nothing(zfs: Zfs) -> None:
    tree(zfs, "a", "b")
    said = zfs.run("snapshot", "-o", f"{RID}=x", "tank/data@B", "tank/data/b@B")
    if said.status:  # zfs-fuse, which does not tell what was written either
        assert "too many arguments" in said.err
        assert guids(zfs, "tank/data").keys() == {"@A", "/a@A", "/b@A"}
        return
    before = guids(zfs, "tank/data")
    assert before.keys() == {"@A", "/a@A", "/b@A", "@B", "/b@B"}
    argv = ("snapshot", "tank/data@C", "tank/data/a@C", "tank/data/b@B")
    fails(zfs, *argv, saying="cannot create snapshot 'tank/data/b@B': dataset already exists")
    said = zfs.run("snapshot", "tank/data@C", "tank/data/no@C")  # OpenZFS exits with 2
    assert said.status
    assert DOES_NOT_EXIST in said.err
    assert guids(zfs, "tank/data") == before


@scenario
def rename_r_leaves_who_has_the_new_name_alone(zfs: Zfs) -> None:
    tree(zfs, "a", "b")
    do(zfs, "snapshot", "tank/data@B")
    do(zfs, "snapshot", "tank/data/b@B")
    do(zfs, "destroy", "tank/data@A")
    do(zfs, "destroy", "tank/data/b@A")
    before = guids(zfs, "tank/data")
    do(zfs, "rename", "-r", "tank/data@B", "tank/data@A")
    assert guids(zfs, "tank/data") == {name.replace("B", "A"): one for name, one in before.items()}


@scenario
def rename_r_takes_who_has_it_or_nobody(zfs: Zfs) -> None:
    tree(zfs, "a", "b")
    do(zfs, "destroy", "tank/data/a@A")
    before = guids(zfs, "tank/data")
    do(zfs, "rename", "-r", "tank/data@A", "tank/data@B")
    assert guids(zfs, "tank/data") == {name.replace("A", "B"): one for name, one in before.items()}
    do(zfs, "snapshot", "tank/data/b@C")
    before = guids(zfs, "tank/data")
    # OpenZFS names the one that was to be renamed, zfs-fuse the child.
    words = "a child dataset already has a snapshot with the new name"
    fails(zfs, "rename", "-r", "tank/data@B", "tank/data@C", saying=words)
    assert guids(zfs, "tank/data") == before
    fails(zfs, "rename", "-r", "tank/data@no", "tank/data@C", saying=DOES_NOT_EXIST)


@scenario
def one_rename_does_not_overwrite(zfs: Zfs) -> None:
    tree(zfs)
    snapshot(zfs, "B")
    fails(zfs, "rename", "tank/data@B", "tank/data@A", saying="dataset already exists")
    fails(zfs, "rename", "tank/data@no", "tank/data@C", saying=DOES_NOT_EXIST)


@scenario
def destroy_r_takes_the_name_wherever_it_is(zfs: Zfs) -> None:
    tree(zfs, "a", "b")
    do(zfs, "destroy", "tank/data/a@A")
    do(zfs, "destroy", "-r", "tank/data@A")
    assert guids(zfs, "tank/data") == {}
    # zfs-fuse: dataset does not exist; OpenZFS: could not find any snapshots to destroy.
    fails(zfs, "destroy", "-r", "tank/data@A", saying="destroy")


@scenario
def what_is_held_is_not_destroyed_but_renamed(zfs: Zfs) -> None:
    tree(zfs, "a")
    do(zfs, "hold", "keep", "tank/data/a@A")
    # zfs-fuse: cannot destroy '...': dataset is busy; OpenZFS: cannot destroy snapshot ...: it's
    # being held.
    fails(zfs, "destroy", "-r", "tank/data@A", saying="tank/data/a@A")
    assert "/a@A" in guids(zfs, "tank/data")
    do(zfs, "rename", "tank/data/a@A", "tank/data/a@B")
    assert "/a@B" in guids(zfs, "tank/data")
    do(zfs, "release", "keep", "tank/data/a@B")
    do(zfs, "destroy", "tank/data/a@B")


@scenario
def datasets_are_moved_with_all_that_is_below(zfs: Zfs) -> None:
    tree(zfs, "a", "a/d", "b", written=False)
    before = guids(zfs, "tank/data")
    do(zfs, "rename", "tank/data/a", "tank/data/c")
    assert guids(zfs, "tank/data") == {n.replace("/a", "/c"): one for n, one in before.items()}
    fails(zfs, "rename", "tank/data/c", "tank/data/b", saying="dataset already exists")
    fails(zfs, "destroy", "tank/data/c", saying="has children")
    do(zfs, "destroy", "-r", "tank/data/c")
    assert guids(zfs, "tank/data").keys() == {"@A", "/b@A"}


@scenario
def a_rollback_refuses_where_something_is_newer(zfs: Zfs) -> None:
    tree(zfs)
    snapshot(zfs, "B", "tank/data")
    words = "cannot rollback to 'tank/data@A': more recent snapshots"  # OpenZFS: or bookmarks
    fails(zfs, "rollback", "tank/data@A", saying=words)
    assert guids(zfs, "tank/data").keys() == {"@A", "@B"}


# --- properties ---------------------------------------------------------------------------------


def mark(zfs: Zfs, dataset: str, key: str = "zfs_sync:replica") -> list[str]:
    """Return value and source of a user property of a dataset."""
    (row,) = do(zfs, "get", "-Hp", "-o", "property,value,source", key, dataset)
    return row.split("\t")[1:]


@scenario
def a_property_arrives_as_received_and_a_local_one_stays(zfs: Zfs) -> None:
    tree(zfs)
    assert mark(zfs, "tank/data") == ["-", "-"]
    do(zfs, "set", "zfs_sync:replica=one", "tank/data")
    assert mark(zfs, "tank/data") == ["one", "local"]
    sends(zfs, "-p", "tank/data@A")
    assert mark(zfs, "backup/data") == ["one", "received"]
    do(zfs, "set", "zfs_sync:replica=two", "backup/data")
    snapshot(zfs, "B", "tank/data")
    sends(zfs, "-R", "-i", "tank/data@A", "tank/data@B")
    assert mark(zfs, "backup/data") == ["two", "local"]
    do(zfs, "inherit", "zfs_sync:replica", "backup/data")
    assert mark(zfs, "backup/data")[1] != "local"


@scenario
def the_mark_of_a_snapshot_travels_with_r_and_p(zfs: Zfs) -> None:
    replica(zfs, "a")
    sends(zfs, "-p", "-i", "tank/data@A", "tank/data@B")
    for name in ("backup/data@A", "backup/data/a@A", "backup/data@B"):
        (row,) = do(zfs, "get", "-Hp", "-o", "name,property,value,source", RID, name)
        assert row.split("\t")[2:] == ["z3/sync#1", "received"]
    do(zfs, "set", f"{RID}=z3/sync#1", "backup/data@B")
    (row,) = do(zfs, "get", "-Hp", "-o", "name,property,value,source", RID, "backup/data@B")
    assert row.split("\t")[2:] == ["z3/sync#1", "local"]


# --- streams --------------------------------------------------------------------------------------


@scenario
def an_incremental_stream_of_a_tree_brings_it_to_b(zfs: Zfs) -> None:
    replica(zfs, "a", "b")
    sends(zfs, "-R", "-i", "tank/data@A", "tank/data@B")
    assert guids(zfs, "backup/data") == guids(zfs, "tank/data")


@scenario
def one_stream_brings_a_tree_to_b_whose_bases_are_of_unlike_age(zfs: Zfs) -> None:
    replica(zfs, "a", "b")
    for name in ("", "/b"):
        sends(
            zfs, "-p", "-i", f"tank/data{name}@A", f"tank/data{name}@B", into=f"backup/data{name}"
        )
        for pool in ("tank", "backup"):
            do(zfs, "destroy", f"{pool}/data{name}@A")
            do(zfs, "rename", f"{pool}/data{name}@B", f"{pool}/data{name}@A")
    do(zfs, "destroy", "tank/data/a@B")
    snapshot(zfs, "B", "tank/data/a")
    sends(zfs, "-R", "-i", "tank/data@A", "tank/data@B")
    assert guids(zfs, "backup/data") == guids(zfs, "tank/data")
    assert len(guids(zfs, "backup/data")) == 2 * 3


@scenario
def a_full_stream_of_a_tree_carries_history_and_one_of_a_dataset_does_not(zfs: Zfs) -> None:
    tree(zfs, "a")
    snapshot(zfs, "B", "tank/data")
    sends(zfs, "-R", "tank/data@B")
    assert guids(zfs, "backup/data") == guids(zfs, "tank/data")
    sends(zfs, "-p", "tank/data@B", into="backup/one")
    assert guids(zfs, "backup/one").keys() == {"@B"}


@scenario
def i_brings_what_is_in_between(zfs: Zfs) -> None:
    tree(zfs)
    sends(zfs, "-R", "tank/data@A")
    snapshot(zfs, "daily", "tank/data")
    snapshot(zfs, "B", "tank/data")
    sends(zfs, "-R", "-I", "tank/data@A", "tank/data@B")
    assert guids(zfs, "backup/data") == guids(zfs, "tank/data")


@scenario
def a_stream_goes_below_the_pool_by_the_name_of_the_source(zfs: Zfs) -> None:
    tree(zfs, "a")
    status, said = zfs.pipe(("send", "-R", "tank/data@A"), ("receive", "-d", "backup"))
    assert (status, said.status) == (0, 0)
    assert guids(zfs, "backup/data") == guids(zfs, "tank/data")


@scenario
def names_of_snapshots_follow_the_source_by_guid(zfs: Zfs) -> None:
    replica(zfs, "a")
    do(zfs, "rename", "-r", "tank/data@A", "tank/data@sent.1")
    sends(zfs, "-R", "-i", "tank/data@sent.1", "tank/data@B")
    assert guids(zfs, "backup/data") == guids(zfs, "tank/data")


@scenario
def a_renamed_child_is_renamed_and_a_new_one_made(zfs: Zfs) -> None:
    tree(zfs, "a", "b", written=False)
    sends(zfs, "-R", "tank/data@A")
    do(zfs, "rename", "tank/data/a", "tank/data/c")
    do(zfs, "create", "tank/data/new")
    snapshot(zfs, "B")
    sends(zfs, "-R", "-i", "tank/data@A", "tank/data@B")
    assert guids(zfs, "backup/data") == guids(zfs, "tank/data")


@scenario
def two_children_that_swapped_their_names_are_swapped(zfs: Zfs) -> None:
    tree(zfs, "a", "b", written=False)
    sends(zfs, "-R", "tank/data@A")
    for old, new in (("a", "x"), ("b", "a"), ("x", "b")):
        do(zfs, "rename", f"tank/data/{old}", f"tank/data/{new}")
    snapshot(zfs, "B")
    sends(zfs, "-R", "-i", "tank/data@A", "tank/data@B")
    assert guids(zfs, "backup/data") == guids(zfs, "tank/data")


@scenario
def a_child_that_is_gone_on_the_source_stays(zfs: Zfs) -> None:
    replica(zfs, "a", written=False)
    do(zfs, "destroy", "-r", "tank/data/a")
    sends(zfs, "-R", "-i", "tank/data@A", "tank/data@B")
    assert guids(zfs, "backup/data").keys() == {"@A", "@B", "/a@A"}


@scenario
def a_child_that_is_lost_on_the_target_stops_the_stream(zfs: Zfs) -> None:
    replica(zfs, "a")
    do(zfs, "destroy", "-r", "backup/data/a")
    words = "destination 'backup/data/a' does not exist"
    refused(zfs, "-R", "-i", "tank/data@A", "tank/data@B", saying=words)
    assert "/a@B" not in guids(zfs, "backup/data")


@scenario
def a_child_that_was_made_anew_does_not_overwrite_the_old_one(zfs: Zfs) -> None:
    replica(zfs, "a", written=False)
    do(zfs, "destroy", "-r", "tank/data/a")
    do(zfs, "create", "tank/data/a")
    snapshot(zfs, "C")
    words = "cannot receive new filesystem stream: destination 'backup/data/a' exists"
    refused(zfs, "-R", "-i", "tank/data@A", "tank/data@C", saying=words)
    assert guids(zfs, "backup/data")["/a@A"] not in guids(zfs, "tank/data").values()


@scenario
def a_stream_of_a_tree_stops_at_a_child_that_has_b(zfs: Zfs) -> None:
    replica(zfs, "a")
    sends(zfs, "-p", "-i", "tank/data/a@A", "tank/data/a@B", into="backup/data/a")
    if zfs.newer:  # it skips the child, and goes on
        sends(zfs, "-R", "-i", "tank/data@A", "tank/data@B")
        return
    words = NOT_THE_BASE.replace("data", "data/a")
    refused(zfs, "-R", "-i", "tank/data@A", "tank/data@B", saying=words)


@scenario
def a_child_without_b_is_skipped_and_the_receiver_says_nothing(zfs: Zfs) -> None:
    replica(zfs, "a")
    do(zfs, "destroy", "tank/data/a@B")
    _, said = send(zfs, "-R", "-i", "tank/data@A", "tank/data@B")
    if zfs.newer:  # it sends nothing at all, and says so
        assert guids(zfs, "backup/data").keys() == {"@A", "/a@A"}
        return
    assert said.status == 0
    assert guids(zfs, "backup/data").keys() == {"@A", "@B", "/a@A"}


@scenario
def a_full_stream_does_not_overwrite(zfs: Zfs) -> None:
    tree(zfs)
    do(zfs, "create", "backup/data")
    words = "destination 'backup/data' exists"
    refused(zfs, "-p", "tank/data@A", saying=words)
    refused(zfs, "-p", "tank/data@A", saying=DOES_NOT_EXIST, into="backup/no/data")


@scenario
def a_missing_or_older_base_is_refused(zfs: Zfs) -> None:
    replica(zfs)
    status, _ = send(zfs, "-i", "tank/data@B", "tank/data@A")
    assert status == 1
    do(zfs, "snapshot", "backup/data@theirs")
    do(zfs, "destroy", "backup/data@A")
    refused(zfs, "-i", "tank/data@A", "tank/data@B", saying=NOT_THE_BASE)
    do(zfs, "destroy", "backup/data@theirs")
    refused(zfs, "-i", "tank/data@A", "tank/data@B", saying=f"{MODIFIED}|{NOT_THE_BASE}")


@scenario
def a_base_taken_anew_under_the_same_name_is_refused(zfs: Zfs) -> None:
    tree(zfs)
    sends(zfs, "-R", "tank/data@A")
    do(zfs, "destroy", "tank/data@A")
    snapshot(zfs, "A", "tank/data")
    snapshot(zfs, "B", "tank/data")
    refused(zfs, "-i", "tank/data@A", "tank/data@B", saying=NOT_THE_BASE)


# --- what was done to the replica ---------------------------------------------------------------


@scenario
def a_written_replica_is_refused_until_it_is_rolled_back(zfs: Zfs) -> None:
    replica(zfs)
    zfs.write_below("backup/data")
    refused(zfs, "-p", "-i", "tank/data@A", "tank/data@B", saying=MODIFIED)
    do(zfs, "rollback", "backup/data@A")
    sends(zfs, "-p", "-i", "tank/data@A", "tank/data@B")
    assert guids(zfs, "backup/data") == guids(zfs, "tank/data")


@scenario
def a_newer_snapshot_without_data_does_not_matter(zfs: Zfs) -> None:
    replica(zfs, "a")
    do(zfs, "snapshot", "-r", "backup/data@theirs")
    sends(zfs, "-R", "-i", "tank/data@A", "tank/data@B")
    assert guids(zfs, "tank/data").items() <= guids(zfs, "backup/data").items()


@scenario
def a_newer_snapshot_with_data_is_refused(zfs: Zfs) -> None:
    replica(zfs)
    zfs.write_below("backup/data")
    do(zfs, "snapshot", "backup/data@theirs")
    words = f"{NOT_THE_BASE}|{MODIFIED}"  # zfs-fuse the first, OpenZFS the second
    refused(zfs, "-p", "-i", "tank/data@A", "tank/data@B", saying=words)


@scenario
def a_name_that_is_taken_is_refused(zfs: Zfs) -> None:
    replica(zfs, "a")
    do(zfs, "snapshot", "backup/data@B")
    before = guids(zfs, "backup/data")
    words = "cannot restore to backup/data@B: destination already exists"
    refused(zfs, "-p", "-i", "tank/data@A", "tank/data@B", saying=words)
    refused(zfs, "-R", "-i", "tank/data@A", "tank/data@B", saying="destination already exists")
    assert guids(zfs, "backup/data").items() >= before.items()


@scenario
def what_is_foreign_below_the_replica_stays(zfs: Zfs) -> None:
    replica(zfs, "a")
    do(zfs, "create", "backup/data/theirs")
    do(zfs, "snapshot", "backup/data/theirs@A")
    sends(zfs, "-R", "-i", "tank/data@A", "tank/data@B")
    there = guids(zfs, "backup/data")
    assert guids(zfs, "tank/data").items() <= there.items()
    do(zfs, "destroy", "-r", "backup/data@A")
    assert guids(zfs, "backup/data").keys() == {"@B", "/a@B"}, "-r hits what is foreign, too"
