"""A run that is killed at any moment is mended by the next ones, without a full stream.

Every command of a run is a kill point, and bytes of its transfers are. Who is killed: the agent
alone, the agent with all its children, or the receiving side.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from itertools import product

import pytest

from tests.e2e.kill_chain import WAYS, Chain, Point, Violation, kill_points, seed
from tests.e2e.kill_switch import AGENT, FAMILY, RECEIVE, RECEIVER
from tests.e2e.world import World

pytestmark = pytest.mark.zfs

# KILL_ALL=1 (make kill) leaves no kill point out; else KILL_SEED chooses some.
EVERYTHING = bool(os.environ.get("KILL_ALL"))
READINGS = 1  # how many of the commands that only read are kill points
CHANGES = 4  # how many of those that change something
ALL_CASES = list(product(("full", "incremental"), ("one_target", "two_targets"), WAYS))
# Each kind and each number of targets twice, each way.
CASES = [
    ("full", "one_target", FAMILY),
    ("full", "two_targets", RECEIVER),
    ("incremental", "one_target", AGENT),
    ("incremental", "two_targets", FAMILY),
]
ALL_TRANSFERS = list(product(("full", "incremental"), ("one_target", "two_targets")))
SOME_TRANSFERS = [("full", "one_target"), ("incremental", "two_targets")]
TRANSFERS = 4 if EVERYTHING else 1  # how many random bytes per way to kill


@pytest.fixture
def chain(request: pytest.FixtureRequest, kind: str, targets: str) -> Iterator[Chain]:
    """Make a chain of the kind and the targets that the test is parametrized with."""
    world: World = request.getfixturevalue(targets)
    made = Chain(world, incremental=kind == "incremental", seed=seed())
    yield made
    made.close()


def chosen_points(chain: Chain, way: str) -> list[Point]:
    """Return the kill points of an undisturbed run; KILL_POINT=N chooses the N-th of them alone.

    A random choice, of changes and of readings, or all of them.
    """
    chain.watched_run()
    changing, reading = kill_points(chain.world, way, EVERYTHING)
    assert {point.match for point in changing} >= {("send",), ("receive",), ("rename",)}
    if not EVERYTHING:
        changing = chain.random.sample(changing, CHANGES)
        reading = chain.random.sample(reading, READINGS)
    only = os.environ.get("KILL_POINT")
    return [p for n, p in enumerate([*changing, *reading], 1) if only in {None, str(n)}]


@pytest.mark.parametrize(("kind", "targets", "way"), ALL_CASES if EVERYTHING else CASES)
def test_a_run_killed_around_any_command_is_mended_by_the_next(chain: Chain, way: str) -> None:
    targets = chain.world.targets
    for point in chosen_points(chain, way):
        victim = point.node if point.node in targets else chain.random.choice(targets)
        chain.case(str(point), way, victim, point.node, partial(chain.arm, point, victim, way))
    tell(chain)


@pytest.mark.parametrize(("kind", "targets"), ALL_TRANSFERS if EVERYTHING else SOME_TRANSFERS)
def test_a_transfer_killed_at_any_byte_amid_changes_is_mended_by_the_next(chain: Chain) -> None:
    targets = chain.world.targets
    chain.size = 1_000_000
    chain.watched_run()
    size = min(chain.world.entry(target)["last_success"]["bytes"] for target in targets)
    for way in (AGENT, FAMILY, RECEIVER, RECEIVE):
        for _ in range(TRANSFERS):
            victim = chain.random.choice(targets)
            nth = chain.random.randint(1, len(targets))
            at = chain.random.randint(1, size // 2)  # a child that is destroyed makes it shorter
            label = f"byte {at} of {size} of send {nth}"
            arm = partial(chain.arm_bytes, at, victim, way, nth)
            chain.case(label, way, victim, chain.world.source, arm)
    tell(chain)


@pytest.mark.parametrize("targets", ["one_target"])
@pytest.mark.parametrize("kind", ["incremental"])
def test_the_judge_objects_to_an_ok_about_data_that_the_target_lost(chain: Chain) -> None:
    chain.fresh()
    chain.audit("before the loss", expect_ok=True)
    chain.world.target.zfs("destroy", f"{chain.world.dst}/a@sent")
    with pytest.raises(Violation, match=r"says OK of .*: the target lacks"):
        chain.audit("after the loss")


@pytest.mark.parametrize("targets", ["one_target"])
@pytest.mark.parametrize("kind", ["incremental"])
def test_the_judge_objects_to_a_full_stream_of_what_the_target_holds(chain: Chain) -> None:
    chain.fresh()
    chain.world.source.clear_calls()
    send = f"zfs send -p {chain.world.src}/a@sent >/dev/null"
    chain.world.source.run(["/bin/sh", "-c", send])
    with pytest.raises(Violation, match="a was sent in full 1 times, 0 targets lacked it"):
        chain.judge_sends(chain.world.targets)


def tell(chain: Chain) -> None:
    """Print the numbers, and fail if there are violations."""
    print(chain.summary())  # noqa: T201 - the numbers are a result
    assert not chain.violations, "\n\n".join([chain.summary(), *chain.violations])
