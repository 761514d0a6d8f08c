"""What may not be sent at all: flags that a side lacks, another format, no room, foreign parts."""

from dataclasses import replace

import pytest

from check_zfs_sync.service import SyncResource
from check_zfs_sync.statefile import Attempt, TargetState
from zfs_sync_agent import judge, pairing, plan, record
from zfs_sync_agent.errors import Refused
from zfs_sync_agent.model import Capabilities, Partial

from .notation import DST, EPOCH, NAMES, SRC, WHO, resource, source, target, tree

CAN = Capabilities(send=frozenset("RwLcpt"), receive=frozenset("soxv"))


def refusal_of_options(given: SyncResource, can: Capabilities = CAN) -> str:
    here = replace(source({"": "sent:1"}), can=can)
    there = replace(target({"": "sent:1"}), can=can)
    try:
        judge.check_options(here, there, given, WHO)
    except Refused as refused:
        return refused.what
    return ""


@pytest.mark.parametrize("words", [(), ("-w", "-L"), ("-c",)])
def test_flags_that_zfs_send_has_are_given(words: tuple[str, ...]) -> None:
    assert refusal_of_options(resource(send_options=words)) == ""


def test_a_flag_that_zfs_send_lacks_is_refused_by_name() -> None:
    told = refusal_of_options(resource(send_options=("-w", "-h", "-e")))
    assert told == "send_options asks for -h -e, which zfs send on osol1 does not have"


def test_a_flag_that_zfs_receive_lacks_is_refused_with_the_node() -> None:
    told = refusal_of_options(resource(receive_options=("-x", "mountpoint", "-M")))
    assert told == "receive_options asks for -M, which zfs receive on osol2 does not have"


def test_u_is_not_in_the_usage_text_of_every_zfs_that_has_it() -> None:
    assert refusal_of_options(resource(receive_options=("-u",))) == ""


def test_where_zfs_prints_no_usage_nothing_is_refused() -> None:
    options = resource(send_options=("-w",), receive_options=("-x", "mountpoint"))
    assert refusal_of_options(options, Capabilities()) == ""


def entry(*flags: str) -> TargetState:
    return record.never(DST)._replace(flags=flags, last_attempt=Attempt(1, 2, "ok", None))


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ((), (), ""),
        (("-w",), ("-w", "-c"), ""),
        (("-c",), ("-e", "-p"), ""),
        (("-w",), (), "-w (raw); the replica was sent with it"),
        ((), ("-w",), "-w (raw); the replica was sent without it"),
        (("-w", "-L"), ("-w",), "-L (large blocks); the replica was sent with it"),
    ],
)
def test_a_chain_keeps_its_format(before: tuple[str, ...], now: tuple[str, ...], told: str) -> None:
    options = resource(send_options=now)
    there = target({"": "sent:1"})
    if not told:
        judge.check_flags(entry(*before), options, there, WHO)
        return
    with pytest.raises(Refused) as refused:
        judge.check_flags(entry(*before), options, there, WHO)
    assert told in refused.value.what


def test_before_the_first_stream_there_is_no_format() -> None:
    never = record.never(DST)._replace(flags=("-w",))
    judge.check_flags(never, resource(), target({"": "sent:1"}), WHO)


def test_a_first_sync_that_does_not_fit_is_refused_with_both_numbers() -> None:
    judge.check_first_room(100, None, target(None), WHO)
    judge.check_first_room(100, 100, target(None), WHO)
    with pytest.raises(Refused, match="needs about 101 bytes, and 100 are available on osol2"):
        judge.check_first_room(101, 100, target(None), WHO)


def test_a_part_is_resumed_by_the_guid_of_what_the_source_still_has() -> None:
    here = tree(SRC, {"": "sent:1 tosend:2", "a": "sent:3 tosend:4"})
    twin = tree(DST, {"b": "sent:3"}).datasets["b"]
    for guid, found in (("4", ("a", "tosend")), ("9", None), (None, None)):
        partial = twin._replace(partial=Partial("1-abc", guid, f"{SRC}/a@tosend"))
        hit = pairing.resumable(here, partial)
        assert (hit and (hit[0], hit[1].name)) == found


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        (f"{SRC}@tosend", True),
        (f"{SRC}/a/b@tosend.osol2", True),
        (f"{SRC}/a@daily", False),
        (f"{SRC}2@tosend", False),
        ("", False),
    ],
)
def test_a_snapshot_that_is_gone_was_ours_by_its_name_below_src(name: str, ours: bool) -> None:
    assert plan.is_sent(name, SRC, resource()) is ours


def test_with_intermediary_any_snapshot_below_src_is_one_that_travels() -> None:
    given = resource(intermediary=True)
    assert plan.is_sent(f"{SRC}/a@daily", SRC, given)
    assert not plan.is_sent("tank/other@daily", SRC, given)


EIGHT = dict.fromkeys(("", *"abcdefg"), "sent:60")
NOW = EPOCH + 60 * 60


def alone(*changed: str, now: int = NOW, words: dict[str, str] = EIGHT, **keys: object) -> str:
    found = judge.few(source(words), frozenset(changed), resource(**keys), NAMES, now)
    return "all" if found is None else " ".join(sorted(name or "root" for name in found))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [((), "root"), (("c",), "c root"), (("", "c"), "c root"), (("b", "c"), "all")],
)
def test_a_quarter_of_the_tree_at_most_is_sent_alone(
    changed: tuple[str, ...], expected: str
) -> None:
    assert alone(*changed) == expected


def test_the_whole_tree_is_sent_once_an_unchanged_dataset_has_an_old_snapshot() -> None:
    words = {**EIGHT, "c": "sent:1", "d": "sent:1"}
    limit = NOW - (EPOCH + 60)
    assert alone("c", words=words, sync_max_delay=limit) == "all"
    assert alone("c", words=words, sync_max_delay=limit + 1) == "c root"
    assert alone("c", words={**words, "d": "sent:60"}, sync_max_delay=limit) == "c root"


def test_a_resource_that_is_one_dataset_has_nothing_to_leave_out() -> None:
    assert alone(words={"": "sent:1"}) == "all"
    assert alone("c", recursive=False) == "all"
