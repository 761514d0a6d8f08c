"""Commands are the words that zfs wants, and its words are read as it means them.

The outputs were recorded: zfs-fuse 0.7.0 (Debian 12) unless another ZFS is named beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from zfs_sync_agent import zfs
from zfs_sync_agent.errors import NoAnswer
from zfs_sync_agent.model import MARK, RETAINED, SWAP, TARGETS, Capabilities, Packed, Tree
from zfs_sync_agent.zfs import Stream

from .notation import tree

TOKEN = "1-abc"  # noqa: S105 - of a transfer
OLD, NEW = Capabilities(), Capabilities(("zfs",), frozenset("t"), frozenset("su"), written=True)

# --- commands ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            zfs.list_datasets_argv("tank/a b", recursive=True),
            ["list", "-H", "-r", "-t", "filesystem,volume", "-o", "name", "tank/a b"],
        ),
        (
            zfs.list_datasets_argv("tank", recursive=False),
            ["list", "-H", "-t", "filesystem,volume", "-o", "name", "tank"],
        ),
        (zfs.list_pool_argv("tank/a/b"), ["list", "-H", "-o", "name", "tank"]),
        (zfs.list_pool_argv("tank"), ["list", "-H", "-o", "name", "tank"]),
        (
            zfs.get_root_argv("tank/a"),
            [
                "get",
                "-Hp",
                "-o",
                "property,value,source",
                f"{MARK},{RETAINED},{SWAP},{TARGETS}",
                "tank/a",
            ],
        ),
        (zfs.list_snapshots_argv(), ["list", "-H", "-d", "1", "-t", "snapshot", "-o", "name"]),
        (zfs.mark_snapshots_argv("z3/sync#1"), ["set", "zfs_sync:rid=z3/sync#1"]),
        (
            zfs.snapshot("t/a b", "tosend", "z3/sync#1", recursive=True).argv,
            ["snapshot", "-r", "-o", "zfs_sync:rid=z3/sync#1", "t/a b@tosend"],
        ),
        (
            zfs.snapshot("t", "tosend", "z3/sync#1", recursive=False).argv,
            ["snapshot", "-o", "zfs_sync:rid=z3/sync#1", "t@tosend"],
        ),
        (
            zfs.rename_snapshot("t", "a", "b", recursive=True).argv,
            ["rename", "-r", "t@a", "t@b"],
        ),
        (zfs.rename_snapshot("t", "a", "b", recursive=False).argv, ["rename", "t@a", "t@b"]),
        (zfs.destroy_snapshot("t", "a", recursive=True).argv, ["destroy", "-r", "t@a"]),
        (zfs.destroy_snapshot("t", "a", recursive=False).argv, ["destroy", "t@a"]),
        (zfs.rename_dataset("t/a", "t/b", "why").argv, ["rename", "t/a", "t/b"]),
        (zfs.destroy_dataset("t/a", "why").argv, ["destroy", "-r", "t/a"]),
        (zfs.rollback("t", "a", "why").argv, ["rollback", "t@a"]),
        (zfs.set_property("t", "k", "v").argv, ["set", "k=v", "t"]),
        (zfs.set_property("t", "k", "").argv, ["inherit", "k", "t"]),
        (zfs.create_parent("t/p").argv, ["create", "-o", "canmount=off", "t/p"]),
        (zfs.set_readonly("t").argv, ["set", "readonly=on", "t"]),
    ],
)
def test_a_command_has_the_words_that_zfs_wants(argv: zfs.Argv, words: list[str]) -> None:
    assert list(argv) == words


def test_the_verb_of_a_change_is_its_subcommand() -> None:
    assert zfs.rollback("t", "a", "why").verb == "rollback"


def test_only_a_zfs_that_knows_a_property_is_asked_for_it() -> None:
    old, new = (zfs.get_names_argv(can)[-1].split(",") for can in (OLD, NEW))
    assert set(new) - set(old) == {"written", "receive_resume_token"}


HERE = tree("osol1_z3_root/data", {"": "sent:1 tosend:2", "a b": "sent:3 tosend:4"})


def stream(
    relative: str = "",
    base: str | None = None,
    *,
    replicate: bool = True,
    intermediary: bool = False,
    pool: str | None = None,
) -> Stream:
    return Stream(relative, base, "tosend", "d/data", replicate, intermediary, pool)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (stream(), "send -R osol1_z3_root/data@tosend"),
        (
            stream(base="sent"),
            "send -R -i osol1_z3_root/data@sent osol1_z3_root/data@tosend",
        ),
        (
            stream(base="sent", intermediary=True),
            "send -R -I osol1_z3_root/data@sent osol1_z3_root/data@tosend",
        ),
        (stream(replicate=False), "send -p osol1_z3_root/data@tosend"),
    ],
)
def test_a_stream_is_sent_as_in_the_documented_sequence(sent: Stream, words: str) -> None:
    assert " ".join(sent.send_argv(HERE, ())) == words


def test_the_name_of_a_child_stays_one_word() -> None:
    argv = stream("a b", "sent", replicate=False).send_argv(HERE, ())
    assert argv[2:] == ("-i", "osol1_z3_root/data/a b@sent", "osol1_z3_root/data/a b@tosend")


def test_send_options_come_before_the_snapshots() -> None:
    argv = stream(base="sent").send_argv(HERE, ("-w", "-L"))
    assert argv[:5] == ("send", "-R", "-w", "-L", "-i")


@pytest.mark.parametrize(
    ("sent", "can", "options", "words"),
    [
        (stream(), OLD, (), "receive d/data"),
        (stream(), NEW, (), "receive -s -u d/data"),
        (stream(pool="d"), OLD, (), "receive -d d"),
        (stream(pool="d"), NEW, (), "receive -s -u -d d"),
        (stream(), NEW, ("-u",), "receive -s -u d/data"),
        (stream(), NEW, ("-x", "mountpoint"), "receive -s -u -x mountpoint d/data"),
    ],
)
def test_a_stream_is_received_resumable_and_unmounted_where_it_can_be(
    sent: Stream, can: Capabilities, options: tuple[str, ...], words: str
) -> None:
    assert " ".join(sent.receive_argv(can, options, resumes=True)) == words


def test_what_the_sender_cannot_resume_is_not_kept() -> None:
    assert stream().receive_argv(NEW, (), resumes=False) == ("receive", "-u", "d/data")


def test_the_rest_of_a_cut_stream_is_sent_by_its_token_alone() -> None:
    rest = replace(stream(base="sent"), token=TOKEN)
    assert rest.send_argv(HERE, ("-w",)) == ("send", "-t", TOKEN)


def test_nothing_is_ever_received_by_force() -> None:
    argvs = [
        stream(pool=pool).receive_argv(can, (), resumes=True)
        for pool in (None, "d")
        for can in (OLD, NEW)
    ]
    assert not any("F" in word for argv in argvs for word in argv if word.startswith("-"))


# --- usage texts ------------------------------------------------------------------------------

USAGE_FUSE = """\
missing command
usage: zfs command args ...
where 'command' is one of the following:

