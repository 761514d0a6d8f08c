"""The invariants I1 to I7 of zfs_sync(7), held after every single step of a run on fakezfs.

They are stated a second time here, from what the nodes hold; nothing is asked of the agent, and
none of its deciding code is used. They never decide what a run should do, only what it must not.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from check_zfs_sync.service import SyncResource
from check_zfs_sync.statefile import Snapshot as StateSnapshot
from check_zfs_sync.statefile import digest
from zfs_sync_agent.execute import Outcome
from zfs_sync_agent.model import MARK, TARGETS, parse_nodes

from .fakezfs import Dataset, Partial, World
from .notation import EPOCH, WHO

SOURCE = "osol1"
PERSON = ("refused", "broken")  # the results that say: a person must act

Common = dict[tuple[int, int], int]
Outside = dict[str, tuple[object, ...]]


class Violation(AssertionError):
    """A law is broken; `law` is its name, I1 to I7 as in zfs_sync(7), `why` for a wrong result."""

    def __init__(self, law: str, what: str, story: Sequence[str] = ()) -> None:
        self.law, self.what = law, what
        super().__init__("\n".join((f"{law}: {what}", *story)))


@dataclass
class _Seen:
    """What a node held after the last step."""

    common: Common
    strange: set[tuple[object, ...]]
    outside: Outside
    written: dict[int, int]
    partials: dict[int, Partial]


class Guard:
    """Watches one world; raises Violation out of the step that breaks a law."""

    def __init__(self, world: World, resource: SyncResource) -> None:
        assert resource.src is not None
        assert resource.dst is not None
        self.world, self.resource = world, resource
        self.src, self.dst = resource.src, resource.dst
        self.nodes = [target.node for target in resource.targets]
        self.gone: set[tuple[str, int]] = set()  # seen to be gone on the source by this run
        self.gone_before: set[tuple[str, int]] = set()  # and by one before
        self.closed: set[str] = set()
        self.away: set[str] = set()
        self.in_flight: set[tuple[str, str]] = set()
        self._words: Sequence[str] = ()
        self.rebase()
        world.watch = self

    # --- what there is ------------------------------------------------------------------------

    def inside(self, node: str) -> dict[str, Dataset]:
        """Return the datasets of the tree on a node, by full name, parents first."""
        root = self.src if node == SOURCE else self.dst
        pool = self.world.pools[node]
        below = self.world.below(node, root) if self.resource.recursive else [root]
        return {name: pool[name] for name in below if name in pool}

    def common(self, node: str) -> Common:
        """Return (source dataset, target dataset) -> age of the newest guid that both hold."""
        found: Common = {}
        held = [
            (there.ident, {snap.guid for snap in there.snaps.values()})
            for there in self.inside(node).values()
        ]
        for here in self.inside(SOURCE).values():
            guids = {snap.guid: snap.age for snap in here.snaps.values()}
            for ident, theirs in held:
                if shared := guids.keys() & theirs:
                    found[here.ident, ident] = max(guids[guid] for guid in shared)
        return found

    def _is_ours(self, partial: Partial) -> bool:
        below = partial.name.startswith((f"{self.src}@", f"{self.src}/"))
        return below and partial.guid in self.world.taken

    def _strange(self, node: str) -> set[tuple[object, ...]]:
        """Return what the agent neither took nor sent; on the source the datasets themselves."""
        pool = self.world.pools[node]
        found: set[tuple[object, ...]] = set()
        taken = {} if node == SOURCE else self.world.taken
        for name, one in self.inside(node).items():
            # A receive gives what was sent the name that it has on the source.
            foreign = {
                (one.ident, None if snap.guid in taken else label, snap.guid)
                for label, snap in one.snaps.items()
                if snap.rid != WHO.rid_value and snap.guid not in self.world.bare
            }
            found |= foreign
            parent, _, leaf = name.rpartition("/")
            above = pool[parent].ident if parent in pool else None
            sent = len(foreign) < len(one.snaps) or one.ident in self.world.made
            if one.partial is not None and self._is_ours(one.partial):
                sent |= not one.snaps
            elif one.partial is not None:
                found.add((one.ident, one.partial))
            if node == SOURCE or not sent:
                found.add((one.ident, leaf, above))
        return found

    def _outside(self, node: str) -> Outside:
        tree = self.inside(node)
        return {
            name: (one.ident, dict(one.snaps), dict(one.props), one.written, one.partial)
            for name, one in self.world.pools[node].items()
            if name not in tree
        }

    def _look(self, node: str) -> _Seen:
        pool = self.world.pools[node]
        written = {
            one.ident: one.written
            for one in pool.values()
            if one.snaps or one.partial is None  # else there is only what was cut
        }
        partials = {pool[n].ident: one for n, one in self.world.partials(node).items()}
        common = {} if node == SOURCE else self.common(node)
        return _Seen(common, self._strange(node), self._outside(node), written, partials)

    # --- when a run begins and ends -----------------------------------------------------------

    def rebase(self) -> None:
        """Take what there is now for given: somebody else was at it."""
        self.seen = {node: self._look(node) for node in (SOURCE, *self.nodes)}
        self.claims = {node: self._claim(node) for node in self.nodes}
        self.equal = {
            node: entry.equal_as_of
            for node in self.nodes
            if (entry := self.world.state.get(node)) and entry.equal_as_of
        }
        self.stale = {node for node in self.nodes if self._claims_too_much(node)}

    def begin(self) -> None:
        """Note what a run finds: whom it must not write to, and what was gone before."""
        self.rebase()
        self.gone_before |= self.gone
        self.gone = {(node, ident) for node in self.nodes for ident in self._gone_on_source(node)}
        self.gone_before &= self.gone
        trouble = self.world.trouble
        self.away = trouble.down | trouble.exported
        # Where another target has B it is rotated first; then nothing tells what was being sent.
        alone = len(self.nodes) == 1
        self.in_flight = set(self.world.unfinished) if alone else set()
        self.in_flight |= {
            (node, name)
            for node in self.nodes
            for name, partial in self.world.partials(node).items()
            if self._is_ours(partial)
        }
        self.closed = {node for node in self.nodes if self._is_closed(node)}
        if self.is_standby() or self._has_foreign_names():
            self.closed = {SOURCE, *self.nodes}

    def _gone_on_source(self, node: str) -> set[int]:
        """Return the datasets of a target that have nothing in common with any of the source."""
        alive = {there for _, there in self.common(node)}
        return {one.ident for one in self.inside(node).values()} - alive

    def left_behind(self) -> list[str]:
        """Return the datasets of ours alone that are gone on the source, and still on a target."""
        return [
            f"{node}: {name}"
            for node in self.nodes
            for name, one in self.inside(node).items()
            if one.ident in self._gone_on_source(node)
            and one.snaps
            and all(snap.rid == WHO.rid_value for snap in one.snaps.values())
        ]

    def is_standby(self) -> bool:
        """Tell whether the source is itself a replica of this resource."""
        value, kind = self.world.pools[SOURCE][self.src].props.get(MARK, ("", ""))
        return kind == "local" and value.endswith(f"/{WHO.rid_value}")

    def _has_sent(self) -> bool:
        """Tell whether the source took a snapshot; one that never did may stand by."""
        root = self.world.pools[SOURCE][self.src]
        return any(s.source == "local" and s.rid == WHO.rid_value for s in root.snaps.values())

    def _has_foreign_names(self) -> bool:
        own = (f"{self.resource.snap_prefix}sent", f"{self.resource.snap_prefix}tosend")
        held = self.inside(SOURCE)
        strange = any(
            name in one.snaps and one.snaps[name].rid != WHO.rid_value
            for one in held.values()
            for name in own
        )
        without_root = own[1] not in held[self.src].snaps and any(
            own[1] in one.snaps for one in held.values()
        )
        return strange or without_root

    def _is_closed(self, node: str) -> bool:
        """Tell whether the root of a target is in a state that forbids every write."""
        here, there = self.world.pools[SOURCE][self.src], self.world.pools[node].get(self.dst)
        targets = parse_nodes(here.props.get(TARGETS, ("", ""))[0])
        known = node in targets.get(WHO.rid_value, frozenset())
        if there is None:
            return known
        mark, kind = there.props.get(MARK, (None, ""))
        if (mark if kind == "local" else None) not in (WHO.mark, None):
            return True
        if kind != "local" and known:
            return True
        taken_there = any(
            snap.rid == WHO.rid_value and snap.source == "local" for snap in there.snaps.values()
        )
        guids = {snap.guid for snap in here.snaps.values()}
        shared = [snap.txg for snap in there.snaps.values() if snap.guid in guids]
        if not there.snaps and there.partial and self.world.can_go_on(SOURCE, there.partial):
            return False  # our own first stream, cut inside its first dataset
        if not shared or (kind != "local" and taken_there):
            return True
        newer = [s for s in there.snaps.values() if s.rid == WHO.rid_value and s.txg > max(shared)]
        return bool(newer) and kind == "local"

    def judge(self, outcomes: Sequence[Outcome]) -> None:
        """Hold that a run says what is true of each target."""
        for one in outcomes:
            error = one.error
            person = error is not None and error.result in PERSON
            if error is not None and person and not (error.reason and error.hint):
                self._fail("why", f"{one.node}: {error.result}, without reason or hint")
            said = str(error).split()
            if person and any(n == one.node and name in said for n, name in self.in_flight):
                self._fail("why", f"{one.node}: a person is asked for what mends itself: {error}")
            if self.is_standby() or not self._has_sent():
                continue
            if one.node in self.away:
                if person:
                    self._fail("why", f"{one.node} did not answer, and it says: {error}")
            elif self.closed & {SOURCE, one.node} and error is None:
                self._fail("why", f"{one.node} must not be written to, and the run says ok")

    # --- after every step ---------------------------------------------------------------------

    def __call__(self, node: str, words: Sequence[str]) -> None:
        """Hold all laws after a step."""
        self._words = words
        if node == "state":
            self._hold_state(words[0])
            return
        if node in self.closed and not self.world.by_orphan:
            self._fail("I7", f"{node} must not be written to")
        before, after = self.seen[node], self._look(node)
        if node == SOURCE:
            for one in self.nodes:
                common = self.common(one)
                self._hold_common(one, self.seen[one].common, common, "I2")
                self.seen[one].common = common
        else:
            self._hold_common(node, before.common, after.common, "I1")
            self._hold_written(node, before.written, after.written)
            self._hold_partials(node, before, after)
        if lost := before.strange - after.strange:
            self._fail("I7", f"{node}: touched {sorted(map(str, lost))}")
        self._hold_outside(node, before.outside, after.outside)
        self.seen[node] = after
        if node != SOURCE:
            self._hold_lag(node)

    def _fail(self, law: str, what: str) -> None:
        words = " ".join(self._words)
        raise Violation(law, f"{what} [{words}]", self.world.log)

    def _hold_common(self, node: str, before: Common, after: Common, law: str) -> None:
        for key, age in before.items():
            if after.get(key, -1) < age:
                self._fail(law, f"{node}: {key} had {age} in common, has {after.get(key)}")
        if self._words[0] == "(receive) full":
            again = {here for here, _ in after.keys() - before.keys()}
            if again & {here for here, _ in before}:
                self._fail("I5", f"{node}: a full stream, though a base is there")

    def _hold_partials(self, node: str, before: _Seen, after: _Seen) -> None:
        """What was received is not given up while the source has the rest of it."""
        if self._words[0] == "(receive) resumed":
            return
        for ident, one in before.partials.items():
            in_the_way = before.written.get(ident)
            if ident in after.partials or in_the_way or not self.world.can_go_on(SOURCE, one):
                continue
            if self._words[0] != "(receive) full" and self._words[0] != "(receive) incremental":
                self._fail("I5", f"{node}: given up, though the source has {one.name}")

    def _hold_outside(self, node: str, before: Outside, after: Outside) -> None:
        for name, one in before.items():
            if after.get(name) != one:
                self._fail("I6", f"{node}: {name} was changed")
        root = self.src if node == SOURCE else self.dst
        for name in after.keys() - before.keys():
            if not root.startswith(f"{name}/"):
                self._fail("I6", f"{node}: {name} was made")

    def _hold_written(self, node: str, before: dict[int, int], after: dict[int, int]) -> None:
        """What was written into a replica goes only by on_divergence, datasets by on_child_gone."""
        root = self.world.pools[node].get(self.dst)
        ours = root is not None and root.props.get(MARK) == (WHO.mark, "local")
        may_discard = ours and self.resource.on_divergence == "discard"
        for ident, size in before.items():
            if ident not in after:
                seen_before = (node, ident) in self.gone_before
                if not seen_before or self.resource.on_child_gone != "follow":
                    self._fail("I7", f"{node}: destroyed, and not gone for a whole run")
            elif size and not after[ident] and not may_discard:
                self._fail("I7", f"{node}: what was written there was discarded")

    # --- the state ----------------------------------------------------------------------------

    def _claim(self, node: str) -> StateSnapshot | None:
        entry = self.world.state.get(node)
        return entry.snapshot if entry else None

    def _hold_state(self, node: str) -> None:
        """A new claim has to be true, to the last dataset."""
        self._hold_equal(node)
        claim = self._claim(node)
        if claim == self.claims.get(node):
            return
        self.claims[node] = claim
        self.stale.discard(node)
        if claim is None:
            return
        here = self.world.pools[SOURCE][self.src]
        goal = here.at(claim.guid)
        label = f"{self.resource.snap_prefix}sent"
        pairs = {
            name[len(self.src) + 1 :]: one.snaps[goal if goal in one.snaps else label].guid
            for name, one in self.inside(SOURCE).items()
            if goal in one.snaps
            or (goal and label in one.snaps and self._is_as_at(one, label, here.snaps[goal].txg))
        }
        if goal is None or claim.digest != digest(pairs.items()) or claim.datasets != len(pairs):
            self._fail("I3", f"{node}: the state names a tree that the source does not have")
        there = self.inside(node).values()
        held = {snap.guid for one in there for snap in one.snaps.values()}
        if lacking := [name for name, guid in pairs.items() if guid not in held]:
            self._fail("I3", f"{node}: the state says it holds {goal}; {lacking} does not")
        self._hold_lag(node)

    @staticmethod
    def _is_as_at(one: Dataset, label: str, txg: int) -> bool:
        """Tell whether a dataset was at that time what its snapshot holds."""
        snap = one.snaps[label]
        later = any(other.data and other.txg > snap.txg for other in one.snaps.values())
        return snap.txg <= txg and not later and (not one.dirty or one.dirtied > txg)

    def _hold_equal(self, node: str) -> None:
        """A target is as good as now only where both sides hold no more than the same snapshots."""
        entry = self.world.state.get(node)
        as_of = entry.equal_as_of if entry else None
        if as_of is None or as_of == self.equal.get(node):
            return
        self.equal[node] = as_of
        here, there = self.inside(SOURCE), self.inside(node)
        pairs = {name: f"{self.dst}{name[len(self.src) :]}" for name in here}
        if set(pairs.values()) != set(there) or as_of > self.world.clock():
            self._fail("I4", f"{node}: the state says that it is equal; its tree is not")
        for name, twin in pairs.items():
            shared = {snap.guid for snap in there[twin].snaps.values()}
            common = [snap for snap in here[name].snaps.values() if snap.guid in shared]
            newest = max(common, key=lambda snap: snap.txg, default=None)
            if newest is None or here[name].since(newest) + here[name].unsynced > (
                here[name].dirty if EPOCH + 60 * here[name].dirtied > as_of else 0
            ):
                self._fail("I4", f"{node}: the state says that it is equal; {name} was written to")
            elif there[twin].since(there[twin].snaps[there[twin].at(newest.guid) or ""]):
                self._fail("I4", f"{node}: the state says that it is equal; {twin} was written to")

    def _hold_lag(self, node: str) -> None:
        if node not in self.stale and (why := self._claims_too_much(node)):
            self._fail("I4", f"{node}: {why}")

    def _claims_too_much(self, node: str) -> str:
        """Say where the state is younger than what a target holds of a dataset; '' if nowhere."""
        claim = self._claim(node)
        if claim is None:
            return ""
        taken = self.world.taken
        alive = {one.ident: name for name, one in self.inside(SOURCE).items()}
        held: dict[int, int] = {}
        for one in self.inside(node).values():
            for snap in one.snaps.values():
                if snap.guid in taken:
                    ident, age = taken[snap.guid]
                    held[ident] = max(age, held.get(ident, -1))
        root = self.world.pools[SOURCE][self.src].ident
        tree = [ident for ident, age in taken.values() if EPOCH + 60 * age == claim.creation]
        for ident in {root, *itertools.filterfalse(lambda one: one not in alive, tree)}:
            if EPOCH + 60 * held.get(ident, -1) < claim.creation:
                return f"the state says {claim.creation}, {alive[ident]} is older"
        return ""
