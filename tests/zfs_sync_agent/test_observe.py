"""What is read of the two sides: no answer is never taken for one."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from zfs_sync_agent import observe, transport
from zfs_sync_agent.errors import NoAnswer
from zfs_sync_agent.model import Capabilities, Names, Partial, TargetView, Tree
from zfs_sync_agent.observe import Side
from zfs_sync_agent.transport import Answer, Shell

from .fakerun import FakeShell
from .fakezfs import Dataset, Snap
from .notation import DST, SRC, WHO, tree
from .worlds import world

GONE = "cannot resume send: 'tank/data@tosend' used in the initial send no longer exists"
CONTENTS = "resume token contents:\n\ttoguid = 0x1f\n\ttoname = tank/data@tosend\n"


def cut() -> Tree:
    """Return a target whose root holds a part of something."""
    whole = tree(DST, {"": "sent:1"})
    return replace(whole, datasets={"": whole.datasets[""]._replace(partial=Partial("1-abc"))})


def source(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> Side:
    shell = Shell("osol1", ())
    monkeypatch.setattr(shell, "run", lambda *_: answer)
    side = Side(shell, ("zfs",), sudo=False)
    side.can = Capabilities(send=frozenset("t"), receive=frozenset("s"))
    return side


@pytest.mark.parametrize("status", [0, 255])
def test_a_token_says_what_it_is_for_also_where_that_is_gone(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = source(Answer(status, CONTENTS, GONE if status else ""), monkeypatch)
    partial = observe.read_partials(side, cut()).datasets[""].partial
    assert partial == Partial("1-abc", "31", "tank/data@tosend")


def test_a_token_that_cannot_be_read_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    side = source(Answer(1, "", "sudo: a password is required"), monkeypatch)
    with pytest.raises(NoAnswer, match="a password is required"):
        observe.read_partials(side, cut())


def test_a_source_that_cannot_resume_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    side = source(Answer(1, "", "no such option"), monkeypatch)
    side.can = Capabilities()
    assert observe.read_partials(side, cut()) == cut()


def test_a_large_tree_is_asked_for_in_portions_and_read_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def answer(_words: object, names: Sequence[str]) -> Answer:
        asked.append(len(names))
        return Answer(0, "".join(f"{name}\tguid\t{len(name)}\t-\n" for name in names), "")

    shell = Shell("osol1", ())
    monkeypatch.setattr(shell, "run", answer)
    datasets = ["tank", *(f"tank/c{number:04}" for number in range(2 * observe.PORTION))]
    side = Side(shell, ("zfs",), sudo=False)
    whole = observe.read_tree(side, "tank", datasets, ["sent"], {})
    assert [whole.full(name) for name in whole.datasets] == datasets
    assert all(list(one.snapshots) == ["sent"] for one in whole.datasets.values())
    assert asked == [2 * observe.PORTION, 2 * observe.PORTION, 2]


# --- a target is listed anew ----------------------------------------------------------------------


class Counted(FakeShell):
    """A shell that counts its round trips."""

    trips = 0
    refused = ""  # a name that zfs complains of, whatever else it is asked for

    def run(
        self, words: Sequence[str], names: Sequence[str] | None = None, text: str | None = None
    ) -> Answer:
        """Answer, unless it is to be refused."""
        self.trips += 1
        if self.refused and f"{DST}/{self.refused}" in words:
            return Answer(1, "", f"cannot open '{DST}/{self.refused}': name is too long")
        return super().run(words, names, text)

    def ask(self, commands: Sequence[Sequence[str]]) -> list[Answer]:
        """Answer several at once."""
        answers = super().ask(commands)
        self.trips += 1 - len(commands)
        return answers


@pytest.mark.parametrize(
    ("late", "refused", "limit", "trips"),
    [
        ("", "", 2**14, 1),
        ("", "a", 2**14, 2),  # guessed, and perhaps no name at all
        ("", "", 10, 2),
        (f"{DST}/late", "", 2**14, 2),
    ],
)
def test_a_new_listing_is_whole_and_one_round_trip_where_all_of_it_is_expected(
    late: str, refused: str, limit: int, trips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "ARGUMENT_BYTES", limit)
    nodes = world({"": "sent:1 tosend:2", "a": "sent:1 tosend:2"}, {"": "sent:1", "a": "sent:1"})
    shell = Counted(nodes, "osol2")
    here = Side(FakeShell(nodes, "osol1"), ("zfs",), sudo=False)
    there = Side(shell, ("zfs",), sudo=False)
    source = observe.observe_source(here, SRC, Names(), WHO.rid_value, recursive=True)

    def look() -> TargetView:
        return observe.observe_target(there, "osol2", DST, Names(), source, recursive=True)

    before = look()
    now = world({"": "sent:1"}, {"": "sent:1 tosend:2", "a": "sent:1 tosend:2"})
    nodes.pools["osol2"] = now.pools["osol2"]
    if late:
        nodes.pools["osol2"][late] = Dataset(99, 0, {"sent": Snap("99", 1, "other/sync#1")})
    shell.trips, shell.refused = 0, refused
    found = observe.relist(there, before, source, Names(), recursive=True, renamed=set())
    shell.refused = ""
    assert shell.trips == trips
    assert found == replace(look(), clock_offset=found.clock_offset)
    assert found.tree is not None
    assert found.tree.guids("tosend") == source.tree.guids("tosend")
    assert ("late" in found.tree.datasets) == bool(late)
