"""syncresync and syncfull, killed at any step: what there was is there until the new is proven.

The real runs of mend.py are driven against ZFS in memory, see fakezfs, with clones added to it.
After each kill cron's run comes first, then a person asks again; it must end in sync.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import pytest

from check_zfs_sync.service import SyncResource
from zfs_sync_agent.execute import Outcome, Run
from zfs_sync_agent.mend import DiscardRun, FullRun, InPlaceRun, ResyncRun
from zfs_sync_agent.model import MARK, RETAINED, Identity

from .fakerun import run_agent
from .fakezfs import Action, Dataset, Piece, World, ZfsError
from .notation import DST, SRC, WHO
from .worlds import resource_for, world

ONE = ("osol2",)
ASIDE = f"{DST}.unsent-"


class Violation(AssertionError):
    """Something was given up before it was replaced."""


class CloneWorld(World):
    """A world with clones: `origins` is the identity of a clone -> the guid of its origin."""

    def __init__(self, plain: World) -> None:
        super().__init__(plain.pools, plain.txg)
        self.state = dict(plain.state)
        self.taken = dict(plain.taken)
        self.origins: dict[int, str] = {}
        self.never_received: set[int] = set()

    def copy(self) -> "CloneWorld":
        """Return an independent one."""
        twin = CloneWorld(super().copy())
        twin.origins = dict(self.origins)
        return twin

    def _clone(
        self, node: str, words: list[str], _names: list[str], _out: list[str], _err: list[str]
    ) -> None:
        snapshot, new = words[-2:]
        origin = self._open(node, snapshot).snaps[snapshot.partition("@")[2]]
        if new in self.pools[node] or new.rpartition("/")[0] not in self.pools[node]:
            raise ZfsError(f"cannot create '{new}': dataset already exists, or no parent")
        with self.step(node, ("clone", *words)):
            txg = self.next_txg()
            self.pools[node][new] = Dataset(txg, txg)
            pairs = [one.partition("=") for one in words[1:-2:2]]
            self.pools[node][new].props.update({key: (value, "local") for key, _, value in pairs})
            self.origins[txg] = origin.guid
            self.never_received.add(txg)

    def _receive_incremental(
        self, node: str, name: str, piece: Piece, *, keep: bool
    ) -> Iterator[Action]:
        for action in super()._receive_incremental(node, name, piece, keep=keep):
            yield Action(action.words, partial(self._receive_first, node, name, action.do))

    def _receive_first(self, node: str, name: str, do: Callable[[], None]) -> None:
        dataset = self.pools[node][name]
        if dataset.ident in self.never_received:
            # The first received properties take the place of the local ones.
            self.never_received.remove(dataset.ident)
            dataset.props.clear()
        do()

    def _promote(
        self, node: str, words: list[str], _names: list[str], _out: list[str], _err: list[str]
    ) -> None:
        clone = self._open(node, words[0])
        guid = self.origins.get(clone.ident)
        if guid is None:
            raise ZfsError(f"cannot promote '{words[0]}': not a cloned filesystem")
        with self.step(node, ("promote", *words)):
            old = next(one for one in self.pools[node].values() if one.at(guid))
            last = old.snaps[old.at(guid) or ""].txg
            for name, snap in list(old.snaps.items()):
                if snap.txg <= last:
                    clone.snaps[name] = old.snaps.pop(name)
            self.origins[old.ident] = self.origins.pop(clone.ident)

    def _destroy(
        self, node: str, words: list[str], names: list[str], out: list[str], err: list[str]
    ) -> None:
        root, at, name = words[-1].partition("@")
        within = self.below(node, root) if "-r" in words else [root]
        alive = {one.ident for one in self.pools[node].values()}
        cloned = {guid for ident, guid in self.origins.items() if ident in alive}
        if not at:
            inside = {self.pools[node][one].ident for one in within if one in self.pools[node]}
            cloned = {guid for ident, guid in self.origins.items() if ident in alive - inside}
        for one in within:
            snaps = self.pools[node][one].snaps if one in self.pools[node] else {}
            if any(s.guid in cloned for n, s in snaps.items() if not at or n == name):
                raise ZfsError(f"cannot destroy '{words[-1]}': snapshot is cloned")
        super()._destroy(node, words, names, out, err)

    def _list(
        self, node: str, words: list[str], names: list[str], out: list[str], err: list[str]
    ) -> None:
        if "-d" not in words or "-t" not in words or "snapshot" in words:
            super()._list(node, words, names, out, err)
            return
        self._open(node, words[-1])
        below = self.below(node, words[-1])
        out += [one for one in below if one.count("/") <= words[-1].count("/") + 1]

    def _get(
        self, node: str, words: list[str], names: list[str], out: list[str], err: list[str]
    ) -> None:
        key = words[3]
        if key not in ("all", "guid", "referenced", "available", "readonly"):
            super()._get(node, words, names, out, err)
            return
        for name in names:
            dataset = self._open(node, name)
            values = {"guid": (str(dataset.ident), "-"), "type": ("filesystem", "-")}
            values |= {"referenced": ("10", "-"), "available": ("1000", "-")}
            values |= {"readonly": ("off", "default"), **dataset.props}
            wanted = values if key == "all" else {key: values[key]}
            out += ["\t".join((name, one, *value)) for one, value in wanted.items()]


def run(
    state: World, resource: SyncResource, kind: type[Run], who: Identity = WHO
) -> list[Outcome] | None:
    """Run once; None if it was killed."""
    consent = kind in (FullRun, InPlaceRun)
    outcomes = run_agent(state, resource, kind=kind, consent=consent, who=who)
    state.tidy(set(state.unfinished))
    return outcomes


def story(state: World) -> str:
    """Return what was done."""
    return "\n".join(state.log)


A = {"": "sent:1", "a": "sent:1"}
NEWER = {"": "sent:2 old:1", "a": "sent:2 old:1"}

RESYNC: Mapping[str, Callable[[], World]] = {
    "source was rolled back": lambda: world({"": "old:1", "a": "old:1"}, NEWER),
    "a child was rolled back": lambda: world(
        {"": "old:1 sent:2", "a": "old:1"}, {"": "old:1 sent:2", "a": "old:1 sent:2"}
    ),
    "written to, no mark": lambda: written(world(A, A, mark=None)),
    "a child without common snapshot": lambda: world(A, {"": "sent:1", "a": "sent:7"}),
}
FULL: Mapping[str, Callable[[], World]] = {
    "nothing in common": lambda: world({"": "", "a": ""}, A, known=ONE),
    "in sync": lambda: world(A, A),
    "other": lambda: world({"": "sent:5", "a": "sent:5"}, A, known=ONE),
}


def written(state: World) -> World:
    """Write into the target's child."""
    state.pools["osol2"][f"{DST}/a"].written = 5
    return state


