"""Whatever operators and accidents do, it ends in sync or with a refusal that says why.

A state machine on fakezfs: a source with two targets, and whatever may happen to them, in any
order. The laws are held at each step of each run. MACHINE_EXAMPLES=5000 tries so many random ones
instead of the same few.
"""

import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from . import proof
from .defects import DEFECTS
from .fakezfs import Dataset, Snap
from .laws import PERSON, SOURCE, Guard
from .notation import DST, SRC
from .proof import Lab
from .worlds import BOTH, EIGHT, NODES, Scenario, world

RUNS = 6  # within so many undisturbed runs it ends
EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "0"))

nodes = st.sampled_from(NODES)
sides = st.sampled_from((SOURCE, *NODES))
children = st.sampled_from(("a", "b", "c", "a/d"))
datasets = st.sampled_from(("", "a", "b", "c", "a/d"))
steps = st.integers(0, 30)
which = st.integers(0, 3)
OPTIONS: tuple[dict[str, object], ...] = (
    {},
    {"intermediary": True},
    {"recursive": False},
    {"on_child_gone": "keep"},
    {"on_divergence": "refuse"},
    {"send_changed": True},
)
labels = st.sampled_from(
    ("sent", "tosend", "tosend.osol2", "daily", "sent.20100619T122100Z-999999")
)


