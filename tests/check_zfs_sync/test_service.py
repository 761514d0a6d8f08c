"""The service file: what is read from it, and what is said of each mistake."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from check_zfs_sync.service import (
    KEYS,
    Problem,
    ServiceError,
    SyncResource,
    Target,
    duration_seconds,
    load_service,
    load_services,
    metrics_file,
    size_text,
)

MAN_PAGE = Path(__file__).parents[2] / "man" / "zfs_sync.conf.5"

SEED_FIRST = """\
[sync#1]
type = zfs
src = localpool/data
;dst is optional since it default value is src value (here dst = localpool/data)
;dst = anotherpool/data
target = nodes
"""

SEED_Z3 = """\
[sync#1]
type = zfs
src@osol1.opensvc.com = osol1_z3_root/data
src@osol2.opensvc.com = osol2_z3_root/data
dst@osol1.opensvc.com = osol2_z3_root/data
dst@osol2.opensvc.com = osol1_z3_root/data
target = nodes
;recursive = True
"""

NODES = "[DEFAULT]\nnodes = db1 db2 db3\n"
SECTION = "[sync#1]\ntype = zfs\nsrc = tank/data\n"
SYNC = SECTION + "target = nodes\n"

Write = Callable[..., str]
Load = Callable[..., SyncResource]
Complain = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "web.conf") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def load(write: Write) -> Load:
    """The first resource of a text, as it applies on a node."""

    def load(text: str, nodename: str = "db1") -> SyncResource:
        return load_service(write(text), nodename=nodename).resources[0]

    return load


@pytest.fixture
def complain(write: Write) -> Complain:
    """What is said of a text: one line per problem, the folder left out."""

    def complain(text: str, nodename: str = "db1") -> str:
        path = write(text)
        with pytest.raises(ServiceError) as caught:
            load_service(path, nodename=nodename)
        return str(caught.value).replace(os.path.dirname(path) + "/", "")  # noqa: PTH120 - a str

    return complain


def lines_of(problems: tuple[Problem, ...]) -> list[int]:
    return [problem.line for problem in problems]


# --- The two examples of the scheme ------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodename", "this", "other"),
    [
        ("osol1.opensvc.com", "osol1", "osol2"),
        ("osol2.opensvc.com", "osol2", "osol1"),
        ("osol1", "osol1", "osol2"),
        ("OSOL2", "osol2", "osol1"),
    ],
)
def test_first_example_takes_its_nodes_from_node_conf(
    write: Write, load: Load, nodename: str, this: str, other: str
) -> None:
    write("[DEFAULT]\nnodes = osol1.opensvc.com osol2.opensvc.com\n", "node.conf")
    resource = load(SEED_FIRST, nodename)
    assert resource.nodename == f"{this}.opensvc.com"
    assert (resource.src, resource.dst) == ("localpool/data", "localpool/data")
    assert resource.targets == (Target(f"{other}.opensvc.com", "nodes"),)
    assert (resource.recursive, resource.sync_max_delay) == (True, 1500 * 60)


@pytest.mark.parametrize(
    ("nodename", "this", "other"),
    [
        ("osol1.opensvc.com", "osol1", "osol2"),
        ("osol2.opensvc.com", "osol2", "osol1"),
        ("osol1", "osol1", "osol2"),
    ],
)
def test_z3_example_is_symmetric(write: Write, nodename: str, this: str, other: str) -> None:
    service = load_service(write(SEED_Z3, "z3.opensvc.com.env"), nodename=nodename)
    (resource,) = service.resources
    assert service.name == resource.service == "z3.opensvc.com"
    assert resource.rid == "sync#1"
    assert resource.src == f"{this}_z3_root/data"
    assert resource.dst == f"{other}_z3_root/data"
    assert resource.targets == (Target(f"{other}.opensvc.com", "nodes"),)
    assert resource.sources == {
        "osol1.opensvc.com": "osol1_z3_root/data",
        "osol2.opensvc.com": "osol2_z3_root/data",
    }


def test_example_may_be_indented_as_a_whole(load: Load) -> None:
    indented = "".join(f"    {line}\n" for line in SEED_Z3.splitlines())
    assert load(indented, "osol1").src == "osol1_z3_root/data"


def test_node_that_has_no_src_is_no_source(load: Load) -> None:
    resource = load(SEED_Z3, "backup.opensvc.com")
    assert (resource.src, resource.dst, resource.targets) == (None, None, ())
    assert resource.zfs == {"backup.opensvc.com": ("zfs",)}
    assert set(resource.sources) == {"osol1.opensvc.com", "osol2.opensvc.com"}


# --- Defaults and values -----------------------------------------------------------------------


def test_every_key_has_its_default(load: Load) -> None:
    resource = load(NODES + SYNC)
    assert resource == SyncResource(
        service="web",
        rid="sync#1",
        file=resource.file,
        line=3,
        nodename="db1",
        src="tank/data",
        dst="tank/data",
        targets=(Target("db2", "nodes"), Target("db3", "nodes")),
        recursive=True,
        intermediary=False,
        sync_max_delay=90000,
        snap_prefix="",
        on_divergence="discard",
        on_child_gone="follow",
        replica_readonly=True,
        skip_unchanged=False,
        send_changed=False,
        only_if=None,
        send_options=(),
        receive_options=(),
        stall_timeout=600,
        compress=None,
        buffer={"db1": None, "db2": None, "db3": None},
        rate_limit=None,
        ssh=("ssh",),
        zfs={"db1": ("zfs",), "db2": ("zfs",), "db3": ("zfs",)},
        sudo={"db1": False, "db2": False, "db3": False},
        sources={"db1": "tank/data", "db2": "tank/data", "db3": "tank/data"},
    )


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("recursive = no", False),
        ("recursive = OFF", False),
        ("recursive = 0", False),
        ("recursive = True", True),
        ("intermediary = yes", True),
        ("intermediary = 1", True),
        ("intermediary = on", True),
        ("sync_max_delay = 90", 5400),
        ("sync_max_delay = 1d2h", 93600),
        ("snap_prefix = sync.2.", "sync.2."),
        ("on_divergence = refuse", "refuse"),
        ("on_child_gone = Keep", "keep"),
        ("on_child_gone = stop", "stop"),
        ("replica_readonly = False", False),
        ("skip_unchanged = True", True),
        ("send_changed = True", True),
        ("only_if = test -e /etc/active && id", "test -e /etc/active && id"),
        ("only_if =", None),
        ("send_options = -w -L", ("-w", "-L")),
        ("send_options = -Lce", ("-L", "-c", "-e")),
        ("send_options = -X tank/a,tank/b -h", ("-X", "tank/a,tank/b", "-h")),
        ("send_options =", ()),
        (
            "receive_options = -u -M -x mountpoint -o comment='a b'",
            ("-u", "-M", "-x", "mountpoint", "-o", "comment=a b"),
        ),
        ("stall_timeout = 30", 30),
        ("stall_timeout = 5m", 300),
        ("compress = ZSTD", "zstd"),
        ("compress = lz4", "lz4"),
        ("compress = gzip", "gzip"),
        ("compress = none", None),
        ("compress =", None),
        ("rate_limit = 1500000", 1500000),
        ("rate_limit = 512K", 512 << 10),
        ("rate_limit = 10m", 10 << 20),
        ("rate_limit = None", None),
        ("ssh = ssh -p 2222", ("ssh", "-p", "2222")),
        ("ssh = '/opt/my ssh'", ("/opt/my ssh",)),
        ("dst = backup/my data/x.y:z-1", "backup/my data/x.y:z-1"),
    ],
)
def test_value_is_read(load: Load, setting: str, value: object) -> None:
    resource = load(f"{NODES}{SYNC}{setting}\n")
    assert getattr(resource, setting.split(maxsplit=1)[0]) == value


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("src = pool//data", "empty component in a dataset name"),
        ("src = /tank/data", "does not start with /"),
        ("src = tank/data/", "empty component"),
        ("src =", "a dataset name is missing"),
        ("src = tank/data@now", "has only letters"),
        ("src = tank/data#b", 'a comment after a value starts with " ;"'),
        ("src = tank/dätä", "has only letters"),
        ("src = tank/../data", "'..' cannot be a component"),
        ("src = tank/ data", "' data' cannot be a component"),
        ("src = 1tank/data", "a pool name starts with a letter"),
        ("src = tank/" + "x" * 251, "at most 255 characters"),
        ("src = tank\u00a0/data", "a character that cannot be seen"),
        ("src = tank/\x1b[2Jdata", "a character that cannot be seen"),
        ("dst = tank,backup", "has only letters"),
        ("recursive = maybe", "neither True nor False"),
        ("sync_max_delay = 0", "must be more than 0"),
        ("sync_max_delay = often", "not a duration"),
        ("sync_max_delay = 90 # minutes", 'a comment after a value starts with " ;"'),
        ("snap_prefix = a@b", "letters, digits and _ . : -"),
        ("snap_prefix = " + "x" * 33, "at most 32"),
        ("snap_prefix = tosend.", "must not contain sent or tosend"),
        ("on_divergence = keep", "must be discard or refuse"),
        ("on_child_gone = destroy", "must be follow, keep or stop"),
        ("stall_timeout = 0", "must be more than 0"),
        ("compress = zstd-3", "must be zstd, lz4 or gzip"),
        ("compress = xz", "must be zstd, lz4 or gzip"),
        ("buffer = 128MB", "not a size"),
        ("buffer = 10%", "not a size"),
        ("buffer = " + "9" * 5000, "not a size"),
        ("buffer = 1023K", "must be at least 1M"),
        ("rate_limit = 10M/s", "not a size"),
        ("rate_limit = -1", "not a size"),
        ("rate_limit = 0", "must be at least 1K"),
        ("ssh =", "a command is missing"),
        ("ssh = ssh '-p", "No closing quotation"),
        ("zfs = ''", "a command is missing"),
        ("target = db 2;", "'2;' is not the name of a node"),
        ("target =", "names no target"),
        ("target = -oProxyCommand=x", "is not the name of a node"),
        ("send_options = --raw", "option --raw not recognized"),
        ("send_options = -z", "option -z not recognized"),
        ("send_options = tank/data", "tank/data is not a flag"),
        ("send_options = -X", "option -X requires argument"),
        ("send_options = -X tank//a", "empty component"),
        ("receive_options = -o readonly", "-o readonly sets no value"),
        ("receive_options = -x zfs_sync:rid", "the agent's own mark"),
        ("receive_options = -F", "-F would destroy what the source lacks: remove it"),
        *((f"send_options = -{flag}", "the agent's own choice") for flag in "RnvPsV"),
        *((f"send_options = -{flag} @a", "the agent's own choice") for flag in "Iitd"),
        *((f"receive_options = -{flag}", "the agent's own choice") for flag in "desAnv"),
    ],
)
def test_wrong_value_is_refused_with_an_example(
    complain: Complain, setting: str, words: str
) -> None:
    key = setting.split(maxsplit=1)[0]
    settings = dict(line.split(" = ", 1) for line in SYNC.splitlines() if " = " in line)
    kept = [f"{name} = {value}" for name, value in settings.items() if name != key]
    text = NODES + "\n".join(["[sync#1]", setting, *kept])
    said = complain(text)
    assert said.startswith(f"web.conf:4: [sync#1] {key}")
    assert words in said
    assert "write" in said
    assert said.count("\n") == 0


def test_each_target_has_a_buffer_of_its_own(load: Load) -> None:
    buffer = load(f"{NODES}buffer = 1G\n{SYNC}buffer@db2 = 64M\nbuffer@db3 = none\n").buffer
    assert buffer == {"db1": 1 << 30, "db2": 64 << 20, "db3": None}


@pytest.mark.parametrize(
    ("size", "text"),
    [(1, "1"), (1000, "1000"), (1536, "1536"), (10 << 20, "10M"), (2**41, "2048G")],
)
def test_a_size_is_told_as_it_can_be_written(size: int, text: str) -> None:
    assert size_text(size) == text


def test_message_has_place_value_reason_and_example(complain: Complain) -> None:
    assert complain(NODES + "[sync#1]\ntype = zfs\ntarget = nodes\nsrc = pool//data\n") == (
        "web.conf:6: [sync#1] src = pool//data: empty component in a dataset name; "
        "write for example: src = tank/data"
    )


def test_wrong_value_of_another_node_is_found_on_this_one(complain: Complain) -> None:
    said = complain(NODES + SYNC + "zfs@db3 = 'x\n")
    assert said.startswith("web.conf:7: [sync#1] zfs@db3 = 'x: No closing quotation")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90m", 5400),
        ("26h", 93600),
        ("1d2h", 93600),
        ("45s", 45),
        ("1d2h3m4s", 93784),
        (" 2H ", 7200),
        ("0", 0),
    ],
)
def test_duration_is_in_seconds(text: str, seconds: int) -> None:
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "-1", "1.5h", "h", "2h1d", "1w", "٣", "90 m", "1d,", "9" * 5000, "36501d"]
)
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|hundred"):
        duration_seconds(text)


# --- Lines -------------------------------------------------------------------------------------


def test_comments_are_left_out(load: Load) -> None:
    text = """\
# a comment
[DEFAULT] ; of a header
nodes = db1, db2 ; of a value
  ; indented
  # too
[sync#1]
type = zfs
src = tank/a;b
target = nodes
""".replace("a;b", "a:b\t; after a tab")
    assert load(text).src == "tank/a:b"


def test_lists_are_separated_by_spaces_commas_or_lines(load: Load) -> None:
    text = f"[DEFAULT]\nnodes = db1,db2 , db3\n   db4\n\n{SYNC}"
    assert [target.node for target in load(text).targets] == ["db2", "db3", "db4"]


def test_colon_separates_nothing(complain: Complain) -> None:
    said = complain(NODES + "[sync#1]\ntype = zfs\ntarget = nodes\nsrc: tank/data\n")
    assert "web.conf:6: not a line of the form key = value" in said


def test_keys_and_true_are_read_in_any_case(load: Load) -> None:
    assert load(NODES + SYNC.replace("src", "SRC") + "Recursive = FALSE\n").recursive is False


def test_byte_order_mark_and_carriage_returns_are_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "web.conf"
    path.write_bytes(b"\xef\xbb\xbf" + (NODES + SYNC).replace("\n", "\r\n").encode())
    (resource,) = load_service(str(path), nodename="db1").resources
    assert (resource.src, resource.line) == ("tank/data", 3)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_numbers_are_those_of_an_editor(tmp_path: Path, end: str) -> None:
    text = f"; \x0c one \u2028 line\n\n{NODES}{SYNC}oops\n[sync#2]\ntype = zfs\n"
    path = tmp_path / "web.conf"
    path.write_bytes(text.replace("\n", end).encode())
    with pytest.raises(ServiceError) as caught:
        load_service(str(path), nodename="db1")
    assert lines_of(caught.value.problems) == [9, 10]


def test_all_problems_of_a_file_are_told_at_once_in_order(complain: Complain) -> None:
    text = """\
stray = 1
[DEFAULT]
nodes = db1 db2
[sync#1]
type = zfs
src = tank//data
recursiv = no
target = nodes
oops
[sync#2]
src = tank/other
[sync#3]
type = zfs
compress = zip
"""
    assert complain(text).splitlines() == [
        "web.conf:1: stands before any section; write [DEFAULT] or [sync#1] above it",
        "web.conf:6: [sync#1] src = tank//data: empty component in a dataset name;"
        " write for example: src = tank/data",
        "web.conf:7: [sync#1] recursiv is not a key of a zfs sync section; did you mean recursive?",
        "web.conf:9: not a line of the form key = value; a comment starts with ;",
        "web.conf:10: [sync#2] has no type; write: type = zfs",
        "web.conf:12: [sync#3] src is missing; write for example: src = tank/data",
        "web.conf:14: [sync#3] compress = zip: must be zstd, lz4 or gzip;"
        " write for example: compress = zstd",
    ]


def test_indented_setting_is_not_taken_for_more_of_the_value_above(complain: Complain) -> None:
    said = complain(f"{NODES}{SYNC}only_if = true\n   recursive = False\n")
    assert said == (
        "web.conf:8: [sync#1] indented, this line continues only_if; start it where others start"
    )


@pytest.mark.parametrize("junk", ["[sync#2] src = tank/x", "[sync#2", "= tank/x", "[[sync#2]]"])
def test_broken_header_or_option_is_told(complain: Complain, junk: str) -> None:
    assert "web.conf:7: " in complain(f"{NODES}{SYNC}{junk}\n")


def test_option_set_twice_is_told_with_both_lines(complain: Complain) -> None:
    assert complain(f"{NODES}{SYNC}SRC = tank/other\n") == (
        "web.conf:7: [sync#1] SRC is also set on line 5, as src; keep one of them"
    )


@pytest.mark.parametrize("again", ["src[DB1]", "src@DB1.example.com", "src@db1"])
def test_option_set_twice_for_one_node_is_told(complain: Complain, again: str) -> None:
    text = f"{NODES}[sync#1]\ntype=zfs\ntarget=nodes\nsrc@db1.example.com = t/a\n{again} = t/b\n"
    assert "web.conf:7: [sync#1] " + again + " is also set on line 6" in complain(text)


@pytest.mark.parametrize("header", ["[sync#1]", "[sync#1:DEFAULT]", "[DEFAULT]", "[default]"])
def test_section_written_twice_is_told_with_both_lines(complain: Complain, header: str) -> None:
    first = 1 if "sync" not in header else 3
    assert f"this section is also on line {first}; keep" in complain(NODES + SYNC + header + "\n")


def test_file_that_is_not_utf8_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "web.conf"
    path.write_bytes(b"[DEFAULT]\n; Z\xfcrich\n")
    with pytest.raises(ServiceError, match=r"web.conf:2: not UTF-8 text"):
        load_service(str(path), nodename="db1")


def test_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"web.conf: cannot be read: No such file"):
        load_service(str(tmp_path / "web.conf"), nodename="db1")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_folder_or_pipe_is_no_service_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "web.conf")
    with pytest.raises(ServiceError, match=r"web.conf: not a regular file"):
        load_service(str(tmp_path / "web.conf"), nodename="db1")


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=30),
            st.sampled_from([*SEED_Z3.splitlines(), *NODES.splitlines(), "[sync#2:sync#1]"]),
            st.builds(
                "{}{} = {}".format,
                st.sampled_from([*KEYS, "tags"]),
                st.sampled_from(["", "@db1", "[db2]", "@", "@a b"]),
                st.text(max_size=20),
            ),
        ),
        max_size=12,
    )
)
def test_no_text_raises_anything_but_service_error(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "web.conf"
    path.write_bytes("\n".join(lines).encode())
    try:
        load_service(str(path), nodename="db1")
    except ServiceError as error:
        assert error.problems  # noqa: PT017 - either way is right


# --- Nodes and scopes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scoped", "nodename"),
    [
        ("src@db1.example.com", "db1.example.com"),
        ("src@db1.example.com", "db1"),
        ("src@db1", "db1.example.com"),
        ("src[db1]", "DB1"),
        ("src @ DB1", "db1.example.com"),
    ],
)
def test_scope_of_this_node_wins_over_the_bare_option(
    load: Load, scoped: str, nodename: str
) -> None:
    assert load(f"{NODES}{SYNC}{scoped} = tank/mine\n", nodename).src == "tank/mine"


def test_scope_of_another_node_does_not_apply(load: Load) -> None:
    resource = load(NODES + SYNC + "src@db2 = tank/two\nsrc@stranger = tank/x\n", "db1")
    assert resource.src == "tank/data"
    assert resource.sources["db2"] == "tank/two"
    assert resource.sources["stranger"] == "tank/x"


@pytest.mark.parametrize(
    "setting", ["src@db1 = tank/x", "target = db1", "nodes = db1 db1.a.net db1.b.net"]
)
def test_short_name_that_fits_two_nodes_is_refused(complain: Complain, setting: str) -> None:
    default = "nodes = db1.a.net db1.b.net\n" if "nodes" not in setting else f"{setting}\n"
    more = "" if "nodes" in setting else f"{setting}\n"
    target = "target = nodes\n" if "target" not in setting else ""
    said = complain(f"[DEFAULT]\n{default}{SECTION}{target}{more}", "db1.a.net")
    assert "db1 fits db1.a.net and db1.b.net; write the full name" in said


def test_own_short_name_that_fits_two_nodes_is_refused(complain: Complain) -> None:
    said = complain(f"[DEFAULT]\nnodes = db1.a.net db1.b.net\n{SYNC}", "db1")
    assert "this node is called db1, which fits db1.a.net and db1.b.net; use its full name" in said


def test_target_that_differs_from_this_node_in_its_domain_only_is_refused(
    complain: Complain,
) -> None:
    said = complain(f"[DEFAULT]\nnodes = db1.a.net db2.a.net\n{SYNC}", "db1.local")
    assert "is db1.a.net this node, db1.local?" in said


def test_namesake_in_another_domain_is_another_node(load: Load) -> None:
    resource = load(f"[DEFAULT]\nnodes = db1.a.net db1.b.net\n{SYNC}", "db1.b.net")
    assert resource.targets == (Target("db1.a.net", "nodes"),)


def test_file_with_short_names_gives_short_names(load: Load) -> None:
    resource = load(NODES + SYNC, "db2.example.com")
    assert resource.nodename == "db2"
    assert [target.node for target in resource.targets] == ["db1", "db3"]


@pytest.mark.parametrize("scope", ["nodes", "drpnodes", "encapnodes", "flex_primary", "", "a b"])
def test_scope_that_names_no_node_is_refused(complain: Complain, scope: str) -> None:
    said = complain(f"{NODES}{SYNC}dst@{scope} = tank/x\n")
    assert f"{scope!r} is not the name of a node; write for example: dst@db1 = tank/x" in said


def test_commands_are_those_of_each_node(load: Load) -> None:
    resource = load(
        NODES
        + SYNC
        + "zfs@db2 = /usr/local/sbin/zfs\nsudo = yes\nsudo@db1 = no\n"
        + "ssh = ssh -4\nssh@db2 = ssh -6\n"
    )
    assert resource.zfs == {"db1": ("zfs",), "db2": ("/usr/local/sbin/zfs",), "db3": ("zfs",)}
    assert resource.sudo == {"db1": False, "db2": True, "db3": True}
    assert resource.ssh == ("ssh", "-4")


# --- Targets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("nodes", [("db2", "nodes"), ("db3", "nodes")]),
        ("drpnodes", [("dr1", "drpnodes")]),
        ("nodes drpnodes", [("db2", "nodes"), ("db3", "nodes"), ("dr1", "drpnodes")]),
        ("drpnodes, nodes", [("dr1", "drpnodes"), ("db2", "nodes"), ("db3", "nodes")]),
        ("db3 nodes", [("db3", "named"), ("db2", "nodes")]),
        ("db2 db1 DB2 far", [("db2", "named"), ("far", "named")]),
        ("local db2", [("db1", "local"), ("db2", "named")]),
        ("Local", [("db1", "local")]),
    ],
)
def test_target_words_become_nodes_in_order_without_duplicates(
    load: Load, target: str, expected: list[tuple[str, str]]
) -> None:
    text = f"{NODES}drpnodes = dr1\n{SECTION}dst = backup/data\ntarget = {target}\n"
    assert load(text).targets == tuple(Target(*pair) for pair in expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (NODES + SECTION, "target is missing; write for example: target = nodes"),
        (SYNC, "there are no nodes; write in [DEFAULT] or node.conf: nodes = db1 db2"),
        ("[DEFAULT]\nnodes =\n" + SYNC, "there are no nodes"),
        (NODES + SECTION + "target = drpnodes\n", "there are no drpnodes"),
        (NODES + SECTION + "target = db1\n", "no node is left that receives"),
        ("[DEFAULT]\nnodes = db1\n" + SYNC, "no node is left that receives"),
        (NODES + "[sync#1]\ntype = zfs\ntarget = nodes\n", "src is missing"),
        (NODES + SYNC + "nodes = db1\n", "nodes belongs to [DEFAULT]"),
    ],
)
def test_resource_without_src_or_target_is_refused(
    complain: Complain, text: str, words: str
) -> None:
    said = complain(text)
    assert words in said
    assert said.count("\n") == 0


def test_target_is_not_asked_of_a_node_that_does_not_send(load: Load) -> None:
    resource = load("[sync#1]\ntype = zfs\nsrc@db1 = tank/data\ntarget@db1 = db2\n", "db2")
    assert (resource.src, resource.targets) == (None, ())


@pytest.mark.parametrize(
    ("dst", "words"),
    [
        ("", "needs a dst; write for example: dst = backup/data"),
        ("dst = tank/data", "must not share a tree"),
        ("dst = tank/data/copy", "must not share a tree"),
        ("dst = tank", "must not share a tree"),
    ],
)
def test_local_dst_must_be_elsewhere(complain: Complain, dst: str, words: str) -> None:
    said = complain(f"{SECTION}target = local\n{dst}\n")
    assert words in said
    assert said.count("\n") == 0


def test_local_dst_beside_src_is_right(load: Load) -> None:
    assert load(f"{SECTION}target = local\ndst = tank/data2\n").dst == "tank/data2"


def test_nodes_of_the_scopes_stand_in_for_missing_nodes(load: Load) -> None:
    resource = load(
        "[sync#1]\ntype=zfs\nsrc@a.x = t/a\nsrc@b.x = t/b\nzfs@c = z\ntarget=nodes\n", "a"
    )
    assert [target.node for target in resource.targets] == ["b.x", "c"]


# --- Levels: inheritance, [DEFAULT], node.conf --------------------------------------------------


def test_section_inherits_what_it_does_not_set(write: Write) -> None:
    child = "[sync#2 : sync#1]\nsnap_prefix = sync.2.\ndst = tank/copy\n"
    service = load_service(write(NODES + SYNC + "recursive = no\n" + child), nodename="db1")
    second = service.resources[1]
    assert (second.rid, second.line) == ("sync#2", 8)
    assert (second.src, second.dst, second.recursive) == ("tank/data", "tank/copy", False)


def test_chain_of_parents_is_followed_whatever_their_order(load: Load) -> None:
    text = "[sync#1:middle]\n[middle:far]\ntarget = db2\n[far]\ntype = zfs\nsrc = tank/far\n"
    resource = load(text)
    assert (resource.rid, resource.src) == ("sync#1", "tank/far")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[sync#1:base]\ntype = zfs\n", "inherits from [base], which is not in this file"),
        ("[sync#1:sync#1]\ntype = zfs\n", "inherits from itself: sync#1 from sync#1"),
        ("[sync#1:b]\n[b:c]\n[c:b]\n", "inherits from itself: sync#1 from b from c from b"),
    ],
)
def test_parent_that_is_missing_or_circular_is_refused(
    complain: Complain, text: str, words: str
) -> None:
    said = complain(text)
    assert words in said
    assert said.count("\n") == 0


def test_nearest_level_decides_before_the_scope(write: Write) -> None:
    parent = "[sync#1]\ntype = zfs\nsrc = tank/bare\nsrc@db1 = tank/scoped\ntarget = nodes\n"
    child = "[sync#2:sync#1]\nsrc = tank/child\n"
    service = load_service(write(NODES + parent + child), nodename="db1")
    assert [resource.src for resource in service.resources] == ["tank/scoped", "tank/child"]


def test_file_default_wins_over_node_conf_and_section_over_both(write: Write, load: Load) -> None:
    write(
        "[DEFAULT]\nnodes = x y\nzfs = z1\nsync_max_delay = 1h\non_divergence = refuse\n",
        "node.conf",
    )
    resource = load(NODES + "zfs = z2\nsync_max_delay = 2h\n" + SYNC + "sync_max_delay = 3h\n")
    assert [target.node for target in resource.targets] == ["db2", "db3"]
    assert resource.zfs["db1"] == ("z2",)
    assert resource.sync_max_delay == 3 * 3600
    assert resource.on_divergence == "refuse"


def test_problem_in_node_conf_is_told_with_its_place_once(write: Write, tmp_path: Path) -> None:
    write("[DEFAULT]\nnodes = db1 db2\nrecursive = maybe\n", "node.conf")
    write(SYNC, "a.conf")
    write(SYNC.replace("data", "other"), "b.conf")
    services, problems = load_services(str(tmp_path), nodename="db1")
    assert services == ()
    assert len(problems) == 1
    assert str(problems[0]).startswith(f"{tmp_path}/node.conf:3: [DEFAULT] recursive = maybe: ")


def test_metrics_file_is_that_of_node_conf(write: Write, tmp_path: Path) -> None:
    assert metrics_file(str(tmp_path), nodename="db1") is None
    write("[DEFAULT]\nmetrics_file = /a.prom\nmetrics_file@db2 = /b.prom\n", "node.conf")
    files = [metrics_file(str(tmp_path), nodename=node) for node in ("db1", "db2.example.com")]
    assert files == ["/a.prom", "/b.prom"]


@pytest.mark.parametrize("value", ["zfs_sync.prom", "/var/lib/zfs_sync.txt"])
def test_a_metrics_file_that_no_collector_would_read_is_refused(
    write: Write, tmp_path: Path, value: str
) -> None:
    write(f"[DEFAULT]\nmetrics_file = {value}\n", "node.conf")
    path = write(NODES + SYNC)
    with pytest.raises(ServiceError, match=r"an absolute path of a file whose name ends in \.prom"):
        load_service(path, nodename="db1")
    assert metrics_file(str(tmp_path), nodename="db1") is None


def test_a_metrics_file_in_a_service_file_is_told_where_it_belongs(complain: Complain) -> None:
    expected = "metrics_file belongs to [DEFAULT] of node.conf: one file tells of all services"
    assert expected in complain(NODES + SYNC + "metrics_file = /a.prom\n")
    assert expected in complain(NODES + "metrics_file = /a.prom\n" + SYNC)


# --- Left alone --------------------------------------------------------------------------------


def test_what_belongs_to_opensvc_is_left_alone_and_listed(write: Write) -> None:
    text = """\
[DEFAULT]
nodes = db1 db2
app = shop
[fs#1]
type = zfs
dev = tank/data
dev = again
  a = b
[sync#1]
type = zfs
src = tank/data
target = nodes
schedule = @10
pre_sync_nodes = /bin/true
disable = False
[sync#2]
type = rsync
src = /etc
[sync#3]
type = zfs
disable = True
src = nonsense//
"""
    path = write(text)
    write("[DEFAULT]\n[cluster]\nname = x\n", "node.conf")
    service = load_service(path, nodename="db1")
    assert [resource.rid for resource in service.resources] == ["sync#1"]
    assert [line.replace(path.removesuffix("web.conf"), "") for line in service.ignored] == [
        "node.conf:2: [cluster] left alone: only [DEFAULT] is read here",
        "web.conf:3: [DEFAULT] left alone: app is not a key of zfs_sync",
        "web.conf:4: [fs#1] left alone: not a sync section",
        "web.conf:13: [sync#1] left alone: schedule is not a key of zfs_sync",
        "web.conf:14: [sync#1] left alone: pre_sync_nodes is not a key of zfs_sync",
        "web.conf:16: [sync#2] left alone: type = rsync",
        "web.conf:19: [sync#3] skipped: disable = True",
    ]


def test_resource_can_be_disabled_on_one_node(write: Write) -> None:
    path = write(NODES + SYNC + "disable@db2 = yes\n")
    assert len(load_service(path, nodename="db1").resources) == 1
    assert len(load_service(path, nodename="db2").resources) == 0


def test_opensvc_file_without_zfs_sync_is_right_whatever_its_defaults(write: Write) -> None:
    text = "[DEFAULT]\nnodes = {clusternodes}\n[sync#1]\ntype = rsync\n"
    assert load_service(write(text), nodename="db1").resources == ()


def test_unknown_key_without_a_neighbour_points_to_the_manual(complain: Complain) -> None:
    assert "zzz is not a key of a zfs sync section; see zfs_sync.conf(5)" in complain(
        NODES + SYNC + "zzz = 1\n"
    )


def test_sync_section_without_type_is_told_what_to_write(complain: Complain) -> None:
    assert complain("[sync#1]\nsrc = tank/data\n") == (
        "web.conf:1: [sync#1] has no type; write: type = zfs"
    )


def test_type_of_one_node_is_refused(complain: Complain) -> None:
    assert "the type is the same on every node" in complain(NODES + SYNC + "type@db1 = zfs\n")


@pytest.mark.parametrize("name", ["sync1", "sync", "SYNC#1", "sync#", "sync#1/2"])
def test_section_that_looks_like_sync_is_not_left_alone(complain: Complain, name: str) -> None:
    assert f"[{name}] not the name of a sync section" in complain(f"[{name}]\ntype = zfs\n")


# --- Resources that must not meet --------------------------------------------------------------


def two(first: str, second: str) -> str:
    """A file of two resources, each written `src -> dst TARGET, more settings`."""
    text = "[DEFAULT]\nnodes = db1 db2\n"
    for number, line in enumerate((first, second), 1):
        datasets, *more = line.split(", ")
        src, _, dst, target = datasets.split(" ")
        text += f"[sync#{number}]\ntype = zfs\nsrc = {src}\ndst = {dst}\ntarget = {target}\n"
        text += "".join(f"{setting}\n" for setting in more)
    return text


CLASHES = [
    ("t/a -> b/a db2", "t/a -> b/b db3", "sync#2", "both take @sent of t/a"),
    ("t/a -> b/a db2", "t/a/x -> c/x db3", "sync#2", "both take @sent of t/a/x"),
    ("t/a/x -> b/a db2", "t/a -> c/x db3", "sync#1", "both take @sent of t/a/x"),
    (
        "t/a -> b/a db2, snap_prefix = p.",
        "t/a -> b/b db3, snap_prefix = p.",
        "sync#2",
        "both take @p.sent of t/a",
    ),
    ("t/a -> b/a db2, recursive = no", "t/a -> b/b db3", "sync#2", "both take @sent of t/a"),
    ("t/a -> b/a db2", "t/a/x -> c/x db3, recursive = no", "sync#2", "both take @sent of t/a/x"),
    (
        "t/a -> b/a db2",
        "t/b -> b/a db2, snap_prefix = p.",
        "sync#2",
        "both write to b/a on db2; write another dst",
    ),
    ("t/a -> b/a db2", "t/b -> b/a/c nodes", "sync#2", "both keep @sent of b/a/c on db2"),
    ("t/a/x -> b/c local", "b -> d/e db2, snap_prefix = p.", "sync#1", "lies in src = b"),
    ("t/a/x -> b/c local", "b/c -> d/e db2, snap_prefix = p.", "sync#1", "lies in src = b/c"),
]

PEACE = [
    ("t/a -> b/a db2", "t/b -> b/b db2"),
    ("t/a -> b/a db2", "t/a -> b/b db2, snap_prefix = p."),
    ("t/a -> b/a db2, recursive = no", "t/a/x -> c/x db2"),
    ("t/a -> b/a db2", "t/ab -> b/ab db2"),
    ("t/a -> b/a db2", "t/b -> b/a db3"),
    ("t/a -> b/a db2", "t/b -> b/a/c db2, snap_prefix = p."),
    ("t/a -> b/a db2, recursive = no", "t/b -> b/a/c db2"),
    ("t/a -> b/c local", "b -> d/e db2, recursive = no"),
    ("t/a -> b/c local", "b/c/d -> d/e db2"),
]


@pytest.mark.parametrize(("first", "second", "rid", "words"), CLASHES)
def test_resources_of_one_file_that_meet_are_refused(
    complain: Complain, first: str, second: str, rid: str, words: str
) -> None:
    said = complain(two(first, second))
    assert f"[{rid}] web/{rid} (" in said
    assert " and web/sync#" in said
    assert words in said
    assert said.count("\n") == 0


@pytest.mark.parametrize(("first", "second"), PEACE)
def test_resources_that_do_not_meet_are_right(write: Write, first: str, second: str) -> None:
    assert len(load_service(write(two(first, second)), nodename="db1").resources) == 2


@pytest.mark.parametrize(("first", "second", "rid", "words"), CLASHES)
def test_resources_of_two_files_that_meet_are_both_dropped(
    tmp_path: Path, first: str, second: str, rid: str, words: str
) -> None:
    text = two(first, second)
    head, one, other = text.partition("[sync#1]")[0], *text.split("[sync#")[1:]
    (tmp_path / "a.conf").write_text(f"{head}[sync#{one}", encoding="utf-8")
    (tmp_path / "b.conf").write_text(f"{head}[sync#{other}", encoding="utf-8")
    (tmp_path / "c.conf").write_text(NODES + SYNC, encoding="utf-8")
    services, problems = load_services(str(tmp_path), nodename="db1")
    assert [service.name for service in services] == ["c"]
    (problem,) = problems
    assert problem.section == rid
    assert "a/sync#1 (" in problem.text
    assert "b/sync#2 (" in problem.text
    assert words in problem.text


def test_clash_on_the_other_node_is_not_this_nodes(write: Write, tmp_path: Path) -> None:
    write(NODES + SYNC, "a.conf")
    write(NODES + SYNC.replace("src", "src@db2"), "b.conf")
    assert load_services(str(tmp_path), nodename="db1")[1] == ()
    assert len(load_services(str(tmp_path), nodename="db2")[1]) > 0


def test_short_and_full_name_of_two_files_are_one_target(write: Write, tmp_path: Path) -> None:
    write("[sync#1]\ntype=zfs\nsrc=t/a\ndst=b/a\ntarget=db2\n", "a.conf")
    write("[sync#1]\ntype=zfs\nsrc=t/b\ndst=b/a\ntarget=db2.example.com\n", "b.conf")
    assert "both write to b/a" in str(load_services(str(tmp_path), nodename="db1")[1][0])


def test_disabled_resource_meets_nothing(write: Write) -> None:
    path = write(two("t/a -> b/a db2", "t/a -> b/a db2, disable = True"))
    assert len(load_service(path, nodename="db1").resources) == 1


# --- Folders -----------------------------------------------------------------------------------


def test_services_of_a_folder_are_read_in_order_of_name(write: Write, tmp_path: Path) -> None:
    write(NODES + SYNC.replace("data", "b"), "b.env")
    write(NODES + SYNC.replace("data", "a"), "a.conf")
    for name in ("node.conf", ".hidden.conf", "a.conf~", "README"):
        write("[DEFAULT]\n", name)
    services, problems = load_services(str(tmp_path), nodename="db1")
    assert [service.name for service in services] == ["a", "b"]
    assert problems == ()


def test_broken_file_does_not_stop_the_others(write: Write, tmp_path: Path) -> None:
    write("oops\n", "a.conf")
    write(NODES + SYNC, "b.conf")
    services, problems = load_services(str(tmp_path), nodename="db1")
    assert [service.name for service in services] == ["b"]
    assert [problem.file for problem in problems] == [f"{tmp_path}/a.conf"]


def test_names_choose_services_and_their_problems(write: Write, tmp_path: Path) -> None:
    write("oops\n", "a.conf")
    write(NODES + SYNC, "b.conf")
    write(NODES + SYNC.replace("data", "c"), "c.conf")
    services, problems = load_services(str(tmp_path), nodename="db1", names=["c", "b"])
    assert [service.name for service in services] == ["c", "b"]
    assert problems == ()


def test_chosen_service_is_compared_with_all_others(write: Write, tmp_path: Path) -> None:
    write(NODES + SYNC, "a.conf")
    write(NODES + SYNC, "b.conf")
    services, problems = load_services(str(tmp_path), nodename="db1", names=["a"])
    assert services == ()
    assert all("b/sync#1" in problem.text for problem in problems)
    assert len(problems) > 0


def test_unknown_service_is_told_with_what_there_is(write: Write, tmp_path: Path) -> None:
    write(NODES + SYNC, "b.conf")
    services, problems = load_services(str(tmp_path), nodename="db1", names=["x", "b"])
    assert len(services) == 1
    assert [str(problem) for problem in problems] == [
        f"{tmp_path}: no service x: there is no x.conf and no x.env; there is b"
    ]


def test_missing_folder_is_a_problem(tmp_path: Path) -> None:
    services, problems = load_services(str(tmp_path / "none"), nodename="db1")
    assert services == ()
    assert "none: cannot be read: No such file or directory" in str(problems[0])


def test_two_files_of_one_service_are_refused(write: Write, tmp_path: Path) -> None:
    write(NODES + SYNC, "a.conf")
    path = write(NODES + SYNC, "a.env")
    services, problems = load_services(str(tmp_path), nodename="db1")
    assert services == ()
    assert "a also has the file" in str(problems[0])
    with pytest.raises(ServiceError, match=r"a.env: a also has the file .*a.conf"):
        load_service(path, nodename="db1")


@pytest.mark.parametrize("name", ["a b.conf", "ä.conf", "a#1.conf", "a\nb.conf", "-a.env"])
def test_service_name_fit_for_no_state_file_is_refused(
    write: Write, tmp_path: Path, name: str
) -> None:
    write(NODES + SYNC, name)
    (problem,) = load_services(str(tmp_path), nodename="db1")[1]
    assert "a service name has only" in problem.text
    assert "\n" not in str(problem)


def test_file_name_of_any_bytes_is_told(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.conf")).write_text("", encoding="utf-8")
    (problem,) = load_services(str(tmp_path), nodename="db1")[1]
    assert str(problem).encode()


# --- The manual --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_in_the_manual_with_its_default(key: str) -> None:
    entry = MAN_PAGE.read_text(encoding="utf-8").partition(f".It Cm {key} ")[2].partition(".It")[0]
    default = KEYS[key][0]
    assert entry, f"{key} has no .It Cm line"
    assert default in ("none", "src") or default in entry.replace("\\&", "")


def examples() -> list[str]:
    blocks = MAN_PAGE.read_text(encoding="utf-8").split(".Bd -literal -offset indent\n")[1:]
    return [block.partition(".Ed\n")[0] for block in blocks]


@pytest.mark.parametrize("text", examples())
def test_examples_of_the_manual_are_right_on_every_node(write: Write, text: str) -> None:
    nodes = set(re.findall(r"\b(?:db|dr|osol)\d[a-z.]*", text))
    assert len(nodes) > 1
    for nodename in nodes:
        assert len(load_service(write(text), nodename=nodename).resources) > 0


def test_values_cannot_be_changed(load: Load) -> None:
    resource = load(NODES + SYNC)
    with pytest.raises(AttributeError):
        resource.src = "other"  # type: ignore[misc] # that is the point
    with pytest.raises(TypeError):
        resource.zfs["db1"] = ("x",)  # type: ignore[index] # that is the point