def guids(state: World, below: str = DST) -> set[str]:
    """Return what the target holds, at dst or beside it."""
    return {
        snap.guid
        for name, one in state.pools["osol2"].items()
        if name.startswith(below)
        for snap in one.snaps.values()
    }


def heads(state: World) -> set[int]:
    """Return the identities of the target's datasets."""
    return {one.ident for name, one in state.pools["osol2"].items() if name.startswith(DST)}


def new_is_whole(state: World, old: set[int]) -> bool:
    """Tell whether new datasets have, each, a snapshot of the source."""
    sources = {n[len(SRC) :]: state.pools["osol1"][n] for n in state.below("osol1", SRC)}
    for root in (DST, f"{DST}.full"):
        held = {n: state.pools["osol2"].get(f"{root}{n}") for n in sources}
        if all(
            one is not None
            and one.ident not in old
            and {s.guid for s in one.snaps.values()} & {s.guid for s in sources[n].snaps.values()}
            for n, one in held.items()
        ):
            return True
    return False


def put_in_order(state: CloneWorld, resource: SyncResource, kind: type[Run], why: str) -> None:
    """Let a person ask once more and cron run twice; then all must be in sync."""
    results = [run(state, resource, kind), run(state, resource, Run)]
    state.watch = lambda _node, _words: None
    aside = [name for name in state.pools["osol2"] if name.startswith(ASIDE)]
    for name in sorted(aside, reverse=True):  # nobody needs it any more
        state.zfs("osol2", ("destroy", "-r", name)) if name in state.pools["osol2"] else None
    results += [run(state, resource, Run), run(state, resource, Run)]
    said = [str(o.error and o.error.block(o.node)) for r in results if r for o in r]
    beside = [n for n in state.pools["osol2"] if n.startswith((f"{DST}.full", f"{DST}.old"))]
    own = {
        name: {s for s, snap in one.snaps.items() if snap.rid and s != "old"}
        for name, one in state.pools["osol2"].items()
        if name == DST or name.startswith(f"{DST}/")
    }
    here = state.pools["osol1"][SRC].snaps["sent"].guid
    there = state.pools["osol2"][DST].snaps.get("sent")
    assert there is not None, f"{why}: {results}\n{story(state)}"
    assert there.guid == here, f"{why}: {results}\n{story(state)}"
    assert not beside, f"{why}: {beside} {said}\n{story(state)}"
    assert all(names == {"sent"} for names in own.values()), f"{why}: {own}\n{story(state)}"
    assert state.pools["osol2"][DST].props[MARK] == (WHO.mark, "local"), story(state)
    assert RETAINED not in state.pools["osol1"][SRC].props, f"{why}\n{story(state)}"


