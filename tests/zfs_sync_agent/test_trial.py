"""What a node answers becomes one line for each item: ok, or what is wrong and what to type."""

from collections.abc import Mapping

import pytest

from check_zfs_sync.service import SyncResource, Target
from zfs_sync_agent import trial
from zfs_sync_agent.errors import NoAnswer
from zfs_sync_agent.model import Standing
from zfs_sync_agent.transport import Answer
from zfs_sync_agent.trial import Item, Place

from .notation import DST, EPOCH, SRC, resource

STATE_DIR = "/var/lib/zfs_sync"
TEXT = "[sync#1]\ntype = zfs\n"
USAGE = "usage: zfs\n  send [-Lw] <snapshot>\n  receive [-u] [-x <property>] <filesystem>\n"
NOTHING = Answer(0, "", "")
POOL, DATASET = "zfs list -H -o name", "zfs list -H -t filesystem,volume -o name"
NOBODY: frozenset[str] = frozenset()


def places(*resources: SyncResource, new: bool = False) -> list[Place]:
    texts = {one.file: TEXT for one in resources}
    return trial.places(resources, texts, STATE_DIR, new=new)


def absent(name: str) -> Answer:
    return Answer(1, "", f"cannot open '{name}': dataset does not exist\n")


def said(text: str) -> Answer:
    return Answer(0, f"{text}\n", "")


# What a node answers where all is as it has to be, by what the question begins with.
FINE = {
    "true": NOTHING,
    "date": said(str(EPOCH)),
    "id": said("root"),
    "sh -c d=": said(STATE_DIR),
    "sh -c for": Answer(0, f"/etc/zfs_sync/z3.conf\n{TEXT}", ""),
    "command": said("/usr/sbin/zfs"),
    "zfs": Answer(2, "", USAGE),
    POOL: said("pool"),
    DATASET: NOTHING,
    f"{DATASET} {DST}": absent(DST),
    "zfs get": NOTHING,
}


def items(
    place: Place, changes: Mapping[str, Answer] | None = None, *, standbys: frozenset[str] = NOBODY
) -> list[Item]:
    """Return what is found of a node that answers so, and else as it has to be."""
    known = {**FINE, **(changes or {})}
    answers = []
    for argv in trial.questions(place):
        line = " ".join(argv).removeprefix("sudo -n ")
        answers.append(known[max((one for one in known if line.startswith(one)), key=len)])
    return list(trial.findings(place, answers, EPOCH, standbys))


def wrong(place: Place, changes: Mapping[str, Answer], **options: frozenset[str]) -> list[str]:
    """Return what is wrong, without the node."""
    found = items(place, changes, **options)
    return [str(one).partition(": ")[2] for one in found if one.advice]


def here(*resources: SyncResource) -> Place:
    return places(*(resources or (resource(),)))[0]


def there(*resources: SyncResource, new: bool = False) -> Place:
    return places(*(resources or (resource(),)), new=new)[1]


# --- what is asked ----------------------------------------------------------------------------


def test_no_question_changes_anything() -> None:
    for place in places(resource()):
        asked = [argv for argv in trial.questions(place) if argv[0] == "zfs"]
        assert {argv[1] for argv in asked if len(argv) > 1} == {"list", "get"}


def test_a_node_of_many_resources_is_one_place() -> None:
    other = resource(rid="sync#2", src="tank/b", dst="tank/b")
    found = places(resource(), other)
    assert [(one.node, one.ssh, len(one.errands)) for one in found] == [
        ("osol1", (), 2),
        ("osol2", ("ssh",), 2),
    ]
    assert len(found[1].copies) == 1


def test_a_node_with_two_ways_to_it_is_tried_on_both() -> None:
    other = resource(rid="sync#2", src="tank/b", dst="tank/b", ssh=("ssh", "-p", "2222"))
    assert [one.ssh for one in places(resource(), other)] == [(), ("ssh",), ("ssh", "-p", "2222")]


def test_a_local_target_is_no_other_place() -> None:
    (place,) = places(resource(targets=(Target("osol1", "local"),), dst="backup/data"))
    assert [one.dataset for one in place.errands] == [SRC, "backup/data"]


def test_a_node_that_only_receives_asks_nobody_else() -> None:
    (place,) = places(resource(src=None, dst=None, targets=()))
    assert [str(one) for one in items(place)] == [
        f"osol1: state folder {STATE_DIR}: ok: writable",
    ]


# --- a node that is as it has to be -----------------------------------------------------------


def test_each_item_is_a_line() -> None:
    lines = [str(one) for place in (here(), there()) for one in items(place)]
    assert lines == [
        f"osol1: state folder {STATE_DIR}: ok: writable",
        "osol1: zfs: ok: /usr/sbin/zfs, as root",
        f"osol1: z3/sync#1: src {SRC}: ok: there",
        "osol2: ssh: ok: as root",
        "osol2: clock: ok: as this node's",
        f"osol2: state folder {STATE_DIR}: ok: writable",
        "osol2: service file /etc/zfs_sync/z3.conf: ok: the same as here",
        "osol2: zfs: ok: /usr/sbin/zfs, as root",
        f"osol2: z3/sync#1: dst {DST}: ok: not there yet; its pool is",
    ]


