"""The model proof: the real run (observe, plan, execute) in every situation, disturbed everywhere.

After every step the laws are held (laws.py); at the end of it all a few undisturbed runs have to
put everything in order, or to refuse. It never decides what is right in a situation: the situation
says how it ends.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest

from zfs_sync_agent.execute import Outcome, Run
from zfs_sync_agent.model import RETAINED

from .fakerun import run_agent, run_for
from .fakezfs import Endless, World
from .laws import PERSON, SOURCE, Guard, Violation
from .worlds import LATE, RESUMABLE, STANDARD, Scenario

RUNS = 3  # within so many runs everything is in sync again

COUNTS: Counter[str] = Counter()


class Lab:
    """Runs the agent in the worlds of one scenario, and counts what it did."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.resource = scenario.resource
        self.nodes = [target.node for target in self.resource.targets]

    def start(self) -> World:
        """Return a fresh world under guard."""
        state = self.scenario.build()
        state.resumes = self.scenario.resumes
        Guard(state, self.resource)
        return state

    def run(self, state: World, *, linger: bool = False, only: str = "") -> list[Outcome] | None:
        """Run once; return what became of the targets, None if it was killed.

        `linger`: what a cut receive left unfinished goes away only after the run. `only`: the
        target that the run is for, where it is not for all.
        """
        COUNTS["runs"] += 1
        guard = state.watch
        assert isinstance(guard, Guard)
        cut = set(state.unfinished)
        if not linger:
            state.tidy(cut)
        guard.begin()
        try:
            outcomes = run_agent(
                state,
                self.resource,
                lazy_joins=self.scenario.late,
                kind=run_for(only) if only else Run,
            )
        except Violation:
            raise
        except (Exception, Endless) as error:
            what = f"the agent ended with {type(error).__name__}: {error}"
            raise Violation("I5", what, state.log) from error
        state.let_orphan()
        state.tidy(cut)
        if outcomes is not None:
            guard.judge(outcomes)
        return outcomes

    # --- how it ends --------------------------------------------------------------------------

    def unsettled(self, state: World, *, by_hand: bool = False) -> list[str]:
        """Return what is not as it is after a good run.

        `by_hand`: someone renamed our snapshots; a receive may rename those once more, to recv-*.
        """
        guard = state.watch
        assert isinstance(guard, Guard)
        wrong = []
        src, dst = guard.src, guard.dst
        tree = guard.inside(SOURCE)
        busy = {name for one in tree.values() for name, snap in one.snaps.items() if snap.held}
        for full, here in tree.items():
            name = full[len(src) :]
            own = {one for one, snap in here.snaps.items() if snap.rid} - busy
            if (self.resource.skip_unchanged or self.resource.send_changed) and here.dirty:
                wrong.append(f"source{name}: {here.dirty} bytes were not sent")
            if own != {"sent"}:
                wrong.append(f"source{name}: {sorted(own)}")
                continue
            for node in self.nodes:
                there = state.pools[node].get(dst + name)
                held = {} if there is None else there.snaps
                own = {one for one, snap in held.items() if snap.rid and not snap.held}
                if by_hand:
                    own = {one for one in own if not one.startswith(("hand", "recv-"))}
                if own != {"sent"} or held["sent"].guid != here.snaps["sent"].guid:
                    wrong.append(f"{node}{name}: {held}")
        for node in self.nodes:
            wrong += [f"{node}{name}: {one}" for name, one in state.partials(node).items()]
        root = state.pools[SOURCE][src]
        if RETAINED in root.props and not busy:
            wrong.append(f"retained: {root.props[RETAINED]}")
        return wrong

    def settle(
        self, state: World, why: str, *, by_hand: bool = False, linger: bool = False
    ) -> None:
        """Hold that a few undisturbed runs end as the scenario says."""
        state.mend()
        results: list[str] = []
        wrong = ["nothing ran"]
        for number in range(RUNS + linger):
            before = state.steps
            outcomes = self.run(state, linger=linger and number == 0) or []
            if self.scenario.end == "idle" and state.steps > before:
                raise Violation("I7", f"{why}: this node has nothing to send", state.log)
            results = [f"{one.node}: {one.error or 'ok'}" for one in outcomes]
            wrong = self._not_the_end(state, outcomes, by_hand=by_hand)
            if not wrong and not state.unfinished:
                break
        if wrong:
            law = "I5" if self.scenario.end == "sync" else "why"
            raise Violation(law, f"{why}: {wrong}, {results}", state.log)
        if state.full_streams and not self.scenario.full:
            raise Violation("I5", f"{why}: full streams {state.full_streams}", state.log)

    def _not_the_end(
        self, state: World, outcomes: Sequence[Outcome], *, by_hand: bool
    ) -> list[str]:
        results = {one.error.result if one.error else "ok" for one in outcomes}
        match self.scenario.end:
            case "refused":
                return [] if results <= set(PERSON) else sorted(results)
            case "idle":
                return [] if results == {"ok"} else sorted(results)
        failed = sorted(results - {"ok"})
        return failed + self.unsettled(state, by_hand=by_hand)

    # --- what may go wrong --------------------------------------------------------------------

    def undisturbed(self) -> Iterator[str]:
        """Let nothing go wrong, and look at what becomes of it later."""
        state = self.start()
        self.settle(state, "undisturbed")
        yield ""
        for _ in range(2):
            self.settle(state, "once more")
        guard = state.watch
        assert isinstance(guard, Guard)
        if self.scenario.end == "sync" and (left := guard.left_behind()):
            raise Violation("I5", f"gone on the source, and still there: {left}", state.log)

    def length(self) -> tuple[int, World]:
        """Return how many steps one undisturbed run takes, and what it leaves."""
        state = self.start()
        self.run(state)
        return state.steps, state

    def killed(self) -> Iterator[str]:
        """Kill a run at each of its steps; let a target be away in the run after it."""
        away: list[set[str]] = [set()]
        away += [{node} for node in self.nodes] if len(self.nodes) > 1 else []
        for fuse, down in itertools.product(range(self.length()[0] + 1), away):
            cut = self._killed_once(fuse, down, linger=False)
            yield ""
            if cut:
                self._killed_once(fuse, down, linger=True)
                yield ""

    def _killed_once(self, fuse: int, down: set[str], *, linger: bool) -> bool:
        """Tell whether a dataset was being received when the run was killed."""
        state = self.start()
        state.trouble.fuse = fuse
        self.run(state)
        cut = bool(state.unfinished)
        partials = {
            (node, one)
            for node in self.nodes
            for name, one in state.partials(node).items()
            if state.can_go_on(SOURCE, one) and not state.pools[node][name].written
        }
        state.mend()
        state.trouble.down = set(down)
        self.run(state, linger=linger)
        why = f"killed after {fuse}, then away {down}"
        self.settle(state, why)
        if self.scenario.end == "sync" and (again := partials - state.resumed):
            raise Violation("I5", f"{why}: sent again instead of resumed: {again}", state.log)
        return cut

    def lost(self) -> Iterator[str]:
        """Let each target stop answering at each step, for one run and for another."""
        steps = range(self.length()[0] + 1)
        for node, after, again in itertools.product(self.nodes, steps, (False, True)):
            state = self.start()
            state.trouble.lose = (node, after)
            self.run(state)
            yield ""
            if again:
                self.run(state)
            self.settle(state, f"{node} lost after {after}, {again=}", linger=not again)

    def orphan(self, state: World, fuse: int, pace: str) -> None:
        """Kill a run after so many steps; if it was sending, that goes on, beside the next run."""
        guard = state.watch
        assert isinstance(guard, Guard)
        state.trouble.fuse, state.trouble.orphans = fuse, pace
        guard.begin()
        run_agent(state, self.resource, lazy_joins=self.scenario.late)
        state.trouble.fuse = None

    def orphaned(self) -> Iterator[str]:
        """Kill a run in the midst of a transfer, which goes on without it."""
        for fuse in range(self.length()[0] + 1):
            for pace in ("before", "beside", "after"):
                state = self.start()
                self.orphan(state, fuse, pace)
                if state.orphan is None:
                    break  # it was not sending
                yield ""
                if pace == "before":
                    state.let_orphan()
                self.run(state)
                self.settle(state, f"killed after {fuse}, the transfer goes on, {pace}")

    def narrowed(self) -> Iterator[str]:
        """Let runs be for one of several targets, and kill the second one at each of its steps."""
        for node in self.nodes:
            state = self.start()
            self.run(state, only=node)
            first = state.steps
            self.run(state, only=node)
            for fuse in (None, *range(first, state.steps + 1)):
                state = self.start()
                self.run(state, only=node)
                state.trouble.fuse = fuse
                self.run(state, only=node)
                yield ""
                self.settle(state, f"for {node} only, then killed after {fuse}")

    def misled(self) -> Iterator[str]:
        """Let one command say what is not true, or nothing."""
        _, after = self.length()
        for number in range(1, after.transfers + 1):
            for lie in (False, True):
                state = self.start()
                if lie:
                    state.trouble.lie = number
                else:
                    state.trouble.gap = number
                self.run(state)
                yield ""
                self.settle(state, f"transfer {number}, {lie=}")
        for node in (SOURCE, *self.nodes):
            for number in range(1, after.readings.get(node, 0) + 1):
                state = self.start()
                state.trouble.blind = (node, number)
                self.run(state)
                yield ""
                self.settle(state, f"reading {number} of {node} failed")
        for node in self.nodes:
            for trouble in ("down", "exported"):
                state = self.start()
                getattr(state.trouble, trouble).add(node)
                self.run(state)
                yield ""
                self.settle(state, f"{node} {trouble}")
        for node in self.nodes if len(self.nodes) > 1 else []:
            state = self.start()
            state.trouble.down = set(self.nodes)
            self.run(state)
            yield ""
            state.trouble.down = {node}
            self.run(state)
            self.settle(state, f"nobody answered, then all but {node}")

    def worked(self) -> Iterator[str]:
        """Let someone write to the source's last dataset after each of its readings."""
        _, after = self.length()
        for number in range(1, after.readings[SOURCE] + 1):
            state = self.start()
            state.trouble.work = number
            self.run(state)
            yield ""
            self.settle(state, f"written to after reading {number}")


