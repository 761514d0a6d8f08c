"""From a kill at any instant the next runs converge, and no command takes a last common guid away.

The real run (observe, plan, execute) is driven against ZFS in memory, see fakezfs. I1: no destroy
on a target of its only common guid. I2: the source never drops a guid that a target may need.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from check_zfs_sync.service import SyncResource, Target
from check_zfs_sync.statefile import Attempt, TargetState
from zfs_sync_agent.model import MARK, RETAINED, TARGETS, Names, Snapshot

from . import notation
from .fakezfs import Dataset, Snap, World, run_agent
from .notation import DST, EPOCH, SRC, WHO

NODES = ("osol2", "osol3")
ONE, TWO = NODES[:1], NODES
RUNS = 3  # within so many runs everything is in sync again

Holdings = Mapping[str, str]  # relative name -> words


class Violation(AssertionError):
    """A command took the last common guid away, or something foreign."""


def kept_name(guid: int) -> str:
    return Names().kept(Snapshot("", root_guid(guid), EPOCH + 60 * guid))


def root_guid(guid: int) -> str:
    return f"10000{guid}"


def dataset(index: int, words: str) -> Dataset:
    """Return a dataset of `name:guid`; `kept` stands for the kept name, `!` for no mark."""
    snaps = {}
    for word in words.split():
        name, _, text = word.removesuffix("!").partition(":")
        age = int(text)
        label = kept_name(age) if name == "kept" else name
        rid = None if word.endswith("!") else WHO.rid_value
        snaps[label] = Snap(f"{index}0000{age}", age, rid)
    return Dataset(index, 0, snaps)


def tree(root: str, holdings: Holdings | None, number: int) -> dict[str, Dataset]:
    """Return the datasets of a node; `number` keeps the identities of the nodes apart."""
    pool = root.partition("/")[0]
    found = {pool: Dataset(1000 * number, 0)}
    for name, words in (holdings or {}).items():
        index = 1 if not name else 1 + ord(name) - ord("a") + 1
        one = dataset(index, words)
        one.ident += 1000 * number
        found[f"{root}/{name}" if name else root] = one
    return found


def world(
    source: Holdings,
    *targets: Holdings | None,
    retained: str = "",
    known: Sequence[str] | None = None,
    marked: bool = True,
) -> World:
    """Return a world with a source and its targets, which were in sync before unless told."""
    pools = {"osol1": tree(SRC, source, 0)}
    present = [node for node, held in zip(NODES, targets, strict=False) if held is not None]
    for number, (node, held) in enumerate(zip(NODES, targets, strict=False), start=1):
        pools[node] = tree(DST, held, number)
        if held is not None and marked:
            pools[node][DST].props[MARK] = (WHO.mark, "local")
    root = pools["osol1"][SRC].props
    if value := ",".join(present if known is None else known):
        root[TARGETS] = (f"{WHO.rid_value}={value}", "local")
    if retained:
        for word in set(retained.replace("=", ";").split(";")):
            if word.startswith("kept:"):
                retained = retained.replace(word, kept_name(int(word[5:])))
        root[RETAINED] = (retained, "local")
    return World(pools)


# --- what is asserted -------------------------------------------------------------------------

Common = dict[tuple[str, int, int], int]


def common(state: World, nodes: Sequence[str]) -> Common:
    """Return (node, source dataset, target dataset) -> age of the newest guid that both hold."""
    sources = [one for name, one in state.pools["osol1"].items() if name.startswith(SRC)]
    found = {}
    for node in nodes:
        replicas = [one for name, one in state.pools[node].items() if name.startswith(DST)]
        for here, there in itertools.product(sources, replicas):
            guids = {snap.guid: snap.txg for snap in here.snaps.values()}
            shared = [guids[s.guid] for s in there.snaps.values() if s.guid in guids]
            if shared:
                found[node, here.ident, there.ident] = max(shared)
    return found


def foreign(state: World) -> set[tuple[str, int, str]]:
    """Return what no run may touch: snapshots without a mark, by guid."""
    return {
        (node, one.ident, snap.guid)
        for node, datasets in state.pools.items()
        for one in datasets.values()
        for snap in one.snaps.values()
        if snap.rid is None
    }


def story(state: World) -> str:
    return "\n".join(state.log)


def guard(state: World, nodes: Sequence[str]) -> None:
    """Hold I1, I2 and I7 after every step from now on."""
    before = common(state, nodes)
    strange = foreign(state)

    def watch(node: str, words: Sequence[str]) -> None:
        nonlocal before
        after = common(state, nodes)
        for key, age in before.items():
            if after.get(key, -1) < age:
                law = "I2" if node == "osol1" else "I1"
                what = f"{law}: {node}: {' '.join(words)}: {key} had {age}, has {after.get(key)}"
                raise Violation(f"{what}\n{story(state)}")
        if strange - foreign(state):
            raise Violation(f"I7: {node}: {' '.join(words)}\n{story(state)}")
        before = after

    state.watch = watch


def unsettled(state: World, nodes: Sequence[str], *, recursive: bool, by_hand: bool) -> list[str]:
    """Return what is not as it is after a good run."""
    wrong = []
    sources = {n[len(SRC) :]: one for n, one in state.pools["osol1"].items() if n.startswith(SRC)}
    for name, here in sources.items():
        if name and not recursive:
            continue
        if (left := {one for one, snap in here.snaps.items() if snap.rid}) != {"sent"}:
            wrong.append(f"source{name}: {sorted(left)}")
        for node in nodes:
            there = state.pools[node].get(DST + name)
            held = {} if there is None else there.snaps
            own = {
                name: snap
                for name, snap in held.items()
                if snap.rid and not (by_hand and name.startswith(("hand", "recv-")))
            }
            if set(own) != {"sent"} or own["sent"].guid != here.snaps["sent"].guid:
                wrong.append(f"{node}{name}: {own}")
    if RETAINED in state.pools["osol1"][SRC].props:
        wrong.append(f"retained: {state.pools['osol1'][SRC].props[RETAINED]}")
    return wrong


def resource_for(nodes: Sequence[str], **changes: object) -> SyncResource:
    targets = tuple(Target(node, "nodes") for node in nodes)
    return notation.resource(targets=targets, **changes)


COUNTS: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def _counts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Say at the end how much was tried."""
    yield
    plugins = request.config.pluginmanager
    capture, terminal = plugins.get_plugin("capturemanager"), plugins.get_plugin("terminalreporter")
    if capture is not None and terminal is not None:
        with capture.global_and_fixture_disabled():
            terminal.write_line(f" {dict(COUNTS)}")