def test_one_zfs_for_two_resources_is_told_once() -> None:
    other = resource(rid="sync#2", src="tank/b", dst="tank/b")
    assert [one.what for one in items(here(resource(), other))].count("zfs") == 1


def test_what_a_login_shell_says_of_itself_is_no_answer() -> None:
    assert wrong(here(), {"true": said("Welcome to osol1!")}) == []


# --- ssh --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("ssh: Could not resolve hostname osol2: Name or service not known", "write its address"),
        (
            "Host key for osol2 has changed and you have requested strict checking.\n"
            "Host key verification failed.",
            "if it was installed anew: ssh-keygen -R osol2; then ssh -p 22 osol2 true",
        ),
        ("Host key verification failed.", "ssh -p 22 osol2 true, and compare the fingerprint"),
        ("root@osol2: Permission denied (publickey).", "ssh-copy-id -p 22 osol2; without a key"),
        ("ssh: connect to host osol2 port 22: Connection refused", "start sshd there"),
        ("ssh: connect to host osol2 port 22: Connection timed out", "ping osol2: is it up"),
        ("ssh: connect to host osol2 port 22: No route to host", "ping osol2: is it up"),
        ("kex_exchange_identification: read: Connection reset", "try: ssh"),
    ],
)
def test_a_node_that_ssh_does_not_reach_is_one_line(words: str, advice: str) -> None:
    place = there(resource(ssh=("ssh", "-p", "22")))
    error = NoAnswer("no answer", detail=f"exit 255\n{words}", hint="try: ssh osol2 true")
    found = trial.unreached(place, error)
    assert (found.what, found.said) == ("ssh", words.splitlines()[-1])
    assert found.advice.startswith(advice)


def test_a_node_without_an_ssh_program_says_so() -> None:
    found = trial.unreached(there(), NoAnswer("there is no program ssh", hint="install it"))
    assert str(found) == "osol2: ssh: there is no program ssh; next: install it"


# --- clock, folder, file ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (str(EPOCH + 60), []),
        (str(EPOCH - 60), []),
        (str(EPOCH + 61), ["clock: 61 s ahead of this node's; next: date on both; "]),
        (str(EPOCH - 61), ["clock: 61 s behind this node's; next: date on both; "]),
        ("%s", ["clock: date +%s says %s; next: ssh osol2 'date +%s'"]),
    ],
)
def test_clocks_may_differ_by_what_the_check_allows(answer: str, line: list[str]) -> None:
    found = wrong(there(), {"date": said(answer)})
    assert len(found) == len(line)
    assert all(one.startswith(begin) for one, begin in zip(found, line, strict=True))


def test_a_state_folder_that_a_run_would_make_is_well() -> None:
    found = items(there(), {"sh -c d=": said("/var/lib")})
    assert f"osol2: state folder {STATE_DIR}: ok: can be made in /var/lib" in map(str, found)


def test_a_state_folder_that_cannot_be_written_is_told_with_who_and_where() -> None:
    assert wrong(there(), {"sh -c d=": Answer(1, "/var/my lib\n", ""), "id": said("backup")}) == [
        f"state folder {STATE_DIR}: backup cannot write to /var/my lib; next: make it writable:"
        " ls -ld '/var/my lib'; df '/var/my lib'"
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [("", 1), ("[sync#1]\n", 2), ("[sync#1]\ntype = zfs", 3), (f"{TEXT}src = tank\n", 3)],
)
def test_another_service_file_is_told_by_the_first_line_that_differs(text: str, line: int) -> None:
    answer = Answer(0, f"/etc/zfs_sync/z3.env\n{text}", "")
    assert wrong(there(), {"sh -c for": answer}) == [
        f"service file /etc/zfs_sync/z3.env: differs from the one here, first in line {line}; next:"
        " ssh osol2 'cat /etc/zfs_sync/z3.env'; keep the right one on both nodes"
    ]


def test_a_service_file_that_cannot_be_read_is_not_taken_for_another() -> None:
    answer = Answer(1, "/etc/zfs_sync/z3.conf\n", "cat: /etc/zfs_sync/z3.conf: Permission denied\n")
    (line,) = wrong(there(), {"sh -c for": answer})
    assert "Permission denied; next: make it readable: ssh osol2 " in line


def test_a_service_file_is_missing_only_where_a_node_may_send() -> None:
    nothing = {"sh -c for": NOTHING}
    sender = resource(sources={"osol1": SRC, "osol2": DST})
    assert wrong(there(sender), nothing) == [
        "service file /etc/zfs_sync/z3.conf: is not there; next: ssh osol2 'mkdir -p /etc/zfs_sync"
        " && cat >/etc/zfs_sync/z3.conf' </etc/zfs_sync/z3.conf"
    ]
    assert wrong(there(sender, new=True), nothing) == []
    assert wrong(there(resource(sources={"osol1": SRC})), nothing) == []


