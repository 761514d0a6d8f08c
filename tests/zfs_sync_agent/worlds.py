"""A short notation for nodes with ZFS in memory, and the standard situations of the model proof.

It never runs the agent and never judges.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from check_zfs_sync.service import SyncResource, Target
from check_zfs_sync.statefile import Attempt, Success, TargetState, digest
from check_zfs_sync.statefile import Snapshot as StateSnapshot
from zfs_sync_agent import record
from zfs_sync_agent.model import MARK, RETAINED, TARGETS, Names, Snapshot

from . import notation
from .fakezfs import Dataset, Partial, Snap, World
from .notation import DST, EPOCH, SRC, WHO

NODES = ("osol2", "osol3")
ONE, TWO = NODES[:1], NODES
LIKE_SRC = "osol2_z3_root/data"  # where receive -d osol2_z3_root puts SRC

Holdings = Mapping[str, str]  # relative name -> words


def kept_name(age: int) -> str:
    """Return the kept name of the root's snapshot of that age."""
    return Names().kept(Snapshot("", f"10000{age}", EPOCH + 60 * age))


def dataset(index: int, words: str, *, replica: bool = False) -> Dataset:
    """Return a dataset of `name:age`, whose guids go by age; `kept` stands for the kept name.

    Behind a word: `!` no mark, `?` a guid of its own, `^` held, `+` with data, though taken there.
    """
    snaps = {}
    for word in words.split():
        name, _, text = word.partition(":")
        age = int(text.rstrip("!?^+"))
        label = kept_name(age) if name == "kept" else name
        guid = f"{9 if '?' in text else index}0000{age}"
        snaps[label] = Snap(
            guid,
            age,
            None if "!" in text else WHO.rid_value,
            "received" if replica and "!" not in text else "local",
            data=not (replica and "!" in text) or "+" in text,
            held="^" in text,
        )
    return Dataset(index, 0, snaps)


def tree(root: str, holdings: Holdings | None, number: int) -> dict[str, Dataset]:
    """Return the datasets of a node; `number` keeps the identities of the nodes apart.

    Beside the root there are others, which have our names and are no business of ours.
    """
    pool = root.partition("/")[0]
    other = Snap("777", 1, "other/sync#9")
    found = {
        pool: Dataset(1000 * number, 0, {"sent": other}),
        f"{root}2": Dataset(1000 * number + 999, 0, {"sent": other, "tosend": other}, written=1),
    }
    for name, words in (holdings or {}).items():
        index = 1 if not name else 1 + ord(name) - ord("a") + 1
        one = dataset(index, words, replica=number > 0)
        one.ident += 1000 * number
        found[f"{root}/{name}" if name else root] = one
    return found


def world(
    source: Holdings,
    *targets: Holdings | None,
    retained: str = "",
    known: Sequence[str] | None = None,
    mark: str | None = WHO.mark,
) -> World:
    """Return a world with a source and its targets, which were in sync before unless told."""
    pools = {"osol1": tree(SRC, source, 0)}
    present = [node for node, held in zip(NODES, targets, strict=False) if held is not None]
    for number, (node, held) in enumerate(zip(NODES, targets, strict=False), start=1):
        pools[node] = tree(DST, held, number)
        if held is not None and mark:
            pools[node][DST].props[MARK] = (mark, "local")
    root = pools["osol1"][SRC].props
    if value := ",".join(present if known is None else known):
        root[TARGETS] = (f"{WHO.rid_value}={value}", "local")
    if retained:
        for word in set(retained.replace("=", ";").split(";")):
            if word.startswith("kept:"):
                retained = retained.replace(word, kept_name(int(word[5:])))
        root[RETAINED] = (retained, "local")
    return World(pools)


def written(state: World, name: str = "", size: int = 4096) -> World:
    """Return the world after someone wrote into the replica."""
    state.pools["osol2"][f"{DST}/{name}" if name else DST].written = size
    return state


def worked(state: World, name: str, *, synced: bool = True) -> World:
    """Return the world after someone wrote to the source; not `synced`: not yet counted."""
    one = state.pools["osol1"][f"{SRC}/{name}"]
    one.written, one.unsynced = (4096, 0) if synced else (0, 4096)
    return state