\tcreate [-p] [-o property=value] ... <filesystem>
\tlist [-rH][-d max] [-o property[,...]] [-t type[,...]] [-s property] ...
\tunmount [-f] <-a | filesystem|mountpoint>

\tsend [-RDp] [-[iI] snapshot] <snapshot>
\treceive [-vnF] <filesystem|volume|snapshot>
\treceive [-vnF] -d <filesystem>

\tunallow [-rldug] <"everyone"|user|group>[,...]
"""
PROPERTIES_FUSE = """\
The following properties are supported:

\tPROPERTY       EDIT  INHERIT   VALUES

\tavailable        NO       NO   <size>
\treferenced       NO       NO   <size>
"""
# OpenZFS 2.3.2
USAGE_OPENZFS = """\
\tsend [-DLPbcehnpsVvw] [-i|-I snapshot]
\t     [-R [-X dataset[,dataset]...]]     <snapshot>
\tsend [-DnVvPLecw] [-i snapshot|bookmark] <filesystem|volume|snapshot>
\tsend [-DnPpVvLec] [-i bookmark|snapshot] --redact <bookmark> <snapshot>
\tsend [-nVvPe] -t <receive_resume_token>
\tsend [-PnVv] --saved filesystem

\tunallow [-rldug] <"everyone"|user|group>[,...]
\treceive [-vMnsFhu] [-o <property>=<value>] ... [-x <property>] ...
\t    <filesystem|volume|snapshot>
\treceive [-vMnsFhu] [-o <property>=<value>] ... [-x <property>] ...
\t    [-d | -e] <filesystem>
\treceive -A <filesystem|volume>
"""
PROPERTIES_OPENZFS = """\
\twritten          NO       NO   <size>
\twritten@<snap>   NO       NO   <size>
"""


def test_zfs_fuse_receives_no_other_way_than_mounted() -> None:
    assert zfs.parse_capabilities(USAGE_FUSE, PROPERTIES_FUSE, ("/usr/sbin/zfs",)) == Capabilities(
        ("/usr/sbin/zfs",), frozenset("RDpiI"), frozenset("vnFd")
    )


def test_openzfs_receives_unmounted_and_counts_what_was_written() -> None:
    can = zfs.parse_capabilities(USAGE_OPENZFS, PROPERTIES_OPENZFS, ("zfs",))
    assert {"u", "s", "o", "x", "A"} <= can.receive
    assert {"w", "L", "c", "e", "X", "t", "n", "P"} <= can.send
    assert (can.written, can.resumes, can.estimates) == (True, True, True)


def test_no_usage_text_means_no_capability() -> None:
    assert zfs.parse_capabilities("", "", ("zfs",)) == Capabilities()


# --- what is absent, and what does not answer --------------------------------------------------

ABSENT = "cannot open 'src/missing': dataset does not exist\n"
NO_ANSWERS = [
    "cannot open 'src': pool I/O is currently suspended\n",  # OpenZFS 2.3.2
    "cannot open 'src/d': permission denied\n",
    "Unable to open /dev/zfs: Permission denied.\n",  # OpenZFS 2.3.2
    "internal error: /usr/lib/zfs/pyzfs.py not found\n",
    "connect: No such file or directory\nPlease make sure that the zfs-fuse daemon is running.\n",
    "cannot open 'src/missing': no such pool\n",
]


def test_a_dataset_that_does_not_exist_is_absent() -> None:
    assert zfs.is_absent(ABSENT, "src/missing")


def test_the_absence_of_a_name_with_spaces_is_understood() -> None:
    assert zfs.is_absent("cannot open 'src/a b': dataset does not exist\n", "src/a b")


def test_the_absence_of_another_dataset_says_nothing() -> None:
    assert not zfs.is_absent(ABSENT, "src")


@pytest.mark.parametrize("stderr", ["", "\n", *NO_ANSWERS])
def test_what_does_not_answer_is_not_absent(stderr: str) -> None:
    assert not zfs.is_absent(stderr, "src/missing")


def test_absence_beside_another_complaint_is_not_absence() -> None:
    assert not zfs.is_absent(ABSENT + NO_ANSWERS[0], "src/missing")


def test_missing_snapshots_are_what_was_asked_for() -> None:
    stderr = """\