# --- zfs --------------------------------------------------------------------------------------


def test_nothing_is_said_of_datasets_where_there_is_no_zfs() -> None:
    assert wrong(there(), {"command": Answer(127, "", "")}) == [
        "zfs: there is no program zfs; next: install ZFS there, or name its command:"
        " zfs@osol2 = /path/to/zfs"
    ]


def test_a_zfs_that_cannot_answer_is_told_in_its_own_words() -> None:
    dead = Answer(1, "", "The ZFS modules are not loaded.\nTry running 'modprobe zfs' as root.\n")
    (line,) = wrong(there(), {"zfs": dead, POOL: dead, DATASET: dead, f"{DATASET} {DST}": dead})
    assert line.startswith("zfs: Try running 'modprobe zfs' as root.; next: mend what it says")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(1, "", "sudo: a password is required\n"),
        Answer(127, "", "sh: 1: sudo: not found\n"),
    ],
)
def test_sudo_that_asks_is_told_with_the_line_for_sudoers(answer: Answer) -> None:
    sudo = resource(sudo={"osol2": True})
    assert wrong(there(sudo), {"zfs": answer, POOL: answer, "id": said("backup")}) == [
        f"zfs: {answer.stderr.strip()}; next: visudo there: backup ALL=(root) NOPASSWD:"
        " /usr/sbin/zfs"
    ]
    assert "osol2: zfs: ok: /usr/sbin/zfs, by sudo" in map(str, items(there(sudo)))


@pytest.mark.parametrize(("node", "pool"), [(0, "osol1_z3_root"), (1, "osol2_z3_root")])
def test_a_pool_that_is_not_there_is_told_by_its_name(node: int, pool: str) -> None:
    place = places(resource())[node]
    (line,) = wrong(place, {POOL: absent(pool), DATASET: absent(place.errands[0].dataset)})
    assert f": there is no pool {pool}; next: zpool import {pool} there, " in line


def test_a_dataset_that_cannot_be_read_is_not_taken_for_absent() -> None:
    (line,) = wrong(here(), {DATASET: Answer(1, "", "cannot open: pool I/O is suspended\n")})
    assert line.endswith(f"src {SRC}: cannot open: pool I/O is suspended; next: mend what it says")


def test_a_src_that_is_missing_is_told_with_both_ways_out() -> None:
    assert wrong(here(), {DATASET: absent(SRC)}) == [
        f"z3/sync#1: src {SRC}: does not exist; next: zfs create -p {SRC}; or, if another node is"
        " to send first, run zfs_sync_agent syncupdate there"
    ]


@pytest.mark.parametrize(
    ("mark", "told"),
    [
        ("osol1/z3/sync#1", "ok: the replica"),
        ("osol9/z3/sync#1", "ok: the replica"),
        ("osol1/z4/sync#1", "the replica of osol1/z4/sync#1; next: write another dst"),
        (Standing(source_since=EPOCH).value, "ok: the source"),
        (Standing(repair="osol1/z3/sync#1").value, "ok: the replica"),
        (None, "exists, and is not a replica of this resource; next: write another dst, or move"),
    ],
)
def test_a_dst_that_exists_is_judged_by_its_mark(mark: str | None, told: str) -> None:
    marks = said(f"zfs_sync:replica\t{mark}\tlocal") if mark else NOTHING
    *_, item = items(there(), {f"{DATASET} {DST}": NOTHING, "zfs get": marks})
    assert str(item).startswith(f"osol2: z3/sync#1: dst {DST}: {told}")


def test_on_a_standby_the_other_nodes_dataset_is_the_source() -> None:
    place = here()
    marks = said("zfs_sync:replica\tosol2/z3/sync#1\tlocal")
    answers = [marks if argv[:2] == ("zfs", "get") else NOTHING for argv in trial.questions(place)]
    standbys = trial.standing_by(place, answers)
    assert standbys == {"z3/sync#1"}
    there_is = {f"{DATASET} {DST}": NOTHING}
    assert wrong(there(), there_is, standbys=standbys) == []
    assert len(wrong(there(), there_is)) == 1


def test_options_are_compared_with_what_that_nodes_zfs_has() -> None:
    one = resource(send_options=("-w", "-X", "tank/a"), receive_options=("-x", "mountpoint", "-u"))
    assert wrong(here(one), {}) == [
        "z3/sync#1: send_options: zfs send does not have -X; next: take it out of the service file,"
        " or update ZFS there; zfs send shows what it has"
    ]
    assert items(there(one))[-1] == Item(
        "osol2", "z3/sync#1: receive_options", "-x mountpoint -u", ""
    )
