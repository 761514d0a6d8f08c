"""From a kill at any instant the next runs converge, and no command breaks an invariant.

The real run (observe, plan, execute) is driven against ZFS in memory: fakezfs is what it runs on,
worlds the situations, laws the invariants, proof what goes wrong and how it ends.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import pytest

from . import proof
from .proof import Lab, applies, prove
from .worlds import (
    BOTH,
    CUT,
    FEW,
    FIRST,
    KINDS,
    LATE,
    ONE,
    REFUSED,
    RESUMABLE,
    STANDARD,
    UNCHANGED,
    Scenario,
    after_a_failure,
    world,
)


@pytest.fixture(autouse=True)
def _counts(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Hand over what a test tried; tests/conftest.py sums it up."""
    before = proof.COUNTS.copy()
    yield
    record_property("proof", dict(proof.COUNTS - before))


def cases(*situations: Scenario) -> pytest.MarkDecorator:
    late = [one for one in LATE if any(one.name == other.name for other in situations)]
    return pytest.mark.parametrize("situation", [*situations, *late], ids=str)


@cases(*CUT, *KINDS, *REFUSED, *FEW)
def test_a_run_killed_at_any_step_loses_no_base_and_heals(situation: Scenario) -> None:
    prove(situation, "killed")


@cases(*CUT, *KINDS, *REFUSED, *FEW)
def test_a_target_lost_at_any_step_loses_no_base_and_heals(situation: Scenario) -> None:
    prove(situation, "lost")


@cases(*FIRST)
def test_a_first_sync_killed_at_any_step_heals(situation: Scenario) -> None:
    prove(situation, "killed")


@cases(*FIRST)
def test_a_first_sync_that_loses_a_target_at_any_step_heals(situation: Scenario) -> None:
    prove(situation, "lost")


@cases(*STANDARD)
def test_a_transfer_that_outlives_its_run_does_no_harm(situation: Scenario) -> None:
    prove(situation, "orphaned")


@cases(*(one for one in STANDARD if applies(one, "narrowed")))
def test_runs_for_one_target_leave_the_others_their_bases(situation: Scenario) -> None:
    prove(situation, "narrowed")


@cases(*STANDARD)
def test_a_false_answer_or_none_is_never_taken_for_the_truth(situation: Scenario) -> None:
    prove(situation, "misled")


@cases(*CUT, *FIRST, *KINDS, *UNCHANGED, *FEW)
def test_a_run_that_nothing_disturbs_ends_in_sync(situation: Scenario) -> None:
    prove(situation, "undisturbed")


@cases(*REFUSED)
def test_what_must_not_be_written_to_is_refused(situation: Scenario) -> None:
    prove(situation, "undisturbed")


@cases(*UNCHANGED, *FEW)
def test_what_is_written_while_a_run_looks_is_sent_and_not_claimed_before(
    situation: Scenario,
) -> None:
    prove(situation, "worked")


# --- receives that can go on ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("situation", "fault"),
    [(one, fault) for one in RESUMABLE for fault in proof.FAULTS if applies(one, fault)],
    ids=str,
)
def test_what_was_received_before_a_cut_is_not_sent_again(situation: Scenario, fault: str) -> None:
    prove(situation, fault)


# --- joins that are cut more than once ----------------------------------------------------------


def cut_in_turn(events: Sequence[tuple[str, int]]) -> None:
    """Lose a target or kill the run, after so many steps, in one run after the other; heal."""
    lab = Lab(Scenario(f"{events}", lambda: world(BOTH, BOTH, BOTH), full=True))
    state = lab.start()
    for event, steps in events:
        state.mend()
        if event == "kill":
            state.trouble.fuse = state.steps + steps
        else:
            state.trouble.lose = ("osol2", state.steps + steps)
        proof.COUNTS["kill points"] += 1
        lab.run(state)
    lab.settle(state, f"{events}")


@pytest.mark.parametrize("middle", range(14))
def test_a_join_that_was_cut_twice_heals(middle: int) -> None:
    for last in range(14):
        cut_in_turn([("lose", 0), ("lose", middle), ("kill", last)])


def test_a_join_that_was_cut_three_times_heals() -> None:
    for last in range(12):
        cut_in_turn([("lose", 0), ("lose", 1), ("kill", 6), ("lose", last)])


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


def situation_of(source: str, held: str, child: str) -> Scenario:
    words, retained = SOURCES[source]
    both, there = {"": words, "a": words}, {"": held, "a": child}
    end = "sync" if heals(words, held) and heals(words, child) else "refused"
    return Scenario(
        f"{source}, target {held!r}, child {child!r}",
        lambda: after_a_failure(world(both, there, retained=retained, known=ONE)),
        end=end,
    )


@pytest.mark.parametrize("source", SOURCES)
def test_a_base_is_found_under_whatever_name_it_is_kept(source: str) -> None:
    for held in holdings(3, TARGET_NAMES):
        for child in sorted({held, "sent:1", "sent:2", "tosend:3"}):
            situation = situation_of(source, held, child)
            proof.COUNTS["start states"] += 1
            lab = Lab(situation)
            lab.settle(lab.start(), str(situation), by_hand="hand" in held + child)


@pytest.mark.parametrize("source", SOURCES)
def test_a_kill_in_whatever_state_loses_no_base_and_heals(source: str) -> None:
    for held in holdings(2, TARGET_NAMES[:3]):
        if heals(SOURCES[source][0], held):
            prove(situation_of(source, held, held), "killed")