class Lab:
    """Runs the agent in worlds and counts what it did."""

    def __init__(self, resource: SyncResource, *, lazy_joins: bool = False) -> None:
        self.resource, self.lazy_joins = resource, lazy_joins
        self.nodes = [target.node for target in resource.targets]

    def run(self, state: World) -> list[str] | None:
        """Run once; return the results, one per target, None if it was killed."""
        COUNTS["runs"] += 1
        outcomes = run_agent(state, self.resource, lazy_joins=self.lazy_joins)
        if outcomes is None:
            return None
        return [one.error.reason if one.error else "ok" for one in outcomes]

    def unsettled(self, state: World, *, by_hand: bool) -> list[str]:
        """Return what is not as it is after a good run."""
        return unsettled(state, self.nodes, recursive=self.resource.recursive, by_hand=by_hand)

    def length(self, start: World) -> int:
        """Return how many steps one undisturbed run takes."""
        state = start.copy()
        guard(state, self.nodes)
        self.run(state)
        return state.steps

    def converge(
        self, state: World, why: str, *, expect_no_full: bool = True, by_hand: bool = False
    ) -> None:
        """Assert that a few undisturbed runs put everything in order.

        `by_hand`: someone renamed our snapshots; a receive may rename those once more, to recv-*.
        """
        state.fuse, state.lose, state.down = None, None, set()
        results: list[list[str] | None] = []
        for _ in range(RUNS):
            results.append(self.run(state))
            if not (wrong := self.unsettled(state, by_hand=by_hand)):
                break
        assert not wrong, f"{why}: {wrong}\n{results}\n{story(state)}"
        if expect_no_full:
            assert not state.full_streams, f"{why}: {state.full_streams}\n{story(state)}"

    def kill_everywhere(self, start: World, *, full: bool = False) -> None:
        """Kill a run at each of its steps; let a target be away in the run after it; converge."""
        COUNTS["start states"] += 1
        away = [set(), *({node} for node in self.nodes)] if len(self.nodes) > 1 else [set()]
        for fuse, down in itertools.product(range(self.length(start) + 1), away):
            state = start.copy()
            guard(state, self.nodes)
            state.fuse = fuse
            self.run(state)
            COUNTS["kill points"] += 1
            state.fuse, state.down = None, down
            self.run(state)
            self.converge(state, f"killed after {fuse}, away {down}", expect_no_full=not full)

    def lose_everywhere(self, start: World, *, full: bool = False) -> None:
        """Let each target stop answering at each step, for one run and for another; converge."""
        COUNTS["start states"] += 1
        steps = range(self.length(start) + 1)
        for node, after, again in itertools.product(self.nodes, steps, (False, True)):
            state = start.copy()
            guard(state, self.nodes)
            state.lose = (node, after)
            self.run(state)
            COUNTS["kill points"] += 1
            if again:
                self.run(state)
            self.converge(state, f"{node} lost after {after}, {again=}", expect_no_full=not full)


