"""Reads both sides of a sync resource: what there is, never what it means.

It never changes anything. No answer is raised, it never reads as "absent".
"""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from zfs_sync_agent import pairing, zfs
from zfs_sync_agent.errors import Misconfigured, NoAnswer
from zfs_sync_agent.model import (
    MARK,
    RETAINED,
    SWAP,
    TARGETS,
    Capabilities,
    Dataset,
    Identity,
    Names,
    Packed,
    SourceView,
    TargetView,
    Tree,
    parse_nodes,
    parse_standing,
)
from zfs_sync_agent.transport import SSH_FAILED, Answer, Shell, fit

XARGS_FAILED = 123  # xargs: at least one command exited 1 to 125

Found = Mapping[str, dict[str, str]]  # name -> its properties; {}: the name does not exist

# So many datasets are asked for at once. What is read of an answer takes several MB meanwhile, and
# xargs starts another zfs after 128 KiB of names anyway.
PORTION = 1000


def portions(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Return the names in portions, in their order."""
    return (names[start : start + PORTION] for start in range(0, len(names), PORTION))


class Side:
    """One node with its open shell and the words that run zfs there."""

    def __init__(
        self, shell: Shell, zfs_words: Sequence[str], *, sudo: bool, programs: Sequence[str] = ()
    ) -> None:
        self.shell = shell
        self._zfs_words = tuple(zfs_words)
        self._sudo = ("sudo", "-n") if sudo else ()
        self.can = Capabilities(zfs=(*self._sudo, *self._zfs_words))
        self._found = False
        self._programs = tuple(programs)
        self.paths: dict[str, str] = {}  # of the other programs that were found there

    def find_zfs(self, more: Sequence[Sequence[str]] = ()) -> list[Answer]:
        """Find where zfs is and what it can do, by its own usage text, and the programs; once.

        `more` are commands that only read, asked for in the same round trip (`zfs` found by PATH);
        their answers are returned. Raises NoAnswer.
        """
        if self._found:
            return self.shell.ask(more) if more else []
        first, *rest = self._zfs_words
        words = (*self._sudo, *self._zfs_words)
        where = [("command", "-v", one) for one in self._programs]
        found, usage, properties, *answers = self.shell.ask(
            [("command", "-v", first), words, (*words, "get"), *where, *more]
        )
        path = found.stdout.strip().splitlines()[-1:]
        if found.status != 0 or not path:
            raise NoAnswer(
                f"there is no program {first} on {self.shell.node}",
                command=self.shell.shown(("command", "-v", first)),
                detail=f"exit {found.status}",
                untouched=f"everything on {self.shell.node}",
                hint="install ZFS there, or name its command in the service file (zfs =)",
            )
        self._found = True
        self.can = zfs.parse_capabilities(
            usage.stderr + usage.stdout,
            properties.stderr + properties.stdout,
            (*self._sudo, path[0], *rest),
        )
        for program, answer in zip(self._programs, answers, strict=False):
            if answer.status == 0:
                self.paths[program] = answer.stdout.strip().splitlines()[-1]
        return answers[len(self._programs) :]

    def words(self, argv: Sequence[str]) -> tuple[str, ...]:
        """Return the full command for a zfs argv."""
        return (*self.can.zfs, *argv)

    def shown(self, argv: Sequence[str]) -> str:
        """Return that command as it can be pasted on the source node."""
        return self.shell.shown(self.words(argv))

    def run(self, argv: Sequence[str], names: Sequence[str] | None = None) -> Answer:
        """Run zfs; exit 255 over ssh is no answer."""
        answer = self.shell.run(self.words(argv), names)
        if answer.status == SSH_FAILED:
            raise self.no_answer(argv, answer)
        return answer

    def sync_pool(self, dataset: str) -> bool:
        """Have all that was written go to disk, since zfs counts no more than that.

        Nothing is changed by it. Returns False where it cannot be done.
        """
        first, *rest = self._zfs_words
        folder, slash, program = first.rpartition("/")
        if rest or program != "zfs":
            return False
        words = (*self._sudo, f"{folder}{slash}zpool", "sync", dataset.partition("/")[0])
        return self.shell.run(words).status == 0

    def no_answer(self, argv: Sequence[str], answer: Answer) -> NoAnswer:
        """Return the failure of a command that should only have read."""
        last = answer.stderr.strip().splitlines()[-1:] or ["no message"]
        return NoAnswer(
            f"cannot read {argv[-1]} on {self.shell.node}",
            command=self.shown(argv),
            detail=f"exit {answer.status}: {last[0]}",
            untouched=f"everything on {self.shell.node}",
            hint="mend what the answer says; the next run tries again",
        )


def parse_datasets(side: Side, root: str, *, recursive: bool, answer: Answer) -> list[str] | None:
    """Return the full names of a tree, parents first; None if the root does not exist.

    A dataset of a pool that is not there is no answer: the pool may only be exported.
    """
    argv = zfs.list_datasets_argv(root, recursive=recursive)
    if answer.status == 0:
        return answer.stdout.splitlines()
    if not zfs.is_absent(answer.stderr, root):
        raise side.no_answer(argv, answer)
    pool_argv = zfs.list_pool_argv(root)
    if (pool := side.run(pool_argv)).status != 0:
        raise side.no_answer(pool_argv, pool)
    return None


def look(
    side: Side, root: str, *, recursive: bool, more: Sequence[Sequence[str]] = ()
) -> tuple[list[str] | None, dict[str, str], list[Answer]]:
    """Return the datasets (None: no root), the root's local marks and the answers to `more`.

    One round trip, the search for zfs included.
    """
    list_argv = zfs.list_datasets_argv(root, recursive=recursive)
    root_argv = zfs.get_root_argv(root)
    listed, marked, *answers = side.find_zfs([side.words(list_argv), side.words(root_argv), *more])
    if SSH_FAILED in (listed.status, marked.status):
        raise side.no_answer(list_argv, listed)
    datasets = parse_datasets(side, root, recursive=recursive, answer=listed)
    if datasets and marked.status != 0:
        raise side.no_answer(root_argv, marked)
    return datasets, zfs.parse_root(marked.stdout), answers


def read_root(side: Side, root: str) -> dict[str, str]:
    """Return the local marks of a root."""
    argv = zfs.get_root_argv(root)
    answer = side.run(argv)
    if answer.status != 0:
        raise side.no_answer(argv, answer)
    return zfs.parse_root(answer.stdout)


def read_names(side: Side, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the properties of the names that exist."""
    argv = zfs.get_names_argv(side.can)
    return _parse_names(side, names, side.run(argv, names))


def _parse_names(side: Side, names: Sequence[str], answer: Answer) -> dict[str, dict[str, str]]:
    argv = zfs.get_names_argv(side.can)
    if answer.status not in (0, 1, XARGS_FAILED):
        raise side.no_answer(argv, answer)
    what = f"cannot read {names[0]} on {side.shell.node}"
    zfs.check_absent_only(answer.stderr, what, side.shown(argv), answer.status)
    return zfs.parse_names(answer.stdout)


def _with_snapshots(datasets: Iterable[str], own: Sequence[str]) -> list[str]:
    return [name for full in datasets for name in (full, *(f"{full}@{one}" for one in own))]


def read_tree(
    side: Side, root: str, datasets: Sequence[str], own_names: Iterable[str], found: Found
) -> Tree:
    """Return the datasets with their own snapshots; others are not asked for, however many.

    What was `found` already is not asked for.
    """
    own = sorted(set(own_names))

    def ask(names: Sequence[str]) -> Found:
        known = {name: found[name] for name in names if name in found}
        left = [name for name in names if name not in known] if known else names
        return known | read_names(side, left) if left else known

    def read() -> Iterator[Dataset]:
        for some in portions(datasets):
            # No name for the answer: it would be there still while the next portion is read.
            for one in zfs.build_datasets(root, some, ask(_with_snapshots(some, own))):
                yield one._replace(name=sys.intern(one.name))  # a name is in four trees at a time

    return Tree(root, Packed(read()))


def deepen(side: Side, tree: Tree, relative: Sequence[str]) -> Tree:
    """Return the tree with all snapshots of the given datasets."""
    if not relative:
        return tree

    def read() -> Iterator[Dataset]:
        yield from tree.datasets.values()
        for some in portions([tree.full(name) for name in relative]):
            properties = read_names(side, [*some, *_list_snapshots(side, some)])
            yield from zfs.build_datasets(tree.root, some, properties, complete=frozenset(some))

    return Tree(tree.root, Packed(read()))


def _list_snapshots(side: Side, datasets: Sequence[str]) -> list[str]:
    argv = zfs.list_snapshots_argv()
    answer = side.run(argv, datasets)
    what = f"cannot list the snapshots of {datasets[0]} on {side.shell.node}"
    if answer.status not in (0, 1, XARGS_FAILED):
        raise side.no_answer(argv, answer)
    zfs.check_absent_only(answer.stderr, what, side.shown(argv), answer.status)
    return answer.stdout.splitlines()


def observe_source(
    side: Side, src: str, names: Names, resource: str, *, recursive: bool, deep: bool = False
) -> SourceView:
    """Return the source; `resource` is its <service>/<rid>.

    Raises Misconfigured if src does not exist, NoAnswer.
    """
    datasets, marks, _ = look(side, src, recursive=recursive)
    if not datasets:
        raise Misconfigured(
            f"src {src} does not exist on {side.shell.node}",
            untouched="everything",
            hint="create it, or write src@NODE = in the service file if this node never sends",
        )
    retained = names.own(parse_nodes(marks.get(RETAINED)))
    tree = read_tree(side, src, datasets, (names.sent, names.tosend, *retained), {})
    if deep:
        tree = deepen(side, tree, list(tree.datasets))
    standing = parse_standing(marks.get(MARK))
    return SourceView(
        tree,
        standing.replica_of or standing.repair,
        retained,
        parse_nodes(marks.get(TARGETS)).get(resource, frozenset()),
        side.can,
        standing.source_since,
        standing.repair is not None,
    )


def observe_target(
    side: Side,
    node: str,
    dst: str,
    names: Names,
    source: SourceView,
    *,
    recursive: bool,
    state_path: str | None = None,
    also: frozenset[str] = frozenset(),
    deep: bool = False,
) -> TargetView:
    """Return one target, by own names unless `deep`; `recursive` off looks at the root alone.

    `state_path` names the state file that the target may hold, `also` snapshots to ask for.
    """
    before = time.time()
    more = [("date", "+%s"), *([("cat", state_path)] if state_path else [])]
    datasets, marks, (clock, *state) = look(side, dst, recursive=recursive, more=more)
    offset = round(int(clock.stdout.strip() or 0) - (before + time.time()) / 2)
    held = state[0].stdout if state and state[0].status == 0 else None
    view = TargetView(node, dst, None, None, {}, offset, (), held, side.can)
    if not datasets:
        return replace(view, missing_parents=_missing_parents(side, dst))
    own = _own_names(node, names, source, also)
    view = _read_target(side, view, names, own, (datasets, marks, {}))
    if deep and view.tree is not None:
        view = replace(view, tree=deepen(side, view.tree, list(view.tree.datasets)))
    return view


def _own_names(node: str, names: Names, source: SourceView, also: Iterable[str]) -> set[str]:
    """Return the snapshots that are asked for on a target, but for those that it names itself."""
    return {names.sent, names.tosend, names.tosend_for(node), *source.retained, *also}


def _read_target(
    side: Side,
    view: TargetView,
    names: Names,
    own: set[str],
    seen: tuple[Sequence[str], Mapping[str, str], Found],
) -> TargetView:
    """Return a target that is there: `seen` are its datasets, its marks, and what was found."""
    datasets, marks, found = seen
    retained = names.own(parse_nodes(marks.get(RETAINED)))
    standing = parse_standing(marks.get(MARK))
    return replace(
        view,
        tree=read_tree(side, view.dst, datasets, own | set(retained), found),
        mark=standing.replica_of,
        source_since=standing.source_since,
        repair=standing.repair,
        swap=marks.get(SWAP),
        retained=retained,
    )


def relist(
    side: Side,
    target: TargetView,
    source: SourceView,
    names: Names,
    *,
    recursive: bool,
    renamed: set[str],
) -> TargetView:
    """Return the target as it is now: the verdict after a transfer, whatever the commands said.

    `renamed` are snapshot names that were given meanwhile. What is expected there, from what was
    there and from the source, is asked for in the round trip that lists the datasets.
    """
    datasets = target.tree.datasets.values() if target.tree else ()
    seen = {name for one in datasets for name in one.snapshots}
    also = renamed | {name for name in seen if names.is_own(name) or name.startswith("recv-")}
    own = _own_names(target.node, names, source, (*target.retained, *also))
    tree = target.tree or Tree(target.dst, {})
    # The names of a large tree fit into no command: they are not even put together.
    small = len(source.tree.datasets) <= PORTION
    expected = dict.fromkeys((*tree.datasets, *source.tree.datasets)) if small else ()
    asked = _with_snapshots(map(tree.full, expected), sorted(own))
    more = [side.words((*zfs.get_names_argv(side.can), *asked))] if asked and fit(asked) else []
    listed, marks, answers = look(side, target.dst, recursive=recursive, more=more)
    found: Found = {}
    # One of them may be no name at all: what is there is then asked for by itself.
    with contextlib.suppress(NoAnswer):
        for answer in answers:
            found = {name: {} for name in asked} | _parse_names(side, asked, answer)
    offset, held = target.clock_offset, target.state_text
    view = TargetView(target.node, target.dst, None, None, {}, offset, (), held, side.can)
    if not listed:
        return replace(view, missing_parents=_missing_parents(side, target.dst))
    return _read_target(side, view, names, own, (listed, marks, found))


def clear_up(
    source_side: Side,
    target_side: Side,
    source: SourceView,
    target: TargetView,
    who: Identity,
    *,
    deep: bool,
) -> tuple[SourceView, TargetView]:
    """List all snapshots of what falls in no row by own names alone, on both sides.

    What receives that were cut are for is read, too. `deep` lists all of the target's. For a first
    sync all of the source's are listed: a full stream of the tree would carry them.
    """
    if target.tree is None:
        lone = [one.name for one in source.tree.datasets.values() if not one.complete]
        return replace(source, tree=deepen(source_side, source.tree, lone)), target
    lone_source, lone_target = pairing.unclear(source.tree, target.tree, who)
    if deep:
        lone_target = [one.name for one in target.tree.datasets.values() if not one.complete]
    source_tree = deepen(source_side, source.tree, lone_source)
    target_tree = read_partials(source_side, deepen(target_side, target.tree, lone_target))
    return replace(source, tree=source_tree), replace(target, tree=target_tree)


def read_partials(source_side: Side, tree: Tree) -> Tree:
    """Return a target's tree with what the tokens in it say, as the source reads them.

    Raises NoAnswer where one cannot be read: then it is nobody's, for all that is known.
    """
    found = []
    for dataset in tree.datasets.values():
        if dataset.partial is None or dataset.partial.guid is not None:
            continue
        if not source_side.can.resumes:
            continue
        # It exits 255 where the snapshot is gone, and says what the token is for all the same.
        argv = zfs.read_token_argv(dataset.partial.token)
        answer = source_side.shell.run(source_side.words(argv))
        guid, snapshot = zfs.parse_token(answer.stdout + answer.stderr)
        if guid is None:
            raise source_side.no_answer(argv, answer)
        partial = dataset.partial._replace(guid=guid, snapshot=snapshot)
        found.append(dataset._replace(partial=partial))
    return Tree(tree.root, Packed((*tree.datasets.values(), *found))) if found else tree


def estimate(side: Side, sends: Sequence[Sequence[str]]) -> int | None:
    """Return the bytes that sends foretell, all together; None where zfs does not tell."""
    if not side.can.estimates:
        return None
    answers = side.shell.ask([side.words(zfs.estimate_argv(tuple(one))) for one in sends])
    sizes = [zfs.parse_estimate(answer.stdout + answer.stderr) for answer in answers]
    return None if None in sizes else sum(size for size in sizes if size)


def foretell(side: Side, tree: Tree, streams: Sequence[zfs.Stream]) -> int | None:
    """Return about how many bytes streams of a snapshot that is not taken yet will have.

    None where zfs does not tell what was written since the base.
    """
    asked: dict[str, list[str]] = {}
    for stream in streams:
        for name in tree.datasets if stream.replicate else (stream.relative,):
            held = stream.base is not None and stream.base in tree.datasets[name].snapshots
            key = f"written@{stream.base}" if held else "referenced"
            asked.setdefault(key, []).append(tree.full(name))
    if not side.can.written and set(asked) - {"referenced"}:
        return None
    return sum(sum(read_sizes(side, names, key).values()) for key, names in asked.items())


def mountpoints(
    source_side: Side, target_side: Side, source: SourceView
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the mountpoints that a stream of the source carries, and those the target uses."""
    argv, listing = zfs.get_mountpoints_argv(), zfs.list_mountpoints_argv()
    carried = source_side.run(argv, [source.tree.full(name) for name in source.tree.datasets])
    if carried.status != 0:
        raise source_side.no_answer(argv, carried)
    used = target_side.run(listing)
    if used.status != 0:
        raise target_side.no_answer(listing, used)
    return (
        zfs.parse_stream_mountpoints(carried.stdout),
        zfs.parse_mountpoints(used.stdout),
    )


def list_beside(side: Side, dst: str) -> list[str]:
    """Return the full names of the datasets beside dst, sorted; [] where there is no parent."""
    parent = dst.rpartition("/")[0]
    answer = side.run(zfs.list_children_argv(parent))
    if answer.status != 0:
        if zfs.is_absent(answer.stderr, parent):
            return []
        raise side.no_answer(zfs.list_children_argv(parent), answer)
    return sorted(name for name in answer.stdout.splitlines() if name not in (parent, dst))


def is_set_here(side: Side, dataset: str, key: str, value: str) -> bool:
    """Tell whether a property was set to a value on the dataset itself."""
    argv = zfs.get_values_argv(key)
    answer = side.run(argv, [dataset])
    if answer.status != 0:
        raise side.no_answer(argv, answer)
    return zfs.parse_values(answer.stdout)[dataset][key] == (value, "local")


def read_guid(side: Side, dataset: str) -> str:
    """Return the guid of a dataset, which a rename does not change."""
    argv = zfs.get_values_argv("guid")
    answer = side.run(argv, [dataset])
    if answer.status != 0:
        raise side.no_answer(argv, answer)
    return zfs.parse_values(answer.stdout)[dataset]["guid"][0]


def read_sizes(side: Side, names: Sequence[str], key: str) -> dict[str, int]:
    """Return a size in bytes by name; what has none, or is gone, is left out."""
    return {
        name: int(values[key][0])
        for some in portions(names)
        for name, values in zfs.parse_values(
            side.run(zfs.get_values_argv(key), some).stdout
        ).items()
        if values.get(key, ("-", "-"))[0].isdecimal()
    }


def read_written(side: Side, tree: Tree, base: str) -> frozenset[str]:
    """Return the datasets of a tree that were written to since their snapshot `base`.

    What does not say that it was not is among them. A property that was set leaves no trace here.
    """
    sizes = read_sizes(side, [tree.full(name) for name in tree.datasets], f"written@{base}")
    return frozenset(name for name in tree.datasets if sizes.get(tree.full(name)) != 0)


def read_needed(side: Side, source: SourceView, *, history: bool) -> int:
    """Return the bytes that the source's tree takes there, all its snapshots too with `history`.

    The bytes of a stream are those before compression: a target that compresses needs less.
    """
    names = [source.tree.full(name) for name in source.tree.datasets]
    keys = ("usedbydataset", "usedbysnapshots") if history else ("referenced",)
    return sum(sum(read_sizes(side, names, key).values()) for key in keys)


def read_available(side: Side, target: TargetView) -> int | None:
    """Return the bytes that are free where dst is to be made, None where zfs does not tell."""
    above = target.dst.split("/")[: -1 - len(target.missing_parents)]
    parent = "/".join(above)
    return read_sizes(side, [parent], "available").get(parent)


def read_kept(
    side: Side, datasets: Sequence[str], names: Iterable[str]
) -> dict[str, tuple[int, int]]:
    """Return snapshot name -> its creation and the bytes that only it holds, over all datasets."""
    argv = zfs.get_values_argv("creation,used")
    answer = side.run(argv, [f"{full}@{name}" for name in sorted(names) for full in datasets])
    found: dict[str, tuple[int, int]] = {}
    for full, values in zfs.parse_values(answer.stdout).items():
        name = full.partition("@")[2]
        creation, used = (int(values[key][0]) for key in ("creation", "used"))
        first, size = found.get(name, (creation, 0))
        found[name] = (min(first, creation), size + used)
    return found


def _missing_parents(side: Side, dst: str) -> tuple[str, ...]:
    """Return what has to be created above dst, outermost first."""
    parts = dst.split("/")[:-1]
    above = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    if not above:
        return ()
    found = read_names(side, above)
    return tuple(name for name in above if name not in found)
