"""Decides which programs stand between zfs send and zfs receive, and what they are called with.

It never runs one. What goes to this node itself is not compressed: there is no link to spare.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from check_zfs_sync.service import SyncResource, size_text

Words = tuple[str, ...]

_BUFFER = "mbuffer"

# Each works at its own default level, and expands several streams one behind the other, as they
# come where a target gets many.
_COMPRESS = {"zstd": ("-q", "-c"), "lz4": ("-q", "-c"), "gzip": ("-c",)}
_EXPAND = {"zstd": ("-q", "-d", "-c"), "lz4": ("-q", "-d", "-c"), "gzip": ("-d", "-c")}


@dataclass(frozen=True)
class Programs:
    """What one target's streams go through: key of the service file -> program, on each side."""

    source: Mapping[str, str]
    target: Mapping[str, str]
    buffer: int | None  # bytes


@dataclass(frozen=True)
class Pipe:
    """The words of the stage behind zfs send, if any, and of those before zfs receive."""

    compress: Words
    feeders: tuple[Words, ...]


def programs(resource: SyncResource, node: str) -> Programs:
    """Return what both sides have to have for a target."""
    local = any(one.node == node and one.group == "local" for one in resource.targets)
    compress = None if local else resource.compress
    buffer = resource.buffer.get(node)
    on_link = {"compress": compress} if compress else {}
    return Programs(on_link, {**on_link, **({"buffer": _BUFFER} if buffer else {})}, buffer)


def pipe(needed: Programs, source: Mapping[str, str], target: Mapping[str, str]) -> Pipe:
    """Return the stages; `source` and `target` tell where a program is on that side."""
    name = needed.source.get("compress")
    compress = (source[name], *_COMPRESS[name]) if name else ()
    feeders = [(target[name], *_EXPAND[name])] if name else []
    if needed.buffer:
        # Its blocks are as large as the largest records of most datasets.
        size = size_text(needed.buffer)
        feeders.append((target[_BUFFER], "-q", "-s", "128k", "-m", size))
    return Pipe(compress, tuple(feeders))