# --- a run that is cut, at every step ----------------------------------------------------------

BOTH = {"": "sent:1", "a": "sent:1"}
LEFT = {"": "sent:1 tosend:2", "a": "sent:1 tosend:2"}

STARTS: dict[str, Callable[[], World]] = {
    "in sync": lambda: world(BOTH, BOTH),
    "B left, target at A": lambda: world(LEFT, BOTH),
    "B left, target has B": lambda: world(LEFT, LEFT),
    "B left, root has B": lambda: world(LEFT, {**BOTH, "": LEFT[""]}),
    "B left, child has B": lambda: world(LEFT, {**BOTH, "a": LEFT["a"]}),
    "B left, target rotated": lambda: world(LEFT, {"": "sent:2", "a": "sent:2"}),
    "B left, target half rotated": lambda: world(LEFT, {"": "sent:2", "a": "tosend:2"}),
    "B left, A half destroyed on the target": lambda: world(LEFT, {**LEFT, "": "tosend:2"}),
    "A destroyed on the source": lambda: world(
        {"": "tosend:2", "a": "tosend:2"}, {"": "sent:2", "a": "sent:2"}
    ),
    "A half destroyed on the source": lambda: world(
        {"": "tosend:2", "a": "sent:1 tosend:2"}, {"": "sent:2", "a": "sent:2"}
    ),
    "A kept on the source, B not renamed": lambda: world(
        {"": "kept:1 tosend:2", "a": "kept:1 tosend:2"},
        {"": "sent:2", "a": "sent:2"},
        retained="kept:1=osol9",
    ),
    "lagging": lambda: world(
        {"": "kept:1 sent:2", "a": "kept:1 sent:2"}, BOTH, retained="kept:1=osol2"
    ),
    "lagging, joining snapshot left": lambda: world(
        {"": "kept:1 sent:2 tosend.osol2:3", "a": "kept:1 sent:2 tosend.osol2:3"},
        BOTH,
        retained="kept:1=osol2;tosend.osol2=osol2",
    ),
    "joined": lambda: world(
        {"": "sent:2 kept:3", "a": "sent:2 kept:3"},
        {"": "sent:3", "a": "sent:3"},
        retained="kept:3=osol2",
    ),
}
PAIRS: dict[str, Callable[[], World]] = {
    "both in sync": lambda: world(BOTH, BOTH, BOTH),
    "B left, one has it": lambda: world(LEFT, BOTH, LEFT),
    "B left, one rotated": lambda: world(LEFT, {"": "sent:2", "a": "sent:2"}, BOTH),
    "one lags": lambda: world(
        {"": "kept:1 sent:2", "a": "kept:1 sent:2"},
        {"": "sent:2", "a": "sent:2"},
        BOTH,
        retained="kept:1=osol3",
    ),
    "both lag at different bases": lambda: world(
        {"": "kept:1 kept:2 sent:3", "a": "kept:1 kept:2 sent:3"},
        BOTH,
        {"": "sent:2", "a": "sent:2"},
        retained="kept:1=osol2;kept:2=osol3",
    ),
    "A half destroyed, one lags": lambda: world(
        {"": "kept:1 tosend:3", "a": "kept:1 sent:2 tosend:3"},
        {"": "sent:3", "a": "sent:3"},
        BOTH,
        retained="kept:1=osol3",
    ),
}
FIRST: dict[str, Callable[[], World]] = {
    "first sync": lambda: world({"": "", "a": ""}, None),
    "first sync of two": lambda: world({"": "", "a": ""}, None, None),
    "a newly born child": lambda: world({**BOTH, "b": ""}, BOTH),
    "a new one beside one in sync": lambda: world(BOTH, BOTH, None),
}
# A join goes on beside the others: the two orders are what a single thread can show of that.
JOINING = {"lagging", "lagging, joining snapshot left", "one lags", "both lag at different bases"}
JOINING |= {"A half destroyed, one lags", "a new one beside one in sync"}


