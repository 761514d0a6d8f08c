"""The fake ZFS of the model proof does what a real ZFS does: one contract, held by both."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from tests.lab import Lab, Node

from .contract import SCENARIOS, Said, Zfs
from .fakezfs import Dataset, World

NODE = "one.example.com"

every_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.__name__)


class FakeZfs:
    """The zfs of a world with one node."""

    newer = False

    def __init__(self) -> None:
        self.world = World({"osol1": {"tank": Dataset(1, 0), "backup": Dataset(2, 0)}})

    def run(self, *words: str) -> Said:
        """Run one zfs command; a hold is a property of the snapshot here."""
        if words[0] in ("hold", "release"):
            dataset, _, label = words[2].partition("@")
            snaps = self.world.pools["osol1"][dataset].snaps
            held = words[0] == "hold"
            snaps[label] = replace(snaps[label], held=held)
            return Said(0, [], "")
        names: Sequence[str] = ()
        if words[0] == "list" and "snapshot" in words:
            words, names = words[:-1], words[-1:]
        answer = self.world.zfs("osol1", words, names)
        return Said(answer.status, answer.stdout.splitlines(), " ".join(answer.stderr.split()))

    def pipe(self, send: Sequence[str], receive: Sequence[str]) -> tuple[int, Said]:
        """Run a transfer."""
        words = ("osol1", "\0".join(receive))
        done = self.world.transfer([("/osol1/zfs", *send)], words, (), 0)
        sent, received = done.stages
        return sent.status, Said(received.status, [], " ".join(received.stderr.split()))

    def write(self, dataset: str) -> None:
        """Change data."""
        self.world.pools["osol1"][dataset].written += 1

    write_below = write


class RealZfs:
    """The zfs of a lab node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.newer = "resume" in node.features

    def run(self, *words: str) -> Said:
        """Run one zfs command."""
        said = self.node.run(["zfs", *words], check=False)
        return Said(said.returncode, said.stdout.splitlines(), " ".join(said.stderr.split()))

    def pipe(self, send: Sequence[str], receive: Sequence[str]) -> tuple[int, Said]:
        """Run a pipe in a shell that tells the sender's status behind the receiver's output."""
        script = '{ zfs "$@" 2>/dev/null; echo $? >&3; } | zfs $RECEIVE 3>&-; exit $?'
        said = self.node.run(
            ["bash", "-c", f"set -o pipefail; exec 3>&1; {script}", "sh", *send],
            check=False,
            env={"RECEIVE": " ".join(receive)},
        )
        *_, sent = said.stdout.split()
        return int(sent), Said(said.returncode, [], " ".join(said.stderr.split()))

    def write(self, dataset: str) -> None:
        """Change data."""
        self.node.write(dataset, "file", dataset.encode() * 100)

    def write_below(self, dataset: str) -> None:
        """Mount it for a moment."""
        self.node.zfs("set", "mountpoint=/run/pools/backup", dataset)
        self.node.write(dataset, "theirs", b"theirs")
        self.node.zfs("set", "mountpoint=none", dataset)


@every_scenario
def test_the_fake_keeps_the_contract(scenario: Callable[[Zfs], None]) -> None:
    scenario(FakeZfs())


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Lab() as lab:
        yield lab.node(NODE, {"tank": "source", "backup": "target"})


@pytest.mark.zfs
@every_scenario
def test_a_real_zfs_keeps_the_contract(scenario: Callable[[Zfs], None], node: Node) -> None:
    for pool in ("tank", "backup"):
        for dataset in node.zfs("list", "-H", "-r", "-o", "name", pool).split()[1:]:
            if dataset.count("/") == 1:
                node.zfs("destroy", "-r", dataset)
    scenario(RealZfs(node))