cannot open 'missing@s': dataset does not exist
cannot open 'src/d@missing': dataset does not exist
cannot open 'src/k@s': snapshot does not exist

"""
    zfs.check_absent_only(stderr, "cannot read src/d on osol2", "zfs get ...", 1)


@pytest.mark.parametrize("stderr", NO_ANSWERS)
def test_any_other_complaint_is_no_answer(stderr: str) -> None:
    with pytest.raises(NoAnswer, match="cannot read src/d on osol2: exit 1: "):
        zfs.check_absent_only(ABSENT + stderr, "cannot read src/d on osol2", "zfs get ...", 1)


# --- properties -------------------------------------------------------------------------------


def test_only_local_marks_of_a_root_count() -> None:
    output = (
        "zfs_sync:replica\tosol1/z3/sync#1\tlocal\n"
        "zfs_sync:retained\tsent=osol2\treceived\n"
        "zfs_sync:targets\tz3/sync#1=osol2\tinherited from tank\n"
    )
    assert zfs.parse_root(output) == {"zfs_sync:replica": "osol1/z3/sync#1"}


def test_a_mark_that_is_not_set_is_not_there() -> None:
    assert zfs.parse_root("zfs_sync:replica\t-\t-\n") == {}


NAMES = """\
dst/data\tguid\t1462655927706611239\t-
dst/data\tcreation\t1795355353\t-
dst/data\tcreatetxg\t8\t-
dst/data\tzfs_sync:rid\t-\t-
dst/data@A\tguid\t12478075367555924969\t-
dst/data@A\tcreation\t1795355354\t-
dst/data@A\tcreatetxg\t18\t-
dst/data@A\tzfs_sync:rid\tz3/sync#1\treceived
dst/data@B\tguid\t11268711894893570760\t-
dst/data@B\tcreation\t1795355355\t-
dst/data@B\tcreatetxg\t28\t-
dst/data@B\tzfs_sync:rid\there\tinherited from dst/data
dst/data/k 1\tguid\t8224216871711122851\t-
dst/data/k 1\tcreation\t1795355353\t-
dst/data/k 1\tcreatetxg\t9\t-
dst/data/k 1\tzfs_sync:rid\there\tinherited from dst/data
"""


def test_a_mark_that_a_snapshot_inherits_is_none() -> None:
    found = zfs.parse_names(NAMES)
    assert ("zfs_sync:rid" in found["dst/data@A"], "zfs_sync:rid" in found["dst/data@B"]) == (
        True,
        False,
    )


def test_a_received_mark_of_a_snapshot_counts() -> None:
    assert zfs.parse_names(NAMES)["dst/data@A"]["zfs_sync:rid"] == "z3/sync#1"


def test_names_may_have_spaces() -> None:
    assert zfs.parse_names(NAMES)["dst/data/k 1"]["guid"] == "8224216871711122851"


def built_tree(
    root: str,
    datasets: Sequence[str],
    properties: Mapping[str, Mapping[str, str]],
    complete: frozenset[str] = frozenset(),
) -> Tree:
    return Tree(root, Packed(zfs.build_datasets(root, datasets, properties, complete)))


def test_a_guid_keeps_all_of_its_digits() -> None:
    built = built_tree("dst/data", ["dst/data"], zfs.parse_names(NAMES))
    assert built.datasets[""].snapshots["A"].guid == "12478075367555924969"


def test_a_tree_has_its_datasets_by_relative_name() -> None:
    built = built_tree("dst/data", ["dst/data", "dst/data/k 1"], zfs.parse_names(NAMES))
    assert {name: sorted(one.snapshots) for name, one in built.datasets.items()} == {
        "": ["A", "B"],
        "k 1": [],
    }


def test_a_dataset_that_vanished_meanwhile_is_left_out() -> None:
    built = built_tree("dst/data", ["dst/data", "dst/data/gone"], zfs.parse_names(NAMES))
    assert list(built.datasets) == [""]


def test_a_snapshot_of_a_dataset_that_was_not_listed_is_left_out() -> None:
    built = built_tree("dst/data", ["dst/data/k 1"], zfs.parse_names(NAMES))
    assert [one.snapshots for one in built.datasets.values()] == [{}]


def test_parents_come_before_their_children() -> None:
    properties = {name: {"guid": "1"} for name in ("t", "t/a", "t/a/b", "t/a-b", "t/B")}
    built = built_tree("t", sorted(properties, reverse=True), properties)
    order = list(built.datasets)
    assert all(order.index(one.rpartition("/")[0]) < order.index(one) for one in order if one)


def test_written_is_known_where_zfs_tells_it() -> None:
    # OpenZFS 2.3.2
    output = "t\tguid\t1\t-\nt\twritten\t4096\t-\nt/a\tguid\t2\t-\nt/a\twritten\t0\t-\n"
    built = built_tree("t", ["t", "t/a"], zfs.parse_names(output))
    assert [one.written for one in built.datasets.values()] == [4096, 0]


def test_written_is_unknown_where_zfs_does_not_tell_it() -> None:
    built = built_tree("dst/data", ["dst/data"], zfs.parse_names(NAMES))
    assert built.datasets[""].written is None


def test_a_deep_listing_is_complete() -> None:
    names = zfs.parse_names(NAMES)
    built = built_tree("dst/data", ["dst/data", "dst/data/k 1"], names, frozenset({"dst/data/k 1"}))
    assert [one.complete for one in built.datasets.values()] == [False, True]


# --- mountpoints ------------------------------------------------------------------------------


def test_a_stream_carries_the_mountpoints_that_were_set() -> None:
    output = """\
src\t/srv/src\tlocal
src/data\t/srv/src/data\tinherited from src
src/old\t/old\treceived
src/none\tnone\tlocal
src/vol\t-\t-
src/new\t/src/new\tdefault
"""
    assert zfs.parse_stream_mountpoints(output) == {"src": "/srv/src", "src/old": "/old"}


def test_a_node_uses_the_mountpoints_that_are_paths() -> None:
    output = "dst\tnone\ndst/a\t/srv/a b\ndst/b\tlegacy\ndst/c\t-\n"
    assert zfs.parse_mountpoints(output) == {"/srv/a b": "dst/a"}
