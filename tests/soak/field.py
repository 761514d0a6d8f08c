"""What a soak works on: a source and three targets, their data, and what the test knows of it.

It plays the application on the source, strangers on the targets and the person who moves the
service. The checksums of all that they wrote are kept here, outside the lab. It never judges the
programs, and never mends what they did.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping

from tests.e2e.conftest import SOURCE, T1, T2
from tests.e2e.kill_ledger import Ledger, Listing
from tests.e2e.test_failover import mount, unmount
from tests.e2e.test_targets import T3
from tests.e2e.world import World
from tests.lab import Lab, Node, Pool
from tests.lab.node import CLONE

from .judge import LIMIT_SECONDS, Score, judge_files, judge_guids

POOL, ROOT = "tank", "tank/data"
STALL_SECONDS = 5
SERVICE_FILE = f"""\
[sync#1]
type = zfs
src@{SOURCE} = {ROOT}
src@{T1} = {ROOT}
target = {SOURCE} {T1} {T2} {T3}
sync_max_delay = {LIMIT_SECONDS}s
stall_timeout = {STALL_SECONDS}
ssh = ssh -o ConnectTimeout=5 -o ServerAliveInterval=5 -o ServerAliveCountMax=3
"""

# These stay mounted, and are never renamed or destroyed.
LASTING = ("", "/a", "/a/x", "/b")
# The others are unmounted between two changes: zfs-fuse lets go of a mount late.
PARENTS = ("", "/b")
NAMES = ("c", "d", "e", "f", "g")
MOST_YOUNG = 5
OWN_NAMES = ("sent", "tosend", "mine")


class Field:
    """Four nodes, the data on them, and the checksums of it."""

    def __init__(self, lab: Lab, score: Score) -> None:
        self.score = score
        self.random = random.Random(score.seed)  # noqa: S311 - a test's choice, not a secret
        wanted: dict[str, dict[str, Pool | str]] = {SOURCE: {POOL: "source"}}
        wanted |= {name: {POOL: "target"} for name in (T1, T2, T3)}
        nodes = lab.nodes(wanted)
        self.home, self.partner, self.third = nodes[0], nodes[1], nodes[3]
        self.world = World(nodes[0], nodes[1:], SERVICE_FILE, src=ROOT, dst=ROOT)
        self.files: dict[str, dict[str, str]] = {}  # dataset, relative -> file -> sha256
        self.young: list[str] = []
        self.foreign: dict[str, dict[str, str]] = {node.name: {} for node in nodes}
        self.foreign_files: dict[tuple[str, str], dict[str, str]] = {}
        self.serial = 0
        self.ledger = Ledger()
        self.listings: dict[str, Listing] = {}
        for name in LASTING:
            self._create(name)
        for node in nodes:
            self._settle_stranger(node, f"{POOL}/beside")

    # --- the application on the source ------------------------------------------------------------

    def work(self) -> None:
        """Do something, or several things."""
        acts = [self.write, self.write, self.remove, self.change_young]
        acts += [self.create_young, self.rename_young, self.destroy_young, self.create_again]
        for _ in range(self.random.randint(1, 4)):
            self.random.choice(acts)()

    def write(self, size: int = 0) -> None:
        """Write a file of a lasting dataset, perhaps over another one."""
        self._write(self.random.choice(LASTING), size)

    def remove(self) -> None:
        """Remove a file."""
        name = self.random.choice(LASTING)
        if self.files[name]:
            file = self.random.choice(sorted(self.files[name]))
            self.world.source.remove(ROOT + name, file)
            del self.files[name][file]

    def remove_large(self) -> None:
        """Make room again."""
        for name in LASTING:
            if self.files[name].pop("large", None):
                self.world.source.remove(ROOT + name, "large")

    def write_large(self, size: int) -> None:
        """Write more than the buffers on the way hold."""
        self._write(self.random.choice(LASTING), size, "large")

    def create_young(self) -> None:
        """Create a child, often under a name that was there before."""
        if free := self._free():
            self._create_young(self.random.choice(free))

    def create_again(self) -> None:
        """Destroy a child and create another one under its name."""
        if self.young:
            self._create_young(self._destroy_young())

    def destroy_young(self) -> None:
        """Destroy a child."""
        if self.young:
            self._destroy_young()

    def rename_young(self) -> None:
        """Rename a child, or move it below another parent."""
        free = self._free()
        if self.young and free:
            old = self.young.pop(self.random.randrange(len(self.young)))
            new = self.random.choice(free)
            self.world.source.zfs("rename", ROOT + old, ROOT + new)
            self.young.append(new)
            self.files[new] = self.files.pop(old)

    def change_young(self) -> None:
        """Write into a child."""
        if self.young:
            name = self.random.choice(self.young)
            self.world.source.zfs("mount", ROOT + name)
            self._write(name)
            self.world.source.zfs("unmount", ROOT + name)

    def _free(self) -> list[str]:
        used = len(self.young) >= MOST_YOUNG
        names = [f"{parent}/{name}" for parent in PARENTS for name in NAMES]
        return [] if used else [name for name in names if name not in self.young]

    def _create(self, name: str) -> None:
        self.world.source.zfs("create", ROOT + name)
        self.files[name] = {}
        self._write(name)

    def _create_young(self, name: str) -> None:
        self._create(name)
        self.world.source.zfs("unmount", ROOT + name)
        self.young.append(name)

    def _destroy_young(self) -> str:
        name = self.young.pop(self.random.randrange(len(self.young)))
        self.world.source.zfs("destroy", "-r", ROOT + name)
        del self.files[name]
        return name

    def _write(self, name: str, size: int = 0, file: str = "") -> None:
        file = file or f"file{self.random.randrange(6)}"
        size = size or self.random.choice((1_000, 20_000, 200_000, 1_000_000))
        self.files[name][file] = self._put(self.world.source, ROOT + name, file, size)

    def _put(self, node: Node, dataset: str, file: str, size: int) -> str:
        data = self.random.randbytes(size)
        node.write(dataset, file, data)
        return hashlib.sha256(data).hexdigest()

    # --- strangers --------------------------------------------------------------------------------

    def _settle_stranger(self, node: Node, dataset: str) -> None:
        """Make a dataset that is not the agent's, with files and with snapshots of our names."""
        mountpoint = f"mountpoint={CLONE}-stranger"
        node.zfs("create", "-o", mountpoint, "-o", "readonly=off", dataset)
        file = f"of {node.name}"
        self.foreign_files[node.name, dataset] = {file: self._put(node, dataset, file, 50_000)}
        node.zfs("unmount", dataset)
        node.zfs("set", "mountpoint=none", dataset)
        for name in OWN_NAMES:
            node.zfs("snapshot", f"{dataset}@{name}")
        guid = node.zfs("get", "-Hp", "-o", "value", "guid", dataset).strip()
        self.foreign[node.name] |= {dataset: guid, **node.guids(dataset)}

    def settle_in_replica(self) -> None:
        """Put a stranger's dataset, with its own @sent, below dst on the third target."""
        self._settle_stranger(self.third, f"{ROOT}/foreign")

    def take_foreign_snapshot(self) -> None:
        """Take a snapshot that is not the agent's, on the source or on its partner."""
        self.serial += 1
        node = self.random.choice((self.home, self.partner))
        snapshot = f"{ROOT}{self.random.choice(LASTING)}@theirs{self.serial}"
        node.zfs("snapshot", snapshot)
        self.foreign[node.name] |= {
            name: guid for name, guid in node.guids(ROOT).items() if name == snapshot
        }

    def has_foreign(self, node: Node) -> bool:
        """Whether a replica holds what is somebody else's."""
        return any(name.startswith((f"{ROOT}@", f"{ROOT}/")) for name in self.foreign[node.name])

    def move_aside(self, node: Node) -> None:
        """Rename a replica that holds what is somebody else's: no consent covers that."""
        node.zfs("rename", ROOT, f"{ROOT}.aside")
        self.follow_foreign(node)

    def follow_foreign(self, node: Node) -> None:
        """Learn where that is now; it must be there, under whatever name.

        A syncresync keeps the old copy beside dst, with all that is somebody else's in it.
        """
        named = {guid: name for name, guid in self._guids(node).items()}
        known = self.foreign[node.name]
        judge_guids(node.name, known, {n: g for n, g in known.items() if g in named})
        self.foreign[node.name] = {named[guid]: guid for guid in known.values()}

    def throw_away(self, node: Node) -> None:
        """Destroy the old copies beside a replica, but for a stranger's dataset: that goes back."""
        for old in node.zfs("list", "-H", "-d", "1", "-o", "name", POOL).split():
            if not old.startswith(f"{ROOT}."):
                continue
            if f"{old}/foreign" in self.foreign[node.name]:
                node.zfs("rename", f"{old}/foreign", f"{ROOT}/foreign")
                self.follow_foreign(node)
            node.zfs("destroy", "-r", old)
            known = self.foreign[node.name].items()
            self.foreign[node.name] = {n: g for n, g in known if not n.startswith(old)}

    def _guids(self, node: Node) -> dict[str, str]:
        lines = node.zfs("get", "-rHp", "-o", "name,value", "guid", POOL).splitlines()
        return dict(line.split("\t") for line in lines)

    @property
    def extra(self) -> Mapping[str, list[str]]:
        """What is in the trees beyond the source's, by node."""
        there = f"{ROOT}/foreign" in self.foreign[self.third.name]
        return {self.third.name: ["/foreign"] if there else []}

    # --- who is the source ------------------------------------------------------------------------

    def hand_over(self) -> None:
        """Make the partner the source, or the node that was it at first. Both are in sync."""
        world = self.world
        old = world.source
        new = self.partner if old is self.home else self.home
        world.source = new
        world.targets = [node for node in (self.home, *world.targets, old) if node is not new]
        world.targets = list(dict.fromkeys(world.targets))

    def stop_application(self) -> None:
        """Unmount the source: nothing is written there any more."""
        unmount(self.world.source, ROOT)

    def start_application(self) -> None:
        """Mount the source, but for the children that come and go."""
        mount(self.world.source, ROOT)
        for name in sorted(self.young, reverse=True):
            self.world.source.zfs("unmount", ROOT + name)

    # --- what is there ----------------------------------------------------------------------------

    def look(self) -> None:
        """List all nodes."""
        for node in self.world.nodes:
            self.listings[node.name] = Listing.of(node, ROOT)
        self.ledger.note(self.source_listing, {})

    @property
    def source_listing(self) -> Listing:
        """The last listing of the source."""
        return self.listings[self.world.source.name]

    def lacking(self) -> dict[str, int]:
        """Return how many targets hold no snapshot of a dataset of the source, by its name."""
        held = [self.ledger.held(self.listings[target.name]) for target in self.world.targets]
        return {
            name: sum(one.guid not in there for there in held)
            for name, one in self.source_listing.datasets.items()
        }

    def judge_source(self, *, whole: bool) -> None:
        """Compare the files of the source: of what is mounted, or of everything."""
        names = [*LASTING, *self.young] if whole else LASTING
        self._judge(self.world.source, {name: ROOT + name for name in names})

    def judge_replica(self, target: Node, *names: str) -> None:
        """Compare the files of a replica with those that the source has now."""
        chosen = names or (*LASTING, *self.young)
        self._judge(target, {name: f"{ROOT}{name}@sent" for name in chosen})

    def _judge(self, node: Node, places: Mapping[str, str]) -> None:
        expected = {name: self.files[name] for name in places}
        found = {name: node.checksums(place) for name, place in places.items()}
        self.score.files += sum(len(one) for one in expected.values())
        judge_files(node.name, expected, found)

    def judge_foreign(self, *, files: bool) -> None:
        """See that all that strangers made is still there, by guid; and its files."""
        for node in self.world.nodes:
            judge_guids(node.name, self.foreign[node.name], self._guids(node))
        for (name, dataset), expected in self.foreign_files.items() if files else []:
            node = next(one for one in self.world.nodes if one.name == name)
            for place in (dataset, *(f"{dataset}@{own}" for own in OWN_NAMES)):
                self.score.files += len(expected)
                judge_files(f"{name}: {place}", {"": expected}, {"": node.checksums(place)})