class Operators(RuleBasedStateMachine):
    """A source, two targets, the agent, and whoever else is at them."""

    @initialize(new=st.booleans(), late=st.booleans(), options=st.sampled_from(OPTIONS))
    def begin(self, new: bool, late: bool, options: dict[str, object]) -> None:
        tree = EIGHT if "send_changed" in options else BOTH
        there = None if new else tree
        start = Scenario("machine", lambda: world(tree, tree, there), options, True, late=late)
        self.lab = Lab(start)
        self.state = self.lab.start()

    def _root(self, node: str) -> str:
        return SRC if node == SOURCE else DST

    def _dataset(self, node: str, name: str) -> Dataset | None:
        root = self._root(node)
        return self.state.pools[node].get(f"{root}/{name}" if name else root)

    def _nth(self, node: str, name: str, number: int) -> tuple[Dataset, str] | None:
        """Return a dataset with the name of one of its snapshots, the newest first."""
        one = self._dataset(node, name)
        if one is None or len(one.snaps) <= number:
            return None
        return one, sorted(one.snaps, key=lambda label: -one.snaps[label].txg)[number]

    def _log(self, text: str) -> None:
        self.state.log.append(f"--- {text}")

    # --- the agent ------------------------------------------------------------------------------

    @rule(times=st.integers(1, 3))
    def agent_runs(self, times: int) -> None:
        for _ in range(times):
            self._log("run")
            self.lab.run(self.state)

    @rule(after=steps)
    def run_is_killed(self, after: int) -> None:
        self._log(f"killed after {after}")
        self.state.trouble.fuse = self.state.steps + after
        self.lab.run(self.state)
        self.state.trouble.fuse = None

    @rule(after=steps, pace=st.sampled_from(("before", "beside", "after")))
    def run_is_killed_and_its_transfer_goes_on(self, after: int, pace: str) -> None:
        self._log(f"killed after {after}, the transfer goes on, {pace}")
        self.lab.orphan(self.state, self.state.steps + after, pace)
        if pace == "before":
            self.state.let_orphan()
        self.lab.run(self.state)
        self.state.trouble.orphans = ""

    @rule(node=nodes, after=steps)
    def node_is_lost(self, node: str, after: int) -> None:
        self._log(f"{node} lost after {after}")
        self.state.trouble.lose = (node, self.state.steps + after)
        self.lab.run(self.state)
        self.state.trouble.lose = None

    @rule(number=st.integers(1, 3), lie=st.booleans())
    def transfer_has_a_gap_or_a_false_status(self, number: int, lie: bool) -> None:
        self._log(f"transfer {number}, {lie=}")
        trouble, count = self.state.trouble, self.state.transfers + number
        trouble.lie, trouble.gap = (count, None) if lie else (None, count)
        self.lab.run(self.state)
        trouble.lie = trouble.gap = None

    @rule(node=sides, number=st.integers(1, 4))
    def something_cannot_be_read(self, node: str, number: int) -> None:
        self._log(f"{node}: reading {number}")
        self.state.trouble.blind = (node, self.state.readings.get(node, 0) + number)
        self.lab.run(self.state)
        self.state.trouble.blind = None

    @rule(node=nodes)
    def pool_is_away_for_a_run(self, node: str) -> None:
        self._log(f"{node}: exported")
        self.state.trouble.exported.add(node)
        self.lab.run(self.state)
        self.state.trouble.exported.discard(node)

    @rule(node=nodes)
    def node_goes_down(self, node: str) -> None:
        self.state.trouble.down.add(node)

    @rule(node=nodes)
    def node_comes_back(self, node: str) -> None:
        self.state.trouble.down.discard(node)

    @rule(node=sides, minutes=st.integers(-600, 600))
    def clock_is_set(self, node: str, minutes: int) -> None:
        self.state.trouble.skew[node] = minutes

    # --- the source ---------------------------------------------------------------------------

    @rule(name=children)
    def child_is_created(self, name: str) -> None:
        here, full = self.state.pools[SOURCE], f"{SRC}/{name}"
        if full not in here and full.rpartition("/")[0] in here:
            self._log(f"create {name}")
            txg = self.state.next_txg()
            here[full] = Dataset(txg, txg)

    @rule(old=children, new=children)
    def child_is_renamed(self, old: str, new: str) -> None:
        here, before, after = self.state.pools[SOURCE], f"{SRC}/{old}", f"{SRC}/{new}"
        inside = after.startswith(f"{before}/")
        if before in here and after not in here and after.rpartition("/")[0] in here and not inside:
            self._log(f"rename {old} {new}")
            for one in self.state.below(SOURCE, before):
                here[after + one[len(before) :]] = here.pop(one)

    @rule(name=children)
    def child_is_destroyed(self, name: str) -> None:
        self._log(f"destroy {name}")
        for one in self.state.below(SOURCE, f"{SRC}/{name}"):
            del self.state.pools[SOURCE][one]

    @rule(name=datasets, number=which)
    def source_is_rolled_back(self, name: str, number: int) -> None:
        if found := self._nth(SOURCE, name, number):
            one, label = found
            self._log(f"rollback -r {name}@{label}")
            for newer in [n for n, s in one.snaps.items() if s.txg > one.snaps[label].txg]:
                del one.snaps[newer]
            one.written = 0

    # --- either side --------------------------------------------------------------------------

    @rule(node=sides, name=datasets)
    def someone_writes(self, node: str, name: str) -> None:
        if one := self._dataset(node, name):
            self._log(f"{node}: write {name}")
            one.written += 4096

    @rule(number=st.integers(1, 6))
    def someone_writes_while_a_run_looks(self, number: int) -> None:
        self._log(f"write after reading {number}")
        self.state.trouble.work = self.state.readings.get(SOURCE, 0) + number
        self.lab.run(self.state)
        self.state.trouble.work = None

    @rule(node=sides, name=datasets, number=which)
    def snapshot_is_destroyed(self, node: str, name: str, number: int) -> None:
        if found := self._nth(node, name, number):
            one, label = found
            self._log(f"{node}: destroy {name}@{label}")
            del one.snaps[label]

    @rule(node=sides, name=datasets, label=labels)
    def someone_takes_a_snapshot(self, node: str, name: str, label: str) -> None:
        one = self._dataset(node, name)
        if one is not None and label not in one.snaps:
            self._log(f"{node}: snapshot {name}@{label}")
            txg = self.state.next_txg()
            one.snaps[label] = Snap(f"8{txg}", txg, None, data=one.written > 0)
            one.written = 0

    # --- a target -----------------------------------------------------------------------------

    @rule(node=nodes, name=children)
    def someone_makes_a_dataset_in_the_replica(self, node: str, name: str) -> None:
        there, full = self.state.pools[node], f"{DST}/{name}"
        above = full.rpartition("/")[0]
        cut = (node, above) in self.state.unfinished  # ZFS is about to take it away
        if full not in there and above in there and not cut:
            self._log(f"{node}: create {name}")
            txg = self.state.next_txg()
            there[full] = Dataset(txg, txg, written=4096)

    @rule(node=nodes, name=datasets)
    def replica_is_destroyed(self, node: str, name: str) -> None:
        self._log(f"{node}: destroy {name}")
        for one in self.state.below(node, f"{DST}/{name}" if name else DST):
            del self.state.pools[node][one]
            self.state.unfinished.discard((node, one))

    @rule(node=nodes)
    def mark_is_taken_off(self, node: str) -> None:
        if one := self._dataset(node, ""):
            self._log(f"{node}: mark off")
            one.props.clear()

    # --- the end ------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "state"):
            return
        self.state.mend()
        wrong: list[str] = []
        for _ in range(RUNS):
            self._log("run undisturbed")
            wrong = self._not_the_end()
            if not wrong:
                return
        raise AssertionError("\n".join((*wrong, *self.state.log)))

    def _not_the_end(self) -> list[str]:
        outcomes = self.lab.run(self.state)
        assert outcomes is not None
        guard = self.state.watch
        assert isinstance(guard, Guard)
        wrong = []
        for one in outcomes:
            if one.error is not None:
                told = one.error.result in PERSON or "move it away" in one.error.hint
                wrong += [] if told else [f"{one.node}: {one.error!r}"]
                continue
            for name, here in guard.inside(SOURCE).items():
                there = self.state.pools[one.node].get(DST + name[len(SRC) :])
                sent = {d.snaps["sent"].guid for d in (here, there) if d and "sent" in d.snaps}
                if there is None or len(sent) != 1 or "sent" not in here.snaps:
                    wrong.append(f"{one.node}: {name} is not in sync: {here} {there}")
        return wrong


def _tried(examples: int, *, found: bool = False) -> None:
    """Let the machine run; `found`: the first failure is enough, however long its story."""
    phases = (Phase.generate,) if found else (Phase.generate, Phase.shrink)
    options = settings(
        max_examples=examples,
        stateful_step_count=20,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Operators, settings=options)


def test_whatever_happens_ends_in_sync_or_in_a_refusal_that_says_why(
    record_property: Callable[[str, object], None],
) -> None:
    before = proof.COUNTS.copy()
    _tried(EXAMPLES or 400)
    record_property("proof", dict(proof.COUNTS - before))


@pytest.mark.parametrize(
    "name",
    [
        "what a listing shows is not kept",
        "the target is rotated by name",
        "-r hits what is not in the tree",
    ],
)
def test_the_machine_fails_on_a_defect(name: str) -> None:
    (defect,) = [one for one in DEFECTS if one.name == name]
    with pytest.MonkeyPatch.context() as patch:
        defect.apply(patch)
        with pytest.raises(AssertionError):
            _tried(400, found=True)
