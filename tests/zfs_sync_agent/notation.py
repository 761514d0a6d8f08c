"""A short notation for what the tests of the agent look at: trees, views, a resource.

It never judges and never runs anything.
"""

from collections.abc import Mapping

from check_zfs_sync.service import SyncResource, Target
from zfs_sync_agent.model import (
    Capabilities,
    Dataset,
    Identity,
    Names,
    Snapshot,
    SourceView,
    TargetView,
    Tree,
    parse_nodes,
)

SRC, DST = "osol1_z3_root/data", "osol2_z3_root/copy"
WHO = Identity("osol1", "z3", "sync#1")
NAMES = Names()
EPOCH = 1276950000  # 2010-06-19 12:20 UTC; a snapshot of guid n is n minutes younger


def resource(**changes: object) -> SyncResource:
    """Return a sync resource with the defaults of the service file."""
    plain = SyncResource(
        service="z3",
        rid="sync#1",
        file="/etc/zfs_sync/z3.conf",
        line=1,
        nodename="osol1",
        src=SRC,
        dst=DST,
        targets=(Target("osol2", "nodes"),),
        recursive=True,
        intermediary=False,
        sync_max_delay=90000,
        snap_prefix="",
        on_divergence="discard",
        on_child_gone="follow",
        replica_readonly=True,
        skip_unchanged=False,
        send_changed=False,
        only_if=None,
        send_options=(),
        receive_options=(),
        stall_timeout=600,
        compress=None,
        buffer={},
        rate_limit=None,
        ssh=("ssh",),
        zfs={},
        sudo={},
        sources={},
    )
    return plain._replace(**changes)  # type: ignore[arg-type]  # a test names what it changes


def snapshots(text: str) -> dict[str, Snapshot]:
    """Return the snapshots of `name:guid`, own by their mark; a `!` behind one: it has no mark.

    The guid is a number that tells the age, too.
    """
    found = {}
    for word in text.split():
        name, _, guid = word.removesuffix("!").partition(":")
        rid = None if word.endswith("!") else WHO.rid_value
        age = int(guid)
        found[name] = Snapshot(name, guid, EPOCH + 60 * age, age, rid)
    return found


def tree(root: str, datasets: Mapping[str, str]) -> Tree:
    """Return a tree of relative name -> words.

    A word is a snapshot (`sent:1`), `written=N`, `born=N` (the createtxg of the dataset) or
    `complete` (all of its snapshots are listed).
    """
    return Tree(root, {name: _dataset(name, text) for name, text in sorted(datasets.items())})


def _dataset(name: str, text: str) -> Dataset:
    words = text.split()
    numbers = dict(word.split("=") for word in words if "=" in word)
    born = int(numbers.get("born", 0))
    return Dataset(
        name,
        EPOCH + 60 * born,
        born,
        int(numbers["written"]) if "written" in numbers else None,
        snapshots(" ".join(word for word in words if ":" in word)),
        "complete" in words,
    )


def source(
    datasets: Mapping[str, str],
    *,
    retained: str = "",
    targets: str = "",
    replica_of: str | None = None,
    root: str = SRC,
) -> SourceView:
    """Return a view of the source; `retained` as the property says it, `targets` as words."""
    known = frozenset(targets.split())
    return SourceView(
        tree(root, datasets), replica_of, parse_nodes(retained), known, Capabilities()
    )


def target(
    datasets: Mapping[str, str] | None,
    *,
    mark: str | None = WHO.mark,
    node: str = "osol2",
    dst: str = DST,
    missing_parents: tuple[str, ...] = (),
    state_text: str | None = None,
) -> TargetView:
    """Return a view of a target; None as datasets: dst does not exist."""
    return TargetView(
        node=node,
        dst=dst,
        tree=None if datasets is None else tree(dst, datasets),
        mark=None if datasets is None else mark,
        retained={},
        clock_offset=0,
        missing_parents=missing_parents,
        state_text=state_text,
        can=Capabilities(),
    )