def cases(*starts: Mapping[str, Callable[[], World]]) -> pytest.MarkDecorator:
    names = [name for one in starts for name in one]
    orders = [pytest.param(name, False, id=name) for name in names]
    orders += [pytest.param(name, True, id=f"{name}, late") for name in names if name in JOINING]
    return pytest.mark.parametrize(("start", "lazy_joins"), orders)


def nodes_of(start: World) -> tuple[str, ...]:
    return tuple(node for node in NODES if node in start.pools)


@cases(STARTS, PAIRS)
def test_a_run_killed_at_any_step_loses_no_base_and_heals(start: str, *, lazy_joins: bool) -> None:
    state = {**STARTS, **PAIRS}[start]()
    lab = Lab(resource_for(nodes_of(state)), lazy_joins=lazy_joins)
    lab.kill_everywhere(state)


@cases(STARTS, PAIRS)
def test_a_target_lost_at_any_step_loses_no_base_and_heals(start: str, *, lazy_joins: bool) -> None:
    state = {**STARTS, **PAIRS}[start]()
    lab = Lab(resource_for(nodes_of(state)), lazy_joins=lazy_joins)
    lab.lose_everywhere(state)


@cases(FIRST)
def test_a_first_sync_killed_at_any_step_heals(start: str, *, lazy_joins: bool) -> None:
    state = FIRST[start]()
    lab = Lab(resource_for(nodes_of(state)), lazy_joins=lazy_joins)
    lab.kill_everywhere(state, full=True)


@cases(FIRST)
def test_a_first_sync_that_loses_a_target_at_any_step_heals(
    start: str, *, lazy_joins: bool
) -> None:
    state = FIRST[start]()
    lab = Lab(resource_for(nodes_of(state)), lazy_joins=lazy_joins)
    lab.lose_everywhere(state, full=True)


ALONE = {"": "sent:1"}
THREE = {"": "sent:1", "a": "sent:1", "b": "sent:1"}


def moved(state: World, old: str, new: str) -> World:
    """Return the world after a child of the source was renamed."""
    datasets = state.pools["osol1"]
    datasets[f"{SRC}/{new}"] = datasets.pop(f"{SRC}/{old}")
    return state


def swapped(state: World, one: str, two: str) -> World:
    """Return the world after two children of the source exchanged their names."""
    return moved(moved(moved(state, one, "x"), two, one), "x", two)