FAULTS: dict[str, Callable[[Lab], Iterator[str]]] = {
    "undisturbed": Lab.undisturbed,
    "killed": Lab.killed,
    "lost": Lab.lost,
    "orphaned": Lab.orphaned,
    "narrowed": Lab.narrowed,
    "misled": Lab.misled,
    "worked": Lab.worked,
}


def applies(scenario: Scenario, fault: str) -> bool:
    """Tell whether a fault can happen in a scenario: one target of one is all of them."""
    return fault != "narrowed" or len(scenario.resource.targets) > 1


def prove(scenario: Scenario, fault: str) -> None:
    """Hold all laws in one scenario under one kind of fault, wherever it may happen."""
    COUNTS["start states"] += 1
    what = {"undisturbed": "undisturbed", "misled": "false answers", "worked": "writes"}
    counted = what.get(fault, "kill points")
    for _ in FAULTS[fault](Lab(scenario)):
        COUNTS[counted] += 1


Patch = Callable[[pytest.MonkeyPatch], None]
Case = tuple[Scenario, str]

# What shows without any fault is looked for first, since that is soon done.
CASES: tuple[Case, ...] = tuple(
    (scenario, fault)
    for faults in (["undisturbed"], [one for one in FAULTS if one != "undisturbed"])
    for scenario in (*STANDARD, *LATE, *RESUMABLE)
    for fault in faults
    if applies(scenario, fault)
)


def violations(patch: Patch, cases: Iterable[Case] = CASES) -> tuple[Violation, Case] | None:
    """Return the first violation of an agent with a defect, and its case; None if it has none."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        patch(monkeypatch)
        for scenario, fault in cases:
            try:
                prove(scenario, fault)
            except Violation as violation:
                return violation, (scenario, fault)
    return None