def claimed(state: World) -> World:
    """Return the world in which the state file says that all targets hold the source's @sent."""
    tree = {
        name[len(SRC) + 1 :]: one.snaps["sent"]
        for name, one in state.pools["osol1"].items()
        if name == SRC or name.startswith(f"{SRC}/")
        if "sent" in one.snaps
    }
    root, guids = tree[""], {name: snap.guid for name, snap in tree.items()}
    held = StateSnapshot(root.guid, EPOCH + 60 * root.age, len(guids), digest(guids.items()))
    success = Success(held.creation, held.creation, 0, "incremental")
    for node in state.pools.keys() & set(NODES):
        entry = record.succeeded(record.never(DST), success)
        state.state[node] = entry._replace(snapshot=held)
    return state


def moved(state: World, old: str, new: str) -> World:
    """Return the world after a child of the source was renamed."""
    datasets = state.pools["osol1"]
    datasets[f"{SRC}/{new}"] = datasets.pop(f"{SRC}/{old}")
    return state


def gone(state: World, name: str) -> World:
    """Return the world after a child of the source was destroyed."""
    del state.pools["osol1"][f"{SRC}/{name}"]
    return state


def landed(state: World) -> World:
    """Return the world in which dst has the name of src, but for the pool."""
    for node in NODES:
        for name in state.below(node, DST) if node in state.pools else ():
            state.pools[node][LIKE_SRC + name[len(DST) :]] = state.pools[node].pop(name)
    return state


def swapped(state: World, one: str, two: str) -> World:
    """Return the world after two children of the source exchanged their names."""
    return moved(moved(moved(state, one, "x"), two, one), "x", two)


def recreated(state: World, name: str) -> World:
    """Return the world after a child of the source was destroyed and made anew."""
    txg = state.next_txg()
    state.pools["osol1"][f"{SRC}/{name}"] = Dataset(txg, txg)
    return state


def marked(state: World, node: str, value: str) -> World:
    """Return the world after the root of a node's tree got a mark."""
    root = SRC if node == "osol1" else DST
    state.pools[node][root].props[MARK] = (value, "local")
    return state


def taken_there(state: World) -> World:
    """Return the world in which the target's snapshots are its own, and the source's came to it."""
    for node, root, kind in (("osol1", SRC, "received"), ("osol2", DST, "local")):
        for one in (n for n in state.pools[node] if n == root or n.startswith(f"{root}/")):
            snaps = state.pools[node][one].snaps
            snaps.update({name: replace(snap, source=kind) for name, snap in snaps.items()})
    return state


def cut(state: World, name: str, guid: str, base: str, told: str) -> World:
    """Return the world after a receive was cut on the target; without a `base` it made the dataset.

    `told` is the name that the snapshot had, below the pool of the source.
    """
    there, full = state.pools["osol2"], f"{DST}/{name}" if name else DST
    if not base:
        txg = state.next_txg()
        there[full] = Dataset(txg, txg)
    there[full].partial = Partial(guid, base, f"osol1_z3_root/{told}")
    return state


def forgotten(state: World, guid: str) -> World:
    """Return the world whose source took a snapshot with that guid, which is gone."""
    state.taken[guid] = (0, 0)
    return state


def after_a_failure(state: World) -> World:
    """Return the world after a run that failed: own names may be anywhere, so all are listed."""
    failed = Attempt(EPOCH, EPOCH, "failed", "cut")
    state.state["osol2"] = TargetState(DST, "failed", 0, None, None, (), None, failed)
    return state


def resource_for(nodes: Sequence[str], **changes: object) -> SyncResource:
    """Return the sync resource that sends to these nodes."""
    targets = tuple(Target(node, "nodes") for node in nodes)
    return notation.resource(targets=targets, **changes)