VARIANTS: dict[str, tuple[dict[str, object], Callable[[], World]]] = {
    "not recursive": (
        {"recursive": False},
        lambda: world({**ALONE, "a": ""}, ALONE),
    ),
    "not recursive, B left": (
        {"recursive": False},
        lambda: world({"": LEFT[""], "a": ""}, {"": LEFT[""]}),
    ),
    "with history": (
        {"intermediary": True},
        lambda: world({"": "sent:1 daily:2!", "a": "sent:1 daily:2!"}, BOTH),
    ),
    "with history, lagging": (
        {"intermediary": True},
        lambda: world(
            {"": "kept:1 sent:2 daily:3!", "a": "kept:1 sent:2 daily:3!"},
            BOTH,
            retained="kept:1=osol2",
        ),
    ),
    "a foreign child": ({}, lambda: world(BOTH, {**BOTH, "x": "sent:7! tosend:8!"})),
    "a foreign snapshot": ({}, lambda: world(BOTH, {"": "sent:1 theirs:2!", "a": "sent:1"})),
    "a gone child": ({}, lambda: world(ALONE, BOTH)),
    "a renamed child": ({}, lambda: moved(world(BOTH, BOTH), "a", "b")),
    "two swapped children": ({}, lambda: swapped(world(THREE, THREE), "a", "b")),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cut_run_of_another_kind_loses_no_base_and_heals(variant: str) -> None:
    options, start = VARIANTS[variant]
    lab = Lab(resource_for(ONE, **options))
    lab.kill_everywhere(start())
    lab.lose_everywhere(start())


# --- children come and go between cut runs -----------------------------------------------------

CHILDREN = st.sampled_from(["a", "b", "c", "a/d"])
CUTS = st.integers(0, 25)
EVENTS = st.one_of(
    st.tuples(st.just("create"), CHILDREN),
    st.tuples(st.just("destroy"), CHILDREN),
    st.tuples(st.just("rename"), CHILDREN, CHILDREN),
    st.tuples(st.just("write on the replica"), CHILDREN),
    st.tuples(st.just("run")),
    st.tuples(st.just("kill"), CUTS),
    st.tuples(st.just("lose"), CUTS),
)


def happen(lab: Lab, state: World, event: Sequence[object]) -> None:
    """Let one thing happen."""
    state.fuse, state.lose, state.down = None, None, set()
    guard(state, lab.nodes)
    match event:
        case ["kill", int(step)]:
            state.fuse = state.steps + step
            lab.run(state)
        case ["lose", int(step)]:
            state.lose = ("osol2", state.steps + step)
            lab.run(state)
        case ["run"]:
            lab.run(state)
        case ["write on the replica", str(name)]:
            if replica := state.pools["osol2"].get(f"{DST}/{name}"):
                replica.written = 4096
        case [verb, *names]:
            change_source(state, str(verb), [f"{SRC}/{name}" for name in names])


def change_source(state: World, verb: str, names: Sequence[str]) -> None:
    """Create, destroy or rename a child, if ZFS would."""
    here = state.pools["osol1"]
    there = names[-1] in here
    parent = names[-1].rpartition("/")[0]
    inside = [one for one in here if f"{one}/".startswith(f"{names[0]}/")]
    if verb == "create" and not there and parent in here:
        txg = state.next_txg()
        here[names[0]] = Dataset(txg, txg)
    elif verb == "destroy":
        for one in inside:
            del here[one]
    elif verb == "rename" and not there and parent == SRC:
        for one in inside:
            here[names[1] + one[len(names[0]) :]] = here.pop(one)


def tried(events: Sequence[Sequence[object]], nodes: Sequence[str]) -> None:
    """Let things happen, then assert that all is put in order."""
    lab, state = Lab(resource_for(nodes)), world(BOTH, *[BOTH] * len(nodes))
    for event in events:
        state.log.append(f"--- {event}")
        happen(lab, state, event)
    guard(state, lab.nodes)
    lab.converge(state, f"{events}", expect_no_full=False)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(EVENTS, max_size=12))