def watch_old(state: World, old: set[int], held: set[str], node: str, words: Sequence[str]) -> None:
    """Hold that the old datasets are there; of their snapshots a rotation takes the older ones."""
    gone = held - guids(state)
    if old - heads(state) or (gone and words[0] != "destroy"):
        raise Violation(f"{node}: {words}: {gone}\n{story(state)}")
    held &= guids(state)


def watch_copies(state: World, old: set[int], node: str, words: Sequence[str]) -> None:
    """Hold that there is a whole copy, the old one or the new one."""
    if old - heads(state) and not new_is_whole(state, old):
        raise Violation(f"{node}: {words}\n{story(state)}")


@pytest.mark.parametrize("start", RESYNC)
def test_a_resync_killed_at_any_step_keeps_all_that_the_target_held(start: str) -> None:
    resource = resource_for(ONE)
    fuse = 0
    while True:
        state = CloneWorld(RESYNC[start]())
        old, held = heads(state), guids(state)

        state.watch = partial(watch_old, state, old, held)
        state.trouble.fuse = fuse
        done = run(state, resource, ResyncRun) is not None
        state.trouble.fuse = None
        why = f"{start}, killed after {fuse}"
        run(state, resource, Run)  # cron comes first
        assert old <= heads(state), f"{why}: the old data is gone\n{story(state)}"
        put_in_order(state, resource, ResyncRun, why)
        if done:
            break
        fuse += 1
    assert fuse > 8


@pytest.mark.parametrize("start", FULL)
def test_a_full_sync_killed_at_any_step_has_a_whole_copy(start: str) -> None:
    resource = resource_for(ONE)
    fuse = 0
    while True:
        state = CloneWorld(FULL[start]())
        old = heads(state)

        state.watch = partial(watch_copies, state, old)
        state.trouble.fuse = fuse
        done = run(state, resource, FullRun) is not None
        state.trouble.fuse = None
        why = f"{start}, killed after {fuse}"
        run(state, resource, Run)
        put_in_order(state, resource, FullRun, why)
        if done:
            break
        fuse += 1
    assert fuse > 10


@pytest.mark.parametrize(
    ("kind", "start"),
    [
        *((DiscardRun, one) for one in (*RESYNC.values(),)[:3]),
        *((InPlaceRun, one) for one in FULL.values()),
    ],
)
def test_a_consent_to_lose_the_rest_killed_at_any_step_ends_in_sync(
    kind: type[Run], start: Callable[[], World]
) -> None:
    resource = resource_for(ONE)
    fuse = 0
    done = False
    while not done:
        state = CloneWorld(start())
        state.trouble.fuse = fuse
        done = run(state, resource, kind) is not None
        state.trouble.fuse = None
        run(state, resource, Run)
        put_in_order(state, resource, kind, f"killed after {fuse}")
        fuse += 1
    assert fuse > 8