# --- the standard situations --------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """A situation before a run. `full`: a full stream is right there.

    `end`: what a few undisturbed runs make of it, all in sync or a refusal. `late`: joins act when
    all else is done; a single thread can show no more of what goes on beside. `resumes`: a receive
    that is cut can go on.
    """

    name: str
    build: Callable[[], World]
    options: Mapping[str, object] = field(default_factory=dict)
    full: bool = False
    end: str = "sync"
    late: bool = False
    resumes: bool = False

    def __str__(self) -> str:
        words = (self.name, "late" if self.late else "", "resumable" if self.resumes else "")
        return ", ".join(filter(None, words))

    @property
    def resource(self) -> SyncResource:
        """Return the sync resource of it."""
        state = self.build()
        return resource_for([node for node in NODES if node in state.pools], **self.options)


BOTH = {"": "sent:1", "a": "sent:1"}
LEFT = {"": "sent:1 tosend:2", "a": "sent:1 tosend:2"}
ALONE = {"": "sent:1"}
THREE = {"": "sent:1", "a": "sent:1", "b": "sent:1"}


def _both(words: str) -> dict[str, str]:
    return {"": words, "a": words}


# A run that is cut, and what earlier cut runs left.
CUT = (
    Scenario("in sync", lambda: world(BOTH, BOTH)),
    Scenario("B left, target at A", lambda: world(LEFT, BOTH)),
    Scenario("B left, target has B", lambda: world(LEFT, LEFT)),
    Scenario("B left, root has B", lambda: world(LEFT, {**BOTH, "": LEFT[""]})),
    Scenario("B left, child has B", lambda: world(LEFT, {**BOTH, "a": LEFT["a"]})),
    Scenario("B left, target rotated", lambda: world(LEFT, _both("sent:2"))),
    Scenario("B left, target half rotated", lambda: world(LEFT, {"": "sent:2", "a": "tosend:2"})),
    Scenario(
        "B left, A half destroyed on the target", lambda: world(LEFT, {**LEFT, "": "tosend:2"})
    ),
    Scenario("A destroyed on the source", lambda: world(_both("tosend:2"), _both("sent:2"))),
    Scenario(
        "A half destroyed on the source",
        lambda: world({"": "tosend:2", "a": "sent:1 tosend:2"}, _both("sent:2")),
    ),
    Scenario(
        "A kept on the source, B not renamed",
        lambda: world(_both("kept:1 tosend:2"), _both("sent:2"), retained="kept:1=osol9"),
    ),
    Scenario("lagging", lambda: world(_both("kept:1 sent:2"), BOTH, retained="kept:1=osol2")),
    Scenario(
        "lagging, joining snapshot left",
        lambda: world(
            _both("kept:1 sent:2 tosend.osol2:3"), BOTH, retained="kept:1=osol2;tosend.osol2=osol2"
        ),
    ),
    Scenario(
        "joined",
        lambda: world(_both("sent:2 kept:3"), _both("sent:3"), retained="kept:3=osol2"),
    ),
    Scenario("both in sync", lambda: world(BOTH, BOTH, BOTH)),
    Scenario("B left, one has it", lambda: world(LEFT, BOTH, LEFT)),
    Scenario("B left, one rotated", lambda: world(LEFT, _both("sent:2"), BOTH)),
    Scenario(
        "one lags",
        lambda: world(_both("kept:1 sent:2"), _both("sent:2"), BOTH, retained="kept:1=osol3"),
    ),
    Scenario(
        "both lag at different bases",
        lambda: world(
            _both("kept:1 kept:2 sent:3"),
            BOTH,
            _both("sent:2"),
            retained="kept:1=osol2;kept:2=osol3",
        ),
    ),
    Scenario(
        "A half destroyed, one lags",
        lambda: world(
            {"": "kept:1 tosend:3", "a": "kept:1 sent:2 tosend:3"},
            _both("sent:3"),
            BOTH,
            retained="kept:1=osol3",
        ),
    ),
    Scenario(
        "lagging, a child lost the joining snapshot",
        lambda: world(
            {"": "kept:1 sent:2 tosend.osol2:3", "a": "kept:1 sent:2"},
            BOTH,
            retained="kept:1=osol2;tosend.osol2=osol2",
        ),
    ),
    Scenario(
        "lagging, only a child has the joining snapshot",
        lambda: world(
            {"": "kept:1 sent:2", "a": "kept:1 sent:2 tosend.osol2:3"},
            BOTH,
            retained="kept:1=osol2;tosend.osol2=osol2",
        ),
    ),
    Scenario(
        "cut before A was kept, one may hold it",
        lambda: world(
            _both("kept:1 sent:2 tosend:3"),
            _both("sent:1 tosend:2"),
            _both("sent:3"),
            retained="kept:1=osol2;kept:2=osol2",
        ),
    ),
    Scenario(
        "one dataset lags",
        lambda: world(
            _both("kept:1 sent:2"),
            {"": "sent:2", "a": "sent:1"},
            _both("sent:2"),
            retained="kept:1=osol2;sent=osol2",
        ),
    ),
    Scenario(
        "one is ahead of B",
        lambda: world(
            _both("sent:1 tosend:2 kept:3"), BOTH, _both("sent:3"), retained="kept:3=osol3"
        ),
    ),
    Scenario(
        "a join was overtaken",
        lambda: world(
            _both("kept:1 tosend.osol2:2 sent:3"),
            _both("sent:3"),
            retained="kept:1=osol2;tosend.osol2=osol2",
        ),
    ),
)

FIRST = (
    Scenario("first sync", lambda: world(_both(""), None), full=True),
    Scenario(
        "first sync, not recursive",
        lambda: world({"": "", "a": ""}, None),
        {"recursive": False},
        full=True,
    ),
    Scenario(
        "first sync with history",
        lambda: world(_both("daily:1! weekly:2!"), None),
        {"intermediary": True},
        full=True,
    ),
    Scenario("first sync of two", lambda: world(_both(""), None, None), full=True),
    Scenario("a newly born child", lambda: world({**BOTH, "b": ""}, BOTH), full=True),
    Scenario("a new one beside one in sync", lambda: world(BOTH, BOTH, None), full=True),
    Scenario(
        "a child is lost on the target",
        lambda: world(THREE, {"": "sent:1", "b": "sent:1"}),
        full=True,
    ),
    Scenario(
        "first sync of another's replica",
        lambda: marked(world(_both(""), None), "osol1", "osol0/other/sync#0"),
        full=True,
    ),
    Scenario("a re-created child", lambda: recreated(world(BOTH, BOTH), "a"), full=True),
    Scenario(
        "a child is lost, another has its new name",
        lambda: moved(moved(world(THREE, {"": "sent:1", "b": "sent:1"}), "b", "c"), "a", "b"),
        full=True,
    ),
    Scenario(
        "a re-created child with somebody's own name",
        lambda: recreated(world(BOTH, {"": "sent:1", "a": "sent:1 tosend.osol2:2!?"}), "a"),
        full=True,
    ),
)

# Other resources, and what else may be on either side.
KINDS = (
    Scenario("not recursive", lambda: world({**ALONE, "a": ""}, ALONE), {"recursive": False}),
    Scenario(
        "not recursive, B left",
        lambda: world({"": LEFT[""], "a": ""}, {"": LEFT[""]}),
        {"recursive": False},
    ),
    Scenario("with history", lambda: world(_both("sent:1 daily:2!"), BOTH), {"intermediary": True}),
    Scenario(
        "with history, lagging",
        lambda: world(_both("kept:1 sent:2 daily:3!"), BOTH, retained="kept:1=osol2"),
        {"intermediary": True},
    ),
    Scenario("dst named like src", lambda: landed(world(BOTH, BOTH)), {"dst": LIKE_SRC}),
    Scenario("a foreign child", lambda: world(BOTH, {**BOTH, "x": "sent:7! tosend:8!"})),
    Scenario("a foreign snapshot", lambda: world(BOTH, {"": "sent:1 theirs:2!", "a": "sent:1"})),
    Scenario(
        "a foreign snapshot with an own name",
        lambda: world(BOTH, {"": "sent:1 tosend.osol2:2!?", "a": "sent:1"}),
    ),
    Scenario("a gone child", lambda: gone(world(BOTH, BOTH), "a")),
    Scenario(
        "a gone child with a foreign snapshot",
        lambda: gone(world(BOTH, {"": "sent:1", "a": "sent:1 theirs:2!"}), "a"),
    ),
    Scenario("a gone child beside B", lambda: gone(world(LEFT, BOTH), "a")),
    Scenario(
        "a gone child where a rotation was cut",
        lambda: gone(world(_both("sent:2"), {"": "sent:1 tosend:2", "a": "sent:1"}), "a"),
    ),
    Scenario(
        "a gone child where a join was cut",
        lambda: gone(world(_both("kept:1 sent:2"), _both("kept:1"), retained="kept:1=osol2"), "a"),
    ),
    Scenario("a renamed child", lambda: moved(world(BOTH, BOTH), "a", "b")),
    Scenario("two swapped children", lambda: swapped(world(THREE, THREE), "a", "b")),
    Scenario("a written replica", lambda: written(world(BOTH, BOTH), "a")),
    Scenario("A is held on the source", lambda: world({"": "sent:1^", "a": "sent:1"}, BOTH)),
    Scenario("A is held on the target", lambda: world(BOTH, {"": "sent:1", "a": "sent:1^"})),
)

# What must not be written to.
REFUSED = (
    Scenario("the replica is gone", lambda: world(BOTH, None, known=ONE), end="refused"),
    Scenario("no common snapshot", lambda: world(_both("sent:5"), _both("sent:1?")), end="refused"),
    Scenario(
        "someone's dataset is at dst",
        lambda: written(world(BOTH, _both("daily:1!?"), known=(), mark=None)),
        end="refused",
    ),
    Scenario(
        "the mark was taken off", lambda: written(world(BOTH, BOTH, mark=None)), end="refused"
    ),
    Scenario(
        "another source's replica",
        lambda: written(world(BOTH, BOTH, mark="osol9/other/sync#1")),
        end="refused",
    ),
    Scenario(
        "the source was rolled back",
        lambda: world(_both("kept:1"), _both("kept:1 sent:3"), retained="kept:1=osol2"),
        end="refused",
    ),
    Scenario(
        "a child without a common snapshot",
        lambda: world(_both("sent:5"), {"": "sent:5", "a": "sent:1?"}),
        end="refused",
    ),
    Scenario(
        "lagging, a child is broken",
        lambda: world(
            _both("kept:1 sent:2"),
            {"": "sent:1", "a": "sent:1 tosend:3?"},
            retained="kept:1=osol2",
        ),
        end="refused",
    ),
    Scenario(
        "someone's @tosend on the replica",
        lambda: world(BOTH, {"": "sent:1", "a": "sent:1 tosend:2!?"}),
        end="refused",
    ),
    Scenario(
        "someone's @sent on the replica",
        lambda: after_a_failure(world(BOTH, {"": "sent:1", "a": "mine:1 sent:2!?"})),
        end="refused",
    ),
    Scenario(
        "someone's @sent where a rotation was cut",
        lambda: after_a_failure(world(LEFT, {"": "tosend:2", "a": "tosend:2 sent:3!?"})),
        end="refused",
    ),
    Scenario(
        "someone's newer snapshot with data",
        lambda: world(BOTH, {"": "sent:1", "a": "sent:1 theirs:2!+"}),
        end="refused",
    ),
    Scenario(
        "lagging, someone's @tosend with data",
        lambda: world(
            _both("kept:1 sent:2"),
            {"": "sent:1 tosend:4!?+", "a": "sent:1"},
            retained="kept:1=osol2",
        ),
        end="refused",
    ),
    Scenario(
        "written to, and to be asked",
        lambda: written(world(BOTH, BOTH)),
        {"on_divergence": "refuse"},
        end="refused",
    ),
    Scenario(
        "gone on the source, and to be asked",
        lambda: gone(world(BOTH, BOTH), "a"),
        {"on_child_gone": "stop"},
        end="refused",
    ),
    Scenario(
        "someone's @tosend on the source",
        lambda: world({"": "sent:1 tosend:2!", "a": "sent:1"}, BOTH),
        end="refused",
    ),
    Scenario(
        "this node stands by",
        lambda: marked(world(BOTH, None, known=()), "osol1", f"osol2/{WHO.rid_value}"),
        end="idle",
    ),
    Scenario(
        "the target is the source",
        lambda: written(taken_there(world(BOTH, BOTH, known=(), mark=None))),
        end="idle",
    ),
)

# Nothing was written, as far as a look at some of it goes.
_SKIP = {"skip_unchanged": True}
UNCHANGED = (
    Scenario("nothing was written", lambda: claimed(world(BOTH, BOTH)), _SKIP),
    Scenario("nothing was written, two targets", lambda: claimed(world(BOTH, BOTH, BOTH)), _SKIP),
    Scenario("a child was written to", lambda: claimed(worked(world(BOTH, BOTH), "a")), _SKIP),
    Scenario(
        "a child was written to just now",
        lambda: claimed(worked(world(BOTH, BOTH), "a", synced=False)),
        _SKIP,
    ),
    Scenario(
        "a child was written to before somebody's snapshot",
        lambda: claimed(world({"": "sent:1", "a": "sent:1 daily:2!+"}, BOTH)),
        _SKIP,
    ),
    Scenario(
        "nothing was written but to the replica",
        lambda: claimed(written(world(BOTH, BOTH), "a")),
        _SKIP,
    ),
    Scenario(
        "only a child is new", lambda: claimed(world({**BOTH, "b": ""}, BOTH)), _SKIP, full=True
    ),
    Scenario("only a child is gone", lambda: gone(claimed(world(THREE, THREE)), "b"), _SKIP),
    Scenario(
        "nothing was written, and one target lags",
        lambda: claimed(
            world(_both("kept:1 sent:2"), _both("sent:2"), _both("sent:1"), retained="kept:1=osol3")
        ),
        _SKIP,
    ),
    Scenario(
        "nothing was written, and a base is kept for nothing",
        lambda: claimed(world(_both("kept:1 sent:2"), _both("sent:2"), retained="kept:1=osol2")),
        _SKIP,
    ),
)

# Few of many datasets were written to.
_ALONE = {"send_changed": True}
EIGHT = dict.fromkeys(("", *"abcdefg"), "sent:1")
FOUR = dict.fromkeys(("", *"abc"), "sent:1")
TAKEN = FOUR | {"": "sent:1 tosend:2", "c": "sent:1 tosend:2"}
ROTATED = FOUR | {"": "sent:2", "c": "sent:2"}

FEW = (
    Scenario(
        "one of eight was written to", lambda: claimed(worked(world(EIGHT, EIGHT), "c")), _ALONE
    ),
    Scenario(
        "one of eight was written to, two targets",
        lambda: claimed(worked(world(EIGHT, EIGHT, EIGHT), "c")),
        _ALONE,
    ),
    Scenario("none of four was written to", lambda: claimed(world(FOUR, FOUR)), _ALONE),
    Scenario(
        "one of eight replicas was written to",
        lambda: claimed(written(world(EIGHT, EIGHT), "c")),
        _ALONE,
    ),
    Scenario(
        "none of four was written to, and @sent is as old as may be",
        lambda: claimed(world(FOUR, FOUR)),
        {**_ALONE, "sync_max_delay": 60},
    ),
    Scenario(
        "none of five was written to, one is gone",
        lambda: gone(claimed(world({**FOUR, "d": "sent:1"}, {**FOUR, "d": "sent:1"})), "b"),
        _ALONE,
    ),
    Scenario(
        "B of some left, target at A", lambda: claimed(worked(world(TAKEN, FOUR), "b")), _ALONE
    ),
    Scenario(
        "B of some left, target half rotated",
        lambda: claimed(world(TAKEN, FOUR | {"": "sent:2", "c": "sent:1 tosend:2"})),
        _ALONE,
    ),
    Scenario("B of some left, one rotated", lambda: claimed(world(TAKEN, ROTATED, FOUR)), _ALONE),
    Scenario("@sent of unlike age", lambda: claimed(world(ROTATED, ROTATED)), _ALONE),
    Scenario(
        "@sent of unlike age, one lags",
        lambda: claimed(
            world(
                FOUR | {"": "kept:1 sent:2", "c": "kept:1 sent:2"},
                ROTATED,
                FOUR,
                retained="kept:1=osol3;sent=osol3",
            )
        ),
        _ALONE,
    ),
    Scenario(
        "A of some destroyed on the source",
        lambda: world(FOUR | {"": "tosend:2", "c": "sent:1 tosend:2"}, ROTATED),
        _ALONE,
    ),
)

# A receive that was cut, and can go on.
REST = (
    Scenario(
        "a first stream that was cut",
        lambda: cut(world(_both("tosend:2"), None), "", "100002", "", "data@tosend"),
        full=True,
    ),
    Scenario(
        "a child's stream that was cut",
        lambda: cut(world(LEFT, {**BOTH, "": LEFT[""]}), "a", "200002", "200001", "data/a@tosend"),
    ),
    Scenario(
        "a new child's stream that was cut",
        lambda: cut(world({**LEFT, "b": "tosend:2"}, LEFT), "b", "300002", "", "data/b@tosend"),
    ),
    Scenario(
        "a cut stream of a child that was renamed",
        lambda: cut(world({**LEFT, "c": "tosend:2"}, LEFT), "b", "400002", "", "data/b@tosend"),
    ),
    Scenario(
        "a cut stream of what is @sent by now",
        lambda: cut(
            world(_both("kept:1 sent:2"), BOTH, retained="kept:1=osol2"),
            "",
            "100002",
            "100001",
            "data@tosend",
        ),
    ),
    Scenario(
        "a cut stream of what is gone",
        lambda: cut(
            forgotten(world(BOTH, BOTH), "200009"), "a", "200009", "200001", "data/a@tosend"
        ),
    ),
    Scenario(
        "a cut stream of a new child that is gone",
        lambda: cut(forgotten(world(BOTH, BOTH), "300009"), "b", "300009", "", "data/b@tosend"),
    ),
    Scenario(
        "a cut stream of a new child's snapshot that is gone",
        lambda: cut(
            forgotten(world({**BOTH, "b": ""}, BOTH), "300009"), "b", "300009", "", "data/b@tosend"
        ),
        full=True,
    ),
    Scenario(
        "a cut stream to what was written to",
        lambda: cut(written(world(LEFT, BOTH), "a"), "a", "200002", "200001", "data/a@tosend"),
    ),
    Scenario(
        "a cut stream of somebody's snapshot in between",
        lambda: cut(world(_both("sent:1 daily:2!"), BOTH), "", "100002", "100001", "data@daily"),
        {"intermediary": True},
    ),
    Scenario(
        "a cut stream of somebody's snapshot in between that is gone",
        lambda: cut(forgotten(world(BOTH, BOTH), "100002"), "", "100002", "100001", "data@daily"),
        {"intermediary": True},
    ),
    Scenario(
        "somebody's cut stream",
        lambda: cut(world(BOTH, BOTH), "x", "555", "", "other@sent"),
        end="refused",
    ),
    Scenario(
        "somebody's cut stream from the source",
        lambda: cut(world(BOTH, BOTH), "x", "777", "", "data2@sent"),
        end="refused",
    ),
)
_CUT_AGAIN = (
    "B left, target at A",
    "lagging",
    "one dataset lags",
    "with history",
    "two swapped children",
    "a foreign snapshot",
    "a written replica",
    "first sync",
    "first sync with history",
    "a newly born child",
    "a child is lost, another has its new name",
    "a re-created child",
)

# A join goes on beside the others: the two orders are what a single thread can show of that.
_JOINING = ("lag", "new one", "overtaken")
STANDARD = (*CUT, *FIRST, *KINDS, *REFUSED, *UNCHANGED, *FEW)
LATE = tuple(
    replace(one, late=True) for one in STANDARD if any(word in one.name for word in _JOINING)
)
RESUMABLE = tuple(
    replace(one, resumes=True)
    for one in (*REST, *STANDARD, *LATE)
    if one in REST or one.name in _CUT_AGAIN
)
