"""What is read of the two sides: no answer is never taken for one."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from zfs_sync_agent import observe
from zfs_sync_agent.errors import NoAnswer
from zfs_sync_agent.model import Capabilities, Partial, Tree
from zfs_sync_agent.observe import Side
from zfs_sync_agent.transport import Answer, Shell

from .notation import DST, tree

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
    whole = observe.read_tree(side, "tank", datasets, ["sent"])
    assert [whole.full(name) for name in whole.datasets] == datasets
    assert all(list(one.snapshots) == ["sent"] for one in whole.datasets.values())
    assert asked == [2 * observe.PORTION, 2 * observe.PORTION, 2]