def test_whatever_happens_between_cut_runs_heals(events: list[tuple[object]]) -> None:
    tried(events, ONE)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(EVENTS, max_size=12))
def test_whatever_happens_to_one_of_two_targets_heals(events: list[tuple[object]]) -> None:
    tried(events, TWO)


@pytest.mark.parametrize("middle", range(14))
def test_a_join_that_was_cut_twice_heals(middle: int) -> None:
    for last in range(14):
        tried([("lose", 0), ("lose", middle), ("kill", last)], TWO)


def test_a_join_that_was_cut_three_times_heals() -> None:
    for last in range(12):
        tried([("lose", 0), ("lose", 1), ("kill", 6), ("lose", last)], TWO)


# --- whatever stands under whatever name -------------------------------------------------------

SOURCES = {
    "(A,-)": ("sent:2", ""),
    "(A,B)": ("sent:2 tosend:3", ""),
    "(-,B)": ("tosend:3", ""),
    "(-,-)": ("", ""),
    "(A,-) and a kept base": ("kept:1 sent:2", "kept:1=osol2"),
    "(A,B) and a kept base": ("kept:1 sent:2 tosend:3", "kept:1=osol2"),
    "(-,B) and a kept base": ("kept:1 tosend:3", "kept:1=osol2"),
}
TARGET_NAMES = ("sent", "tosend", "kept", "hand")  # `hand`: renamed by hand


def holdings(most: int, own_names: Sequence[str]) -> Iterator[str]:
    """Return what one dataset of a target may hold: guids 1, 2, 3 under whatever names."""
    for count in range(most + 1):
        for guids in itertools.combinations((1, 2, 3), count):
            for names in itertools.permutations(own_names, count):
                yield " ".join(f"{n}:{g}" for n, g in zip(names, guids, strict=True))


def guids_in(words: str) -> set[str]:
    return {word.partition(":")[2] for word in words.split()}


def heals(here: str, there: str) -> bool:
    """Tell whether a run may go on: a base, and nothing newer that only the target has."""
    common = guids_in(here) & guids_in(there)
    return bool(common) and max(common) == max(guids_in(there))


def after_a_failure(state: World) -> World:
    """Return the world after a run that failed: own names may be anywhere, so all are listed."""
    failed = Attempt(EPOCH, EPOCH, "failed", "cut")
    state.state["osol2"] = TargetState(DST, "failed", 0, None, None, (), None, failed)
    return state


@pytest.mark.parametrize("source", SOURCES)
def test_a_base_is_found_under_whatever_name_it_is_kept(source: str) -> None:
    words, retained = SOURCES[source]
    lab = Lab(resource_for(ONE))
    for held in holdings(3, TARGET_NAMES):
        for child in {held, "sent:1", "sent:2", "tosend:3"}:
            both, there = {"": words, "a": words}, {"": held, "a": child}
            state = after_a_failure(world(both, there, retained=retained, known=ONE))
            before = {n: set(one.snaps.values()) for n, one in state.pools["osol2"].items()}
            COUNTS["start states"] += 1
            guard(state, ONE)
            if heals(words, held) and heals(words, child):
                why = f"{source}, target {held!r}, child {child!r}"
                lab.converge(state, why, by_hand="hand" in held + child)
            elif not heals(words, held):
                results = lab.run(state)
                after = {n: set(one.snaps.values()) for n, one in state.pools["osol2"].items()}
                assert after == before, f"{source} {held!r}: {results}\n{story(state)}"


@pytest.mark.parametrize("source", SOURCES)
def test_a_kill_in_whatever_state_loses_no_base_and_heals(source: str) -> None:
    words, retained = SOURCES[source]
    lab = Lab(resource_for(ONE))
    for held in holdings(2, TARGET_NAMES[:3]):
        if heals(words, held):
            both, there = {"": words, "a": words}, {"": held, "a": held}
            state = world(both, there, retained=retained, known=ONE)
            lab.kill_everywhere(after_a_failure(state))
