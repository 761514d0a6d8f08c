"""What the contenders are given to do: a tree, what changes in it before each run, and the link.

A work is named KIND/SIZE, so that any size can be asked for. Decides nothing about who does it and
how it is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

# What `tc qdisc` makes of the source's side of the link.
DELAY = "netem delay 50ms"
LONG_DELAY = "netem delay 500ms"  # counts round trips: beside it nothing else takes long
LOSS = "netem loss 1%"
RATE_MBIT = 4  # of the link to each target, where the link is the limit
STREAM_KIB = 2 * 1024  # what goes over it

KINDS = {
    "idle": "nothing has changed in SIZE datasets",
    "one": "one of SIZE datasets has changed",
    "all": "all of SIZE datasets have changed",
    "bulk": "SIZE MB of new data in one dataset",
    "delay": f"one of SIZE datasets has changed, {DELAY}",
    "trips": f"one of SIZE datasets has changed, {LONG_DELAY}, each run beside one without",
    "loss": f"one of SIZE datasets has changed, {LOSS}",
    "foreign": "one of 20 datasets has changed, which have SIZE other snapshots",
    "targets": f"{STREAM_KIB // 1024} MB of new data to SIZE targets, {RATE_MBIT} Mbit/s to each",
    "own": "the agent alone with SIZE datasets: zfs and ssh are stand-ins (standin.py)",
    "check": "the check with SIZE state files, as on a node that only holds replicas",
    "services": "the check with SIZE service files and their state files",
}
# Meant for half an hour on two quiet cores each; an emulated machine is ten times slower.
ALONE = "own/500 own/10000 check/1 check/1000 services/1000"
LINKS = "delay/20 trips/20 loss/20"
SERIES = {
    "fuse": f"{ALONE} idle/20 one/1 one/20 one/100 all/20 all/100 bulk/100 foreign/5000"
    f" targets/1 targets/2 targets/4 {LINKS}",
    "openzfs": f"{ALONE} one/1 idle/20 one/20 bulk/20 targets/1 targets/4 {LINKS}",
}
SMOKE = (
    "idle/2 one/1 one/2 all/2 bulk/1 delay/2 trips/2 loss/2 foreign/20 targets/1 targets/2"
    " own/20 own/40 check/1 check/20 services/20"
)


@dataclass(frozen=True)
class Work:
    """One thing to do. `family`: works of one family share their trees."""

    kind: str
    size: int

    @classmethod
    def named(cls, name: str) -> Work:
        """Return the work of a name."""
        kind, _, size = name.partition("/")
        if kind not in KINDS or not size.isdecimal() or not int(size):
            known = "\n".join(f"  {kind}/SIZE  {text}" for kind, text in KINDS.items())
            raise ValueError(f"{name!r} is no work; there are:\n{known}")
        return cls(kind, int(size))

    @property
    def name(self) -> str:
        """Return what it is asked for by."""
        return f"{self.kind}/{self.size}"

    @property
    def text(self) -> str:
        """Say it in words."""
        return KINDS[self.kind].replace("SIZE", str(self.size))

    @property
    def alone(self) -> bool:
        """Tell whether it needs no other machine and no real ZFS."""
        return self.kind in {"own", "check", "services"}

    @property
    def fresh(self) -> bool:
        """Tell whether each run gets a tree of its own, which is then removed: for want of room."""
        return self.kind == "bulk"

    @property
    def family(self) -> str:
        """Return the name of the trees that it works on."""
        own = {"foreign": "foreign", "targets": f"to{self.size}", "bulk": "bulk"}
        return own.get(self.kind, f"n{self.size}")

    @property
    def datasets(self) -> int:
        """Return how many datasets its tree has."""
        return {"foreign": 20, "targets": 1, "bulk": 1}.get(self.kind, self.size)

    @property
    def changed(self) -> int:
        """Return in how many of them something is written before each run."""
        return {"idle": 0, "all": self.size}.get(self.kind, 1)

    @property
    def kib(self) -> int:
        """Return how much is written there."""
        return {"bulk": self.size * 1000, "targets": STREAM_KIB}.get(self.kind, 4)

    @property
    def targets(self) -> int:
        """Return how many targets it has."""
        return self.size if self.kind == "targets" else 1

    @property
    def foreign(self) -> int:
        """Return how many snapshots of others each dataset has."""
        return -(-self.size // self.datasets) if self.kind == "foreign" else 0

    @property
    def counted(self) -> bool:
        """Tell whether processes and connections are counted as well, in a run of its own."""
        return self.kind == "one"

    @property
    def trips(self) -> bool:
        """Tell whether round trips are counted: by what the link adds to a run."""
        return self.kind == "trips"

    @property
    def link(self) -> str:
        """Return what the link is made to be."""
        links = {"delay": DELAY, "trips": LONG_DELAY, "loss": LOSS, "targets": "rate"}
        return links.get(self.kind, "")


def needed_mib(works: list[Work]) -> int:
    """Return how large a pool has to be."""
    return 1024 + 3 * max((work.size for work in works if work.kind == "bulk"), default=0)
